"""Labels images, or finds objects in them, without PyTorch: by which model.onnx it is given.

Prints one line an image: file, label, probability; or one line an object: file, label, score, x0, y0, x1, y1 in its
pixels. Needs onnxruntime, numpy and pillow, and the files beside it: model.onnx, labels.json, preprocess.json.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageChops, ImageDraw, ImageOps

HERE = Path(__file__).resolve().parent
# Not those that run a program to be read.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM")


def upright(image: Image.Image, mode: str) -> Image.Image:
    """An opened file in mode "L" or "RGB", turned as its EXIF tag says.

    Transparent pixels become black, 16-bit grey keeps its upper 8 bits; pixels that are not whole numbers of at most 16
    bits are refused. CMYK is inverted in a JPEG file with Adobe's marker alone.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range nobody knows")
    # Pillow takes every CMYK JPEG for Adobe's, who write them inverted.
    inverted = (image.mode, image.format) == ("CMYK", "JPEG") and "adobe" not in image.info
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip rather than scale
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("whole numbers beyond 16 bits, whose range nobody knows")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif inverted:
        image = ImageChops.invert(image)
    elif "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over)
    return image.convert(mode)


def load(path: str, how: dict) -> tuple[Image.Image, np.ndarray, float]:
    """An image; it as float32 (C, H, W), resized, with "fill" in its own proportions; by how much it was enlarged."""
    try:
        with warnings.catch_warnings():  # what Pillow only warns of fills the memory just as well
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                image = upright(opened, "L" if how["channels"] == 1 else "RGB")
    # A broken file makes Pillow's readers raise whatever they stumble over.
    except Exception as error:
        sys.exit(f"{path} cannot be read as an image: {error}")
    frame, factor = (how["width"], how["height"]), 1.0
    seen = image
    if "fill" in how:
        size, factor = fitted(image.size, how)
        seen = Image.new("RGB", frame, tuple(how["fill"]))
        seen.paste(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3))
    elif image.size != frame:
        seen = image.resize(frame, Image.Resampling.BICUBIC)
    pixels = np.asarray(seen, np.float32).reshape(how["height"], how["width"], how["channels"])
    pixels = pixels * np.float32(how["scale"]) + np.float32(how["offset"])
    return image, pixels.transpose(2, 0, 1), factor


def fitted(image: tuple[int, int], how: dict) -> tuple[list[int], float]:
    """The size (width, height) that an image is resized to, and by how much that enlarges it: its shortest side to
    "shortest", its longest to at most "longest", rounded as for training; or as large as the input has room for."""
    short, long = sorted(image)
    side = raw = how.get("shortest", short)
    if long / short * raw > how.get("longest", 1333):
        raw = how.get("longest", 1333) * short / long
        side = round(raw)
    size = [side if one == short else int(raw * one / short) for one in image]
    size, factor = (list(image) if short == side else size), raw / short
    room = min(how["width"] / image[0], how["height"] / image[1])
    if "shortest" not in how or size[0] > how["width"] or size[1] > how["height"]:
        size, factor = [round(one * room) for one in image], room
    return [max(1, one) for one in size], factor


def objects(logits: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[tuple]:
    """(class, score, (x0, y0, x1, y1)) of every query, surest first, the corners in units of `size`."""
    scores = 1 / (1 + np.exp(-logits[:, :-1]))  # the last column is "no object"
    middle, extent = boxes[:, :2] * size, boxes[:, 2:] * size
    corners = np.concatenate([middle - extent / 2, middle + extent / 2], axis=1)
    order = np.argsort(-scores.max(1))
    return [(int(scores[i].argmax()), scores[i].max(), tuple(corners[i])) for i in order]


def draw(image: Image.Image, corners: tuple, text: str) -> None:
    pen = ImageDraw.Draw(image)
    pen.rectangle(corners, outline="red", width=max(1, min(image.size) // 200))
    pen.text((corners[0] + 2, corners[1]), text, fill="red")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+")
    limit = "least score of an object, in [0, 1]"
    parser.add_argument("--threshold", type=float, default=0.5, help=limit)
    folder = "an existing folder for PNG files with the objects' boxes drawn in"
    parser.add_argument("--draw", type=Path, help=folder)
    options = parser.parse_args()
    files = ("labels.json", "preprocess.json")
    labels, how = (json.loads((HERE / name).read_text("utf-8")) for name in files)
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=providers)
    for path in options.images:
        image, pixels, factor = load(path, how)
        logits, *boxes = (output[0] for output in session.run(None, {"images": pixels[None]}))
        if not boxes:
            shares = np.exp(logits - logits.max())
            best = int(shares.argmax())
            print(f"{path}\t{labels[best]}\t{shares[best] / shares.sum():.4f}")
            continue
        size = (how["width"] / factor, how["height"] / factor)
        for label, score, corners in objects(logits, boxes[0], size):
            if score >= options.threshold:
                places = "\t".join(f"{place:.1f}" for place in corners)
                print(f"{path}\t{labels[label]}\t{score:.4f}\t{places}")
                draw(image, corners, f"{labels[label]} {score:.2f}")
        if options.draw:
            image.save(options.draw / f"{Path(path).stem}.png")


if __name__ == "__main__":
    main()
