"""`CocoReport`: what is wrong with a split of a COCO folder and where, fatal or not, and what the split holds."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dfkd_lib.core import WorkbenchError, plain

if TYPE_CHECKING:
    import pandas as pd

BOX = "bbox is [x, y, width, height] in pixels from the top left"


class Kind(NamedTuple):
    """A kind of fault: whether it stops training, what it is, its fix."""

    fatal: bool
    what: str
    fix: str


KINDS = {
    "file": Kind(
        True, "a COCO annotation file is missing or cannot be read", "fetch or write it again"
    ),
    "list": Kind(
        True,
        "a COCO file has no images, no annotations or no categories",
        "write the list into the file",
    ),
    "entry": Kind(
        True, "an entry of a COCO file is not whole", "write the entry again, or remove it"
    ),
    "image_id": Kind(
        True, "two images have one id", "give each image an id of its own, in its annotations too"
    ),
    "category_id": Kind(True, "two categories have one id", "give each category an id of its own"),
    "annotation_id": Kind(False, "two annotations have one id", "number the annotations again"),
    "file_name": Kind(
        True,
        "two entries name one image file",
        "join the entries: objects of one lack in the other",
    ),
    "category_name": Kind(True, "two categories have one name", "join the categories"),
    "no_image": Kind(
        True, "an annotation belongs to no image", "remove the annotation, or add its image"
    ),
    "category": Kind(
        True, "an annotation has an unknown category", "add it to 'categories', or correct it"
    ),
    "numbers": Kind(True, "a box is not four numbers", BOX),
    "finite": Kind(True, "a box holds a value that is not a number", BOX),
    "no_area": Kind(True, "a box has no area", BOX),
    "outside": Kind(True, "a box lies outside its image", BOX),
    "twice": Kind(False, "an annotation is there twice", "remove one of them"),
    "near": Kind(False, "two boxes are almost the same", "look whether they are one object"),
    "area": Kind(
        False, "an area is not that of its box", "write width x height, or give the segmentation"
    ),
    "class": Kind(False, "a category has no object", "leave it out, or add objects"),
    "missing": Kind(True, "an image is missing", "put the file there, or remove its entry"),
    "unreadable": Kind(
        True, "an image cannot be read", "fetch the file again, or remove its entry"
    ),
    "size": Kind(
        True,
        "an image has another size than its annotation file says",
        "correct width and height, or restore the image the boxes were drawn on",
    ),
    "same": Kind(False, "one picture lies there under two names", "keep one of them"),
    "leak": Kind(
        True,
        "one picture is in two splits, which makes a test worthless",
        "remove it from the training split",
    ),
    "classes": Kind(
        True, "two splits have different categories", "give all splits the same ids and names"
    ),
}


@dataclass(frozen=True)
class Fault:
    """One fault: its kind (a key of KINDS), the place in words, what was expected and found, the list and index."""

    kind: str
    place: str
    expected: str
    found: str
    image: str = ""
    entry: tuple[str, int] | None = None


@dataclass
class CocoReport:
    """What was found in one split of a COCO folder, made by `check_coco`.

    `images` and `categories` (in the order of their ids) are the entries without a fault, by id; `annotations` are
    (index in the file, entry, box), the box (x, y, width, height) in pixels and cut to its image.
    """

    folder: Path
    split: str
    faults: list[Fault] = field(default_factory=list)
    content: dict = field(default_factory=dict, repr=False)
    images: dict[int | str, dict] = field(default_factory=dict, repr=False)
    categories: dict[int | str, dict] = field(default_factory=dict, repr=False)
    annotations: list[tuple[int, dict, tuple]] = field(default_factory=list, repr=False)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.split}.json"

    @property
    def fatal(self) -> bool:
        """Whether anything stops training."""
        return any(KINDS[fault.kind].fatal for fault in self.faults)

    def grouped(self) -> dict[str, list[Fault]]:
        """{kind: its faults}, fatal kinds first."""
        groups = defaultdict(list)
        for fault in self.faults:
            groups[fault.kind].append(fault)
        return dict(sorted(groups.items(), key=lambda item: not KINDS[item[0]].fatal))

    def add(
        self, kind: str, place: str, expected, found, image: str = "", entry: tuple | None = None
    ) -> None:
        self.faults.append(
            Fault(kind, plain(place), plain(expected), plain(found)[:100], plain(image), entry)
        )

    def flag(self, kind: str, key: str, index: int, expected, found, place: str = "") -> None:
        """Add a fault of a whole entry of a list, which names its image; the place is the annotation or the image by default."""
        entry = self.content[key][index]
        image = entry.get("file_name") or self.images.get(entry.get("image_id"), {}).get(
            "file_name", ""
        )
        usual = f"annotation {entry.get('id')}" if key == "annotations" else image
        self.add(kind, place or usual, expected, found, image, (key, index))

    def counts(self) -> dict[str, int]:
        """Numbers of images, of those without annotations, of annotations and of crowd regions among them."""
        filled = {a["image_id"] for _, a, _ in self.annotations}
        return {
            "images": len(self.images),
            "images without annotations": len(set(self.images) - filled),
            "annotations": len(self.annotations),
            "crowd regions": sum(bool(a.get("iscrowd")) for _, a, _ in self.annotations),
        }

    def sizes(self) -> Counter:
        """How many images there are of each (width, height)."""
        return Counter((i["width"], i["height"]) for i in self.images.values())

    def table(self) -> "pd.DataFrame":
        """A row for each class and one for all: objects, images that show them, box width and height in pixels."""
        import pandas as pd

        names = {c["id"]: c["name"] for c in self.categories.values()}
        boxes = pd.DataFrame(
            [(names[a["category_id"]], a["image_id"], *box[2:]) for _, a, box in self.annotations],
            columns=["class", "image", "width", "height"],
        )
        rows = {}
        for name, part in [(n, boxes[boxes["class"] == n]) for n in names.values()] + [
            ("all", boxes)
        ]:
            rows[name] = {"objects": len(part), "images": part["image"].nunique()}
            for side in ("width", "height"):
                for share, word in ((0.05, "5 %"), (0.5, "median"), (0.95, "95 %")):
                    rows[name][f"{side} {word}"] = part[side].quantile(share)
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")

    def problems(self) -> "pd.DataFrame":
        """A row for each fault: whether it is fatal, what, place, image, expected, found, fix."""
        import pandas as pd

        columns = ["fatal", "what", "place", "image", "expected", "found", "fix"]
        return pd.DataFrame(
            [
                (
                    KINDS[f.kind].fatal,
                    KINDS[f.kind].what,
                    f.place,
                    f.image,
                    f.expected,
                    f.found,
                    KINDS[f.kind].fix,
                )
                for found in self.grouped().values()
                for f in found
            ],
            columns=columns,
        )

    def text(self, most: int = 20) -> str:
        """The report to read; at most `most` faults of each kind (0: all)."""
        counts = ", ".join(f"{n} {what}" for what, n in self.counts().items())
        sizes = ", ".join(f"{w} x {h} ({n})" for (w, h), n in self.sizes().most_common(5))
        lines = [
            f"{self.file}",
            f"  {counts}",
            f"  image sizes: {sizes or 'none'}"
            + (f", and {len(self.sizes()) - 5} more" if len(self.sizes()) > 5 else ""),
        ]
        if self.annotations:
            lines += ["  " + line for line in self.table().round(1).to_string().splitlines()]
        lines += listed(self.grouped(), most) or ["  nothing wrong was found"]
        return "\n".join(lines)

    def error(self) -> WorkbenchError:
        """The error that says the first few fatal faults of each kind and how to see all of them."""
        fatal = {kind: found for kind, found in self.grouped().items() if KINDS[kind].fatal}
        what = "; ".join(KINDS[kind].what for kind in fatal)
        return WorkbenchError(
            what,
            got="\n" + "\n".join(listed(fatal, 3)),
            where=self.file,
            fix=f"python -m dfkd_lib.datasets check {self.folder} shows all of it, and with --repair OUT "
            "writes a copy without it",
        )


def listed(groups: dict[str, list[Fault]], most: int) -> list[str]:
    """Lines on grouped faults: a heading for each kind with its count and fix, then its first `most` (0: all)."""
    lines = []
    for kind, found in groups.items():
        lines.append(
            f"  {'FATAL' if KINDS[kind].fatal else 'warning'}: {KINDS[kind].what}, {len(found)} x "
            f"(fix: {KINDS[kind].fix})"
        )
        for fault in found[: most or None]:
            image = (
                f", image {fault.image}" if fault.image and fault.image not in fault.place else ""
            )
            lines.append(
                f"    {fault.place}{image}: expected {fault.expected}, found {fault.found}"
            )
        if most and len(found) > most:
            lines.append(f"    and {len(found) - most} more")
    return lines
