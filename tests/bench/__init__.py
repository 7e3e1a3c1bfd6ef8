"""What the library costs beside other implementations; run by `make bench`."""
