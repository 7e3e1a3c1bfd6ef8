"""Where the scenes of an experiment come from, named before they are drawn or read."""

from dataclasses import asdict, dataclass
from functools import cache

from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import resolve
from dfkd_lib.datasets.coco import load_coco
from dfkd_lib.datasets.scenes import SceneSet, generate_scenes

PROBE = 16  # scenes that identify a generated set


@dataclass(frozen=True)
class SceneSource:
    """The train, test and synthetic scenes of an experiment; drawn or read when asked for, once.

    Args:
        data: "scenes", the generated aerial scenes, or a COCO folder. size: side of square scenes in pixels.
        train, test: number of generated scenes; a folder has its own. seed: of the generated scenes and crops.
        crop, crops, crop_spread, crop_anywhere: of a COCO folder's training frames, see `load_coco`; crop 0 for whole
            ones. Test frames are cut once each, at `crop`. shortest: DETR's resizing of a folder's whole frames instead of
            square scenes; 0 for square ones.

    Raises:
        WorkbenchError: if a folder's frames are to be both cut and resized as whole ones.
    """

    data: str = "scenes"
    size: int = 80
    train: int = 4000
    test: int = 300
    seed: int = 0
    crop: float = 0.0
    shortest: int = 0
    crops: int = 1
    crop_spread: float = 1.0
    crop_anywhere: float = 0.0

    def __post_init__(self):
        if self.shortest and self.crop and self.data != "scenes":
            raise WorkbenchError(
                "frames cannot be both cut around objects and resized whole",
                where="SceneSource",
                expected="crop or shortest",
                got=f"crop {self.crop:g}, shortest {self.shortest}",
                fix="set shortest to 0 for crops, or crop to 0 for whole frames",
            )

    def load(self, split: str) -> SceneSet:
        """The scenes of split "train", "test" or "synthetic" (always generated, of split None, as many as `train`)."""
        return _load(self, split, self.test if split == "test" else self.train, self._stamp(split))

    def _stamp(self, split: str) -> tuple:
        """When a folder's annotations and images last changed, so that an open kernel sees it."""
        if self.data == "scenes" or split == "synthetic":
            return ()
        folder = resolve(self.data)
        files = [
            path
            for name in {split, "val"}
            for path in (folder / f"{name}.json", folder / name)
            if path.exists()
        ]
        return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in files))

    def split(self, split: str) -> str | None:
        """The name of a split in the ledger, without drawing generated scenes; None for scenes of no data set."""
        if split == "synthetic":
            return None
        return f"aerial/{split}" if self.data == "scenes" else self.load(split).split

    def identity(self, split: str) -> dict:
        """What tells these scenes from others, for an artifact's settings.

        Scene i of a generated set depends on seed and i alone, so its first scenes stand for the program that drew it:
        thousands need not be drawn to find an artifact that was made from them.
        """
        if self.data == "scenes" or split == "synthetic":
            count = self.test if split == "test" else self.train
            probe = _load(self, split, min(PROBE, count), ())
            return {
                "generated": split,
                "count": count,
                "size": self.size,
                "seed": self.seed,
                "scenes": probe.fingerprint,
            }
        return {**asdict(self), "scenes": self.load(split).fingerprint}


@cache
def _load(source: SceneSource, split: str, count: int, stamp: tuple) -> SceneSet:
    if source.data == "scenes" or split == "synthetic":
        return generate_scenes(count, source.size, source.seed, split)
    if source.shortest:
        return load_coco(source.data, split, shortest=source.shortest)
    if split == "train":
        return load_coco(
            source.data,
            split,
            size=source.size,
            crop=source.crop or None,
            seed=source.seed,
            crops=source.crops,
            crop_spread=source.crop_spread,
            crop_anywhere=source.crop_anywhere,
        )
    # Test frames are cut in one fixed way, so that every detector is asked the same question.
    return load_coco(source.data, split, size=source.size, crop=source.crop or None, seed=0)
