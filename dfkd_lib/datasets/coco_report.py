"""`CocoReport`: what is wrong with a split of a COCO folder and where, fatal or not, and what the split holds."""

import shlex
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from dfkd_lib.core import WorkbenchError, plain

if TYPE_CHECKING:
    import pandas as pd

YOLO, ROBOFLOW = "data.yaml", "_annotations.coco.json"
BOX = "bbox is [x, y, width, height] in pixels from the top left"
# Kind of fault: what it is, and its fix. Fatal ones stop training, warnings do not.
FATAL = {
    "file": ("a COCO annotation file is missing or cannot be read", "fetch or write it again"),
    "list": (
        "a COCO file has no images, no annotations or no categories",
        "write the list into it",
    ),
    "entry": ("an entry of a COCO file is not whole", "write the entry again, or remove it"),
    "image_id": ("two images have one id", "give each its own, in its annotations too"),
    "category_id": ("two categories have one id", "give each category an id of its own"),
    "file_name": ("two entries name one image file", "join them: objects of one lack in the other"),
    "category_name": ("two categories have one name", "join the categories"),
    "no_image": ("an annotation belongs to no image", "remove the annotation, or add its image"),
    "category": ("an annotation has an unknown category", "add it to 'categories', or correct it"),
    "numbers": ("a box is not four finite numbers", BOX),
    "no_area": ("a box has no area", BOX),
    "outside": ("a box lies outside its image", BOX),
    "missing": ("an image is missing", "put the file there, or remove its entry"),
    "unreadable": ("an image cannot be read", "fetch the file again, or remove its entry"),
    "size": (
        "an image has another size than its annotation file says",
        "correct width and height, or restore the image the boxes were drawn on",
    ),
    "lying": (
        "an annotation file has the size of a picture before its EXIF tag turns it upright",
        "remove the tag (exiftool -Orientation= FILE) if the boxes lie on the unturned picture, "
        "else give the size of the upright one",
    ),
    "leak": ("one picture is in two splits, which makes a test worthless", "remove it from train"),
    "classes": ("two splits have different categories", "give all splits the same ids and names"),
    "line": (
        "a line of a label file is no object",
        "write class, centre x, centre y, width, height, or class and three points of an outline or more",
    ),
    "line_class": (
        "an object has a class without a name in data.yaml",
        "correct it, or add a name",
    ),
    "share": (
        "coordinates of a label file are no shares of the image",
        "divide x and width by the image's width, y and height by its height",
    ),
}
LINES = ("line", "line_class", "share")  # of YOLO's label files
HOPELESS = {"file", "list", "category_id", "classes"}  # what `repair_coco` cannot mend
WARNINGS = {
    "turned": (
        "an EXIF tag turns or mirrors a picture, and boxes are taken to lie on it as it then is",
        "remove the tag (exiftool -Orientation= FILE) if they lie on the unturned picture",
    ),
    "annotation_id": ("two annotations have one id", "number the annotations again"),
    "twice": ("an annotation is there twice", "remove one of them"),
    "near": ("two boxes are almost the same", "look whether they are one object"),
    "class": ("a category has no object", "leave it out, or add objects"),
    "same": ("one picture lies there under two names", "keep one of them"),
}
KINDS = FATAL | WARNINGS
QUANTILES = {"5 %": 0.05, "median": 0.5, "95 %": 0.95}


@dataclass(frozen=True)
class Fault:
    """One fault: its kind (a key of KINDS), where it is, what was expected and found there, the entry's list and index."""

    kind: str
    place: str
    expected: str
    found: str
    image: str = ""
    entry: tuple[str, int] | None = None

    @property
    def fatal(self) -> bool:
        """Whether it stops training."""
        return self.kind in FATAL

    @property
    def what(self) -> str:
        """What is wrong, in words."""
        return KINDS[self.kind][0]

    def __str__(self) -> str:
        image = f", image {self.image}" if self.image and self.image not in self.place else ""
        return f"{self.place}{image}: expected {self.expected}, found {self.found}"


@dataclass
class CocoReport:
    """What was found in one split of a COCO folder, made by `check_coco`.

    `whole` are the entries of each list, by their place in it, that have all they need. `images` and `categories` (in
    the order of their ids) are those of them by id; `annotations` are (index in the file, entry, box) without a fault,
    the box (x, y, width, height) in pixels and cut to its image.
    """

    folder: Path
    split: str
    faults: list[Fault] = field(default_factory=list)
    content: dict = field(default_factory=dict, repr=False)
    whole: dict[str, dict[int, dict]] = field(default_factory=dict, repr=False)
    images: dict[int | str, dict] = field(default_factory=dict, repr=False)
    categories: dict[int | str, dict] = field(default_factory=dict, repr=False)
    annotations: list[tuple[int, dict, tuple]] = field(default_factory=list, repr=False)

    @cached_property
    def layout(self) -> tuple[Path, Path]:
        """The annotation file, and the folder that its names of images are relative to: train.json, train/; else as
        Roboflow, COCO itself and YOLO lay them out."""
        folder, split = self.folder, self.split
        own = folder / f"{split}.json", folder / split
        exported = [folder / name / ROBOFLOW for name in (split, *["valid"][: split == "val"])]
        named = [*folder.glob(f"annotations/instances_{escape(split)}*.json")]
        # Of one, not of two.
        year = named[0].stem.removeprefix("instances_") if len(named) == 1 else ""
        pictures = [place for place in (folder / year, folder / "images" / year) if place.is_dir()]
        found = [own, *((file, file.parent) for file in exported)]
        found += [(named[0], place) for place in pictures if year]
        return next((pair for pair in (*found, (folder / YOLO, folder)) if pair[0].is_file()), own)

    @property
    def file(self) -> Path:
        """The annotation file, YOLO's data.yaml among them; train.json where there is none."""
        return self.layout[0]

    @property
    def place(self) -> Path:
        """The folder that names of image files are relative to."""
        return self.layout[1]

    def path(self, index: int) -> Path:
        """The file of an entry of 'images'."""
        return self.place / self.whole["images"][index]["file_name"]

    @property
    def fatal(self) -> bool:
        """Whether anything stops training."""
        return any(fault.fatal for fault in self.faults)

    def grouped(self) -> dict[str, list[Fault]]:
        """{kind: its faults}, fatal kinds first."""
        groups: dict[str, list[Fault]] = {}
        for fault in sorted(self.faults, key=lambda fault: not fault.fatal):
            groups.setdefault(fault.kind, []).append(fault)
        return groups

    def add(self, kind: str, expected, found, place="", image="", entry=None) -> None:
        """Add a fault, of the file where no other place is given."""
        place, found = plain(place or self.file.name), plain(found)[:100]
        self.faults.append(Fault(kind, place, plain(expected), found, plain(image), entry))

    def flag(self, kind: str, key: str, index: int, expected, found, place: str = "") -> None:
        """Add a fault of a whole entry of a list; its place is the annotation or the image where no other is given."""
        entry = self.whole[key][index]
        image = self.images.get(entry.get("image_id"), entry).get("file_name", "")
        usual = f"annotation {entry.get('id')}" if key == "annotations" else image
        self.add(kind, expected, found, place or usual, image, (key, index))

    def counts(self) -> dict[str, int]:
        """Numbers of images, of those without annotations, of annotations and of crowd regions among them."""
        filled = {a["image_id"] for _, a, _ in self.annotations}
        return {
            "images": len(self.images),
            "images without annotations": len(set(self.images) - filled),
            "annotations": len(self.annotations),
            "crowd regions": sum(bool(a.get("iscrowd")) for _, a, _ in self.annotations),
        }

    def table(self) -> "pd.DataFrame":
        """A row for each class and one for all: objects, images that show them, box width and height in pixels."""
        import pandas as pd

        names = {key: category["name"] for key, category in self.categories.items()}
        boxes = pd.DataFrame(
            [(names[a["category_id"]], a["image_id"], *box[2:]) for _, a, box in self.annotations],
            columns=["class", "image", "width", "height"],
        )
        parts = {name: boxes[boxes["class"] == name] for name in names.values()}
        rows = {
            name: {"objects": len(part), "images": part["image"].nunique()}
            | {
                f"{side} {title}": part[side].quantile(share)
                for side in ("width", "height")
                for title, share in QUANTILES.items()
            }
            for name, part in [*parts.items(), ("all", boxes)]
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")

    def problems(self) -> "pd.DataFrame":
        """A row for each fault: whether it is fatal, what, place, image, expected, found, fix."""
        import pandas as pd

        rows = [
            (f.fatal, f.what, f.place, f.image, f.expected, f.found, KINDS[f.kind][1])
            for found in self.grouped().values()
            for f in found
        ]
        columns = ["fatal", "what", "place", "image", "expected", "found", "fix"]
        return pd.DataFrame(rows, columns=columns)

    def text(self, most: int = 20) -> str:
        """The report to read; at most `most` faults of each kind (0: all)."""
        counts = ", ".join(f"{n} {what}" for what, n in self.counts().items())
        every = Counter((i["width"], i["height"]) for i in self.images.values())
        sizes = ", ".join(f"{w} x {h} ({n})" for (w, h), n in every.most_common(5))
        lines = [f"{self.file}", f"  {counts}", f"  {len(every)} image sizes: {sizes}"]
        if self.annotations:
            lines += ["  " + line for line in self.table().round(1).to_string().splitlines()]
        lines += self._listed(most) or ["  nothing wrong was found"]
        return "\n".join(lines)

    def error(self) -> WorkbenchError:
        """The error of all fatal faults, with the first few of each kind and how to see all of them."""
        check = f"python -m dfkd_lib.datasets check {shlex.quote(str(self.folder))}"
        return WorkbenchError(
            "; ".join(KINDS[kind][0] for kind in self.grouped() if kind in FATAL),
            got="\n" + "\n".join(self._listed(3, warnings=False)),
            where=self.file,
            fix=f"{check} --repair OUT writes a copy without it; without --repair it shows all of it"
            if self._mendable()
            else f"{check} shows all of it; each kind has its fix",
        )

    def _mendable(self) -> bool:
        """Whether `repair_coco` would leave anything."""
        gone = {
            self.whole["images"][fault.entry[1]]["id"]
            for fault in self.faults
            if fault.kind in ("image_id", "missing", "unreadable", "size", "lying")
        }
        kinds = {fault.kind for fault in self.faults}
        left = any(annotation["image_id"] not in gone for _, annotation, _ in self.annotations)
        return (left or "outside" in kinds) and not kinds & HOPELESS  # boxes outside are cut

    def _listed(self, most: int, warnings: bool = True) -> list[str]:
        """A heading for each kind of fault with its count and fix, then its first `most` (0: all)."""
        lines = []
        for kind, found in self.grouped().items():
            if kind in WARNINGS and not warnings:
                continue
            (what, fix), level = KINDS[kind], "FATAL" if kind in FATAL else "warning"
            lines.append(f"  {level}: {what}, {len(found)} x (fix: {fix})")
            lines += [f"    {fault}" for fault in found[: most or None]]
            if most and len(found) > most:
                lines.append(f"    and {len(found) - most} more")
        return lines
