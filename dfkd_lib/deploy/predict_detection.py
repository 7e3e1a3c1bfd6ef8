"""Finds objects in images without PyTorch. Prints one line an object: file, label, score, x0, y0, x1, y1 in its pixels.

Needs onnxruntime, numpy and pillow, and the files beside it: model.onnx, labels.json, preprocess.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
# Not those that run a program to be read.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM")


def load(path: str, how: dict) -> tuple[Image.Image, np.ndarray, float]:
    """An image; it as float32 (1, 3, H, W), resized and filled at right and bottom; by how much it was enlarged."""
    try:
        image = Image.open(path, formats=FORMATS).convert("RGB")
    # A broken file makes Pillow's readers raise whatever they stumble over.
    except Exception as error:
        sys.exit(f"{path} cannot be read as an image: {error}")
    factor = min(how["width"] / image.width, how["height"] / image.height)
    canvas = Image.new("RGB", (how["width"], how["height"]), tuple(how["fill"]))
    size = [max(1, round(side * factor)) for side in image.size]
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3))
    pixels = np.asarray(canvas, np.float32) * np.float32(how["scale"]) + np.float32(how["offset"])
    return image, pixels.transpose(2, 0, 1)[None], factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least score of an object, in [0, 1]"
    )
    parser.add_argument(
        "--draw", type=Path, help="an existing folder for PNG files with the boxes drawn in"
    )
    options = parser.parse_args()
    labels, how = (
        json.loads((HERE / f"{name}.json").read_text("utf-8")) for name in ("labels", "preprocess")
    )
    session = onnxruntime.InferenceSession(
        str(HERE / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for path in options.images:
        image, pixels, factor = load(path, how)
        logits, boxes = (output[0] for output in session.run(None, {"images": pixels}))
        scores = 1 / (1 + np.exp(-logits[:, :-1]))  # the last column is "no object"
        for query in np.argsort(-scores.max(1)):
            label, score = labels[int(scores[query].argmax())], scores[query].max()
            if score >= options.threshold:
                middle, extent = boxes[query].reshape(2, 2) * (how["width"], how["height"]) / factor
                x0, y0, x1, y1 = (*(middle - extent / 2), *(middle + extent / 2))
                print(f"{path}\t{label}\t{score:.4f}\t{x0:.1f}\t{y0:.1f}\t{x1:.1f}\t{y1:.1f}")
                ImageDraw.Draw(image).rectangle(
                    (x0, y0, x1, y1), outline="red", width=max(1, min(image.size) // 200)
                )
                ImageDraw.Draw(image).text((x0 + 2, y0), f"{label} {score:.2f}", fill="red")
        if options.draw:
            image.save(options.draw / f"{Path(path).stem}.png")


if __name__ == "__main__":
    main()
