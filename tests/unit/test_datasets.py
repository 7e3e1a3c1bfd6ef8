"""Data as it lies on disk, and as it should not."""

import gzip
import inspect
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageChops

from dfkd_lib.core import WorkbenchError, ledger
from dfkd_lib.core.ledger import LedgerError
from dfkd_lib.datasets import (
    DataConfig,
    ImageSet,
    load_images,
    load_splits,
    random_flip,
    random_shift,
    to_float,
    to_uint8,
)
from dfkd_lib.datasets.sources import (
    FORMATS,
    MNIST_FILES,
    read_image,
    upright,
    upright_size,
)
from dfkd_lib.deploy import predict


@pytest.fixture
def images_folder(tmp_path):
    rng = np.random.default_rng(0)
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        for i in range(3):
            write(tmp_path / "pets" / place / f"{i}.png", rng.integers(0, 256, (8, 8, 3)))
    return tmp_path / "pets"


def idx_bytes(shape, body):
    return b"\x00\x00\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


def small_mnist(root, images=None, labels=None):
    folder = root / "mnist"
    folder.mkdir(parents=True)
    images = idx_bytes((4, 28, 28), bytes(4 * 784)) if images is None else images
    labels = idx_bytes((4,), bytes([0, 1, 2, 3])) if labels is None else labels
    for image_file, label_file in MNIST_FILES.values():
        (folder / image_file).write_bytes(gzip.compress(images))
        (folder / label_file).write_bytes(gzip.compress(labels))
    return folder


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.uint8(pixels))
    image.save(path)


def test_mnist_is_mnist():
    train, test = load_images("mnist", "train"), load_images("mnist", "test")
    assert (len(train), len(test), train.shape) == (60_000, 10_000, (1, 28, 28))
    assert train.labels[:6].tolist() == [5, 0, 4, 1, 9, 2]
    counts = "5923 6742 5958 6131 5842 5421 5918 6265 5851 5949"  # of LeCun's page
    assert torch.bincount(train.labels).tolist() == [int(count) for count in counts.split()]
    assert train.pixels.float().mean().item() == pytest.approx(0.1307 * 255, rel=1e-3)
    assert train.split == "mnist/train"


def test_digits():
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert len(train) + len(test) == 1797 and train.shape == (1, 8, 8) and train.pixels.max() == 255
    test.check_classes()


def test_image_folder(images_folder):
    found = load_images(str(images_folder), "train")
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.shape == (3, 8, 8)
    expected = np.asarray(Image.open(images_folder / "train" / "dog" / "2.png"))
    assert np.array_equal(found.pixels[5].permute(1, 2, 0).numpy(), expected)
    assert load_images(str(images_folder), "test", channels=1, size=16).shape == (1, 16, 16)


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("cifar10", "train", "download=True"),
        ("mnist", "train", "missing"),
        ("mnits", "train", "no such data set"),
        ("mnist", "valid", "there is no split"),
        ("mnist", "all", "there is no split"),
        ("EMPTY", "all", "no classes"),
        ("EMPTY", "train", "no classes"),
    ],
)
def test_what_is_not_there(tmp_path, name, split, message):
    (tmp_path / "EMPTY").mkdir()
    place = str(tmp_path / name) if name.isupper() else name
    with pytest.raises(WorkbenchError, match=message):
        load_images(place, split, root=tmp_path)


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (idx_bytes((4, 28, 28), bytes(100)), None, "wrong size"),
        (b"\x89PNG....", None, "not an IDX"),
        (b"", None, "not an IDX"),
        (None, idx_bytes((3,), bytes(3)), "do not fit"),
        (None, idx_bytes((4,), bytes([0, 1, 2, 77])), "77 for image 3"),
    ],
)
def test_wrong_idx_files(tmp_path, images, labels, message):
    small_mnist(tmp_path, images, labels)
    with pytest.raises(WorkbenchError, match=message):
        load_images("mnist", "train", root=tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    path = small_mnist(tmp_path) / MNIST_FILES["train"][0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WorkbenchError, match="(?s)truncated.*train-images"):
        load_images("mnist", "train", root=tmp_path)


def test_damaged_and_odd_images(images_folder):
    odd = images_folder / "train" / "cat" / "9.png"
    write(odd, np.zeros((5, 5, 3)))
    with pytest.raises(WorkbenchError, match="(?s)another size.*9.png"):
        load_images(str(images_folder), "train")
    odd.write_bytes((images_folder / "train" / "cat" / "0.png").read_bytes()[:40])
    with pytest.raises(WorkbenchError, match="cannot be read"):
        load_images(str(images_folder), "train")
    (images_folder / "train" / "bird").mkdir()
    with pytest.raises(WorkbenchError, match="(?s)class has no image.*bird"):
        load_images(str(images_folder), "train")


def sample_set(count=20, classes=4):
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 3, 3).clone()
    return ImageSet(pixels, torch.arange(count) % classes, tuple("abcd"[:classes]))


def test_sample_is_even_and_seeded():
    chosen = sample_set().sample(8, seed=1)
    assert torch.bincount(chosen.labels).tolist() == [2, 2, 2, 2]
    assert torch.equal(chosen.pixels, sample_set().sample(8, seed=1).pixels)
    assert not torch.equal(chosen.pixels, sample_set().sample(8, seed=2).pixels)
    assert len(set(chosen.pixels[:, 0, 0, 0].tolist())) == 8
    with pytest.raises(WorkbenchError, match="impossible number of images"):
        sample_set().sample(-1)


def test_fingerprint_knows_pixels_and_labels():
    a, b = sample_set(), sample_set()
    assert a.fingerprint == b.fingerprint
    b.pixels[0, 0, 0, 0] = 9
    assert a.fingerprint != ImageSet(b.pixels, b.labels, b.classes).fingerprint
    assert a.fingerprint != ImageSet(a.pixels, a.labels.flip(0), a.classes).fingerprint


EMPTY = torch.zeros(0, 1, 3, 3, dtype=torch.uint8)
TWO = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    "pixels, labels, message",
    [
        (TWO.float(), [0, 0], "wrong form"),
        (TWO[0], [0, 0], "wrong form"),
        (EMPTY, [], "wrong form"),
        (TWO.numpy(), [0, 0], "ndarray"),
        (TWO, [0, 0, 0], "do not fit"),
        (TWO, [0, -1], "-1 for image 1"),
        (TWO, [0.0, 1.0], "float32"),
    ],
)
def test_bad_image_sets(pixels, labels, message):
    with pytest.raises(WorkbenchError, match=message):
        ImageSet(pixels, torch.tensor(labels), ("a", "b"))


def test_nan_images_are_refused():
    with pytest.raises(WorkbenchError, match="NaN"):
        to_uint8(torch.tensor([[[[float("nan")]]]]))


def test_float_and_back():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    values = to_float(every)
    assert values.min() == -1 and values.max() == 1
    assert torch.equal(to_uint8(values), every)


def test_shift_moves_and_keeps_the_rest():
    x = torch.arange(2 * 25, dtype=torch.float32).view(2, 1, 5, 5)
    moved = random_shift(x, 1, torch.Generator().manual_seed(0))
    for before, after in zip(x[:, 0], moved[:, 0], strict=True):
        middles = [before[1 + i : 4 + i, 1 + j : 4 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert any(torch.equal(after[1:4, 1:4], m) for m in middles)
    assert torch.equal(random_shift(x, 0, torch.Generator()), x)


def test_flip_mirrors_about_half():
    x = torch.arange(400.0).view(100, 1, 2, 2)
    flipped = random_flip(x, torch.Generator().manual_seed(0))
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert 30 < int(mirrored.sum()) < 70 and torch.equal(flipped[~mirrored], x[~mirrored])


def test_a_folder_without_splits(tmp_path):
    for name, count in (("cat", 5), ("dog", 3)):
        for i in range(count):
            write(tmp_path / "pets" / name / f"{i}.png", np.full((8, 8), 10 * i))
    images = load_images(str(tmp_path / "pets"), "all")
    assert images.classes == ("cat", "dog") and images.split == "pets/all" and len(images) == 8
    few, again = (load_images(str(tmp_path / "pets"), "all", max_images=4) for _ in range(2))
    assert few.labels.tolist() == [0, 0, 1, 1] and torch.equal(few.pixels, again.pixels)
    with ledger.stage("free"), pytest.raises(LedgerError):
        load_images(str(tmp_path / "pets"), "all")


def test_splits_are_not_taken_for_classes(images_folder):
    for folder in (images_folder, images_folder.parent):
        with pytest.raises(WorkbenchError, match="this folder has splits") as caught:
            load_images(str(folder), "all")
        assert f"load the splits of {images_folder}," in caught.value.fix


def test_images_lying_in_a_folder_are_one_class(tmp_path):
    for i, shape in enumerate([(8, 12), (16, 8), (8, 8)]):
        write(tmp_path / "holiday" / f"{i}.jpg", np.zeros(shape))
    write(tmp_path / "holiday" / "9.png", np.repeat([[0] * 4 + [255] * 8 + [0] * 4], 8, axis=0))
    images = load_images(str(tmp_path / "holiday"), "all", size=8)
    assert images.classes == ("holiday",) and images.pixels.shape == (4, 3, 8, 8)
    assert (images.pixels[3] == 255).all()  # its middle
    with pytest.raises(WorkbenchError, match="not square"):
        load_images(str(tmp_path / "holiday"), "all")


@pytest.mark.parametrize("wrong", [{"max_images": -1}, {"size": 0}, {"channels": 2}])
def test_impossible_sizes_and_numbers(images_folder, wrong):
    with pytest.raises(WorkbenchError, match="no such size, number"):
        load_images(str(images_folder), "train", **wrong)


def test_hidden_files_are_no_classes(tmp_path):
    write(tmp_path / "pets" / "a.png", np.zeros((8, 8)))
    write(tmp_path / "pets" / "._a.png", np.zeros((8, 8)))
    (tmp_path / "pets" / ".ipynb_checkpoints").mkdir()
    assert len(load_images(str(tmp_path / "pets"), "all")) == 1


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_a_photograph_stands_upright(tmp_path, split):
    turned, place = Image.Exif(), tmp_path / ("" if split == "all" else split) / "a"
    turned[ExifTags.Base.Orientation] = 6  # its right side is up
    place.mkdir(parents=True)
    upright = np.repeat([[255], [0]], 8, axis=0).repeat(16, axis=1).astype(np.uint8)
    Image.fromarray(np.rot90(upright).copy()).save(place / "1.png", exif=turned)
    images = load_images(str(tmp_path), split, size=16, channels=1)
    assert torch.equal(images.pixels[0, 0], torch.from_numpy(upright))


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
def test_the_size_of_a_turned_picture_is_known_from_its_header(tmp_path, kind):
    turned, path = Image.Exif(), tmp_path / f"1.{kind}"
    turned[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(path, exif=turned)
    with Image.open(path) as image:
        assert upright_size(image) == ((20, 40), True)
    assert read_image(path, "RGB").shape == (40, 20, 3)


def test_images_in_sub_folders_are_of_their_class(images_folder, tmp_path):
    cats = images_folder / "train" / "cat"
    for place in ("2021/a.png", "2021/may/0.png", ".thumbs/0.png", "2021/.hidden.png"):
        write(cats / place, np.full((8, 8, 3), 255))
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "0.png", np.full((8, 8, 3), 255))
    (cats / "link").symlink_to(tmp_path / "elsewhere")
    images = load_images(str(images_folder), "train")
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [0] * 6 + [1] * 3
    white = (images.pixels == 255).flatten(1).all(1)
    assert white.tolist() == [False] * 3 + [True] * 3 + [False] * 3
    before = len(load_splits(DataConfig(name=str(images_folder)))[0])
    write(cats / "2021" / "may" / "1.png", np.zeros((8, 8, 3)))
    assert len(load_splits(DataConfig(name=str(images_folder)))[0]) == before + 1 == 10
    write(tmp_path / "elsewhere" / "1.png", np.zeros((8, 8, 3)))
    assert len(load_splits(DataConfig(name=str(images_folder)))[0]) == before + 2


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.ones((8, 8), np.float32), "floating-point"),
        (np.full((8, 8), 70_000, np.int32), "16 bits"),
    ],
)
def test_pixels_without_a_known_range_are_refused(tmp_path, pixels, message):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(WorkbenchError, match=message):
        read_image(tmp_path / "a.tif", "RGB")


def png16(path, channels, values):
    """A 16-bit PNG file (H, W, channels), which Pillow itself cannot write in colour."""
    height, width = values.shape[:2]
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, part in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        crc = struct.pack(">I", zlib.crc32(part, zlib.crc32(kind)))
        data += struct.pack(">I", len(part)) + kind + part + crc
    path.write_bytes(data)


def pixel(path):
    """The pixel of an image at row 15, column 30, int (3,)."""
    return read_image(path, "RGB", crop=True)[15, 30].astype(int)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_images_of_every_mode_become_colour(tmp_path, mode):
    colour = {"L": (90, 90, 90), "1": (255, 255, 255), "LA": (90, 90, 90)}.get(mode, (204, 51, 51))
    Image.new("RGB", (40, 20), colour).convert(mode).save(tmp_path / "a.tif")
    assert np.abs(pixel(tmp_path / "a.tif") - colour).max() <= 2


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_photographs(tmp_path, adobe):
    """Adobe's CMYK JPEG files hold inverted values; those without its marker do not."""
    inked, path = Image.new("RGB", (40, 20), (200, 60, 30)).convert("CMYK"), tmp_path / "a.jpg"
    # Pillow writes inverted values, and the marker.
    (inked if adobe else ImageChops.invert(inked)).save(path, quality=95)
    if not adobe:
        data = path.read_bytes()
        start = data.index(b"\xff\xee") + 2
        length = struct.unpack(">H", data[start : start + 2])[0]
        path.write_bytes(data[: start - 2] + data[start + length :])
    assert ("adobe" in Image.open(path).info) == adobe
    assert np.abs(pixel(path) - [200, 60, 30]).max() <= 4


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_images_keep_their_upper_bits(tmp_path, channels):
    ramp = np.linspace(0, 65535, 800).astype(np.uint16).reshape(20, 40, 1)
    values = ramp.repeat(channels, axis=2)
    if channels in (2, 4):
        values[..., -1] = 65535
    png16(tmp_path / "a.png", channels, values)
    found = read_image(tmp_path / "a.png", "RGB")[..., 1].astype(int)
    assert np.abs(found - (values[..., 0] >> 8)).max() <= 1


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory):
    """{name: file} of every kind of pixels, each also with an EXIF rotation where its format has one."""
    folder, rng = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (20, 30, 4), np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 65536, (20, 30), np.uint16))
    rgb, turned = rgba.convert("RGB"), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    made = {f"{mode}.png": rgb.convert(mode) for mode in ("L", "1", "P", "RGB")}
    made |= {"RGBA.png": rgba, "LA.png": rgba.convert("LA"), "I16.png": grey16, "RGB.gif": rgb}
    made |= {"I16.tif": grey16, "F.tif": rgb.convert("F"), "LAB.tif": rgb.convert("LAB")}
    made |= {"RGB.jpg": rgb, "CMYK.jpg": rgb.convert("CMYK"), "CMYK.tif": rgb.convert("CMYK")}
    for name, image in made.items():
        image.save(folder / name)
        image.save(folder / f"turned_{name}", exif=turned)
    rgb.convert("P").save(folder / "clear.png", transparency=3)
    (folder / "cut.png").write_bytes((folder / "RGB.png").read_bytes()[:600])
    adobe = (folder / "CMYK.jpg").read_bytes()
    (folder / "plain_CMYK.jpg").write_bytes(adobe.replace(b"Adobe", b"Other"))
    png16(folder / "RGB16.png", 3, rng.integers(0, 65536, (20, 30, 3)))
    return folder


@pytest.mark.parametrize("size", [None, 28])
@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1)])
def test_the_deployed_package_reads_what_training_read(odd_files, mode, channels, size):
    refused = set()
    for file in sorted(odd_files.iterdir()):
        how = {"channels": channels, "scale": 1.0, "offset": 0.0}
        try:
            trained = read_image(file, mode, size)
        except WorkbenchError:
            refused.add(file.name)
            with pytest.raises(SystemExit, match="cannot be read"):
                predict.load(str(file), how | {"width": 28, "height": 28})
            continue
        how |= {"width": trained.shape[1], "height": trained.shape[0]}
        served = predict.load(str(file), how)[1].transpose(1, 2, 0)
        assert np.array_equal(served, trained.reshape(served.shape)), file.name
    assert refused == {"F.tif", "turned_F.tif", "cut.png"}


def test_the_package_carries_the_librarys_reader():
    assert inspect.getsource(predict.upright) == inspect.getsource(upright)
    assert predict.FORMATS == FORMATS


def test_transparent_pixels_are_black(tmp_path):
    frame = Image.new("RGBA", (40, 20), (200, 60, 30, 255))
    frame.paste((255, 255, 255, 0), (0, 0, 10, 10))
    frame.paste((200, 200, 200, 200), (10, 0, 20, 10))
    frame.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", "RGB")
    assert found[2, 2].tolist() == [0, 0, 0] and found[15, 30].tolist() == [200, 60, 30]
    assert found[2, 12, 0] == pytest.approx(157, abs=1)  # 200 of 255 opaque over black


def test_digits_are_padded_to_a_larger_size_and_never_cut():
    plain, padded = (load_images("digits", "test", size=size) for size in (None, 11))
    assert padded.shape == (1, 11, 11) and torch.equal(padded.pixels[:, :, 1:9, 1:9], plain.pixels)
    assert padded.pixels.sum() == plain.pixels.sum()
    assert padded.fingerprint != plain.fingerprint
    assert load_images("digits", "test", size=8).fingerprint == plain.fingerprint
    with pytest.raises(WorkbenchError, match="size 8 or more"):
        load_images("digits", "test", size=7)


def binary_cifar(root, name, head):
    """Ten records a file whose pixels count up, in the authors' binary form."""
    folder = root / {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[name]
    folder.mkdir()
    parts = {"cifar10": [f"data_batch_{i}" for i in range(1, 6)], "cifar100": ["train"]}[name]
    for number, part in enumerate(parts):
        pixels = np.full((10, 3, 32, 32), number, np.uint8)
        pixels[:, 1, 2, 3] = 200
        heads = np.tile(np.arange(10, dtype=np.uint8)[:, None], (1, head))
        heads[:, 0] = 0 if head == 2 else heads[:, 0]  # CIFAR-100's coarse label comes first
        records = np.concatenate([heads, pixels.reshape(10, -1)], 1)
        (folder / f"{part}.bin").write_bytes(records.tobytes())
    names = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}[name]
    (folder / names).write_text("\n".join(f"class{i}" for i in range(10)) + "\n\n")
    return folder


@pytest.mark.parametrize("name, head, count", [("cifar10", 1, 50), ("cifar100", 2, 10)])
def test_cifars_binary_version_is_read_in_its_order(tmp_path, name, head, count):
    folder = binary_cifar(tmp_path, name, head)
    images = load_images(name, "train", tmp_path)
    assert images.pixels.shape == (count, 3, 32, 32) and images.split == f"{name}/train"
    assert images.labels.tolist() == list(range(10)) * (count // 10)
    assert images.classes[3] == "class3" and images.pixels[-1, 0, 0, 0] == count // 10 - 1
    assert (images.pixels[:, 1, 2, 3] == 200).all()
    file = sorted(folder.glob("*.bin"))[0]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WorkbenchError, match="bytes an image"):
        load_images(name, "train", tmp_path)


def test_a_named_set_may_lie_as_a_folder_of_class_folders(tmp_path):
    for split in ("train", "test"):
        for label, name in enumerate(("bird", "airplane")):
            (tmp_path / "cifar10" / split / name).mkdir(parents=True)
            grey = Image.new("RGB", (32, 32), (100 * label,) * 3)
            grey.save(tmp_path / "cifar10" / split / name / "0.png")
    images = load_images("cifar10", "train", tmp_path)
    assert images.classes == ("airplane", "bird") and images.split == "cifar10/train"
    assert images.pixels[:, 0, 0, 0].tolist() == [100, 0]


def test_images_that_validate_are_training_images_that_nothing_learns_from():
    whole, _ = load_splits(DataConfig(name="digits"))
    learns, validates = load_splits(DataConfig(name="digits", validation=0.2))
    assert len(validates) == round(0.2 * len(whole)) and len(learns) + len(validates) == len(whole)
    assert not set(learns.places) & set(validates.places) and validates.split == "digits/train"
    assert validates.labels.bincount().min() >= 28 and "held out" in validates.name
    again = load_splits(DataConfig(name="digits", validation=0.2))
    assert again[1].fingerprint == validates.fingerprint
