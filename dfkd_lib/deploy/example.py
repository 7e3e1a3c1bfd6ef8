"""One image through model.onnx, to copy into a program: `python example.py image.png`, in this folder."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from predict import fitted

names, how = (json.load(open(f"{name}.json", "rb")) for name in ("labels", "preprocess"))
image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
image = seen = image.convert("L" if how["channels"] == 1 else "RGB")
frame, factor = np.array([how["width"], how["height"]]), 1.0
if "fill" in how:  # a detector sees an image in its own proportions
    size, factor = fitted(image.size, how)
    seen = Image.new("RGB", tuple(frame), tuple(how["fill"]))
    seen.paste(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3))
elif image.size != tuple(frame):
    seen = image.resize(tuple(frame), Image.Resampling.BICUBIC)
pixels = np.asarray(seen, np.float32).reshape(*frame[::-1], -1) * how["scale"] + how["offset"]
images = pixels.astype(np.float32).transpose(2, 0, 1)[None]
model = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
logits, *boxes = (output[0] for output in model.run(None, {"images": images}))
chances = 1 / (1 + np.exp(-logits[:, :-1])) if boxes else [np.exp(logits) / np.exp(logits).sum()]
for row, chance in enumerate(chances):  # of an object, or of the image
    if not boxes or chance.max() >= 0.5:
        place = (boxes[0][row] * np.tile(frame, 2) / factor).round(1) if boxes else ""
        print(names[chance.argmax()], f"{chance.max():.4f}", *place, sep="\t")
