"""Labels images without PyTorch. Prints one line an image: file, label, probability.

Needs onnxruntime, numpy and pillow, and the files beside it: model.onnx, labels.json, preprocess.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

HERE = Path(__file__).resolve().parent
# Not those that run a program to be read.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM")


def load(path: str, how: dict) -> np.ndarray:
    """One image as float32 (C, H, W), in the colours, size and range that the model was trained with."""
    try:
        image = Image.open(path, formats=FORMATS).convert("L" if how["channels"] == 1 else "RGB")
    # A broken file makes Pillow's readers raise whatever they stumble over.
    except Exception as error:
        sys.exit(f"{path} cannot be read as an image: {error}")
    if image.size != (how["width"], how["height"]):
        image = image.resize((how["width"], how["height"]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).reshape(how["height"], how["width"], how["channels"])
    return (pixels * np.float32(how["scale"]) + np.float32(how["offset"])).transpose(2, 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+")
    labels, how = (
        json.loads((HERE / f"{name}.json").read_text("utf-8")) for name in ("labels", "preprocess")
    )
    session = onnxruntime.InferenceSession(
        str(HERE / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for path in parser.parse_args().images:
        logits = session.run(None, {"images": load(path, how)[None]})[0][0]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(f"{path}\t{labels[int(shares.argmax())]}\t{shares.max():.4f}")


if __name__ == "__main__":
    main()
