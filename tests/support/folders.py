"""Scenes written as a COCO folder."""

import json
from dataclasses import replace

from PIL import Image

from dfkd_lib.datasets import ground_truth


def write_coco(scenes, folder, split: str) -> None:
    """Scenes as they are, at their own size, as `<folder>/<split>/*.png` and `<folder>/<split>.json`."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    content = ground_truth(replace(scenes, scale=None))
    for entry, image in zip(content["images"], scenes.images, strict=True):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(folder / split / entry["file_name"])
    (folder / f"{split}.json").write_text(json.dumps(content))
