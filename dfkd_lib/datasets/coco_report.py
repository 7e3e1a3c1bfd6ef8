"""`CocoReport`: what is wrong with a split of a COCO folder and where, fatal or not, and what the split holds."""

import csv
import shlex
from collections import Counter
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from dfkd_lib.core import WorkbenchError, plain

if TYPE_CHECKING:
    import pandas as pd

YOLO, ROBOFLOW = "data.yaml", "_annotations.coco.json"
# Kind of fault: its level, what it is, and its fix. Those that are FATAL stop training, warnings do not.
with Path(__file__).with_name("faults.csv").open(encoding="utf-8") as _table:
    KINDS = {row["kind"]: row for row in csv.DictReader(_table)}
LINES = ("line", "line_class", "share")  # of YOLO's label files
HOPELESS = {"file", "list", "category_id", "classes"}  # what `repair_coco` cannot mend
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
        return KINDS[self.kind]["level"] == "FATAL"

    @property
    def what(self) -> str:
        """What is wrong, in words."""
        return KINDS[self.kind]["what"]

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

    def __post_init__(self):
        """Find `file`, the annotations, YOLO's data.yaml among them, and `place`, the folder that names of images are relative
        to: train.json, train/; else as Roboflow, COCO itself and YOLO lay them out."""
        folder, split = self.folder, self.split
        own = folder / f"{split}.json", folder / split
        exported = [folder / name / ROBOFLOW for name in (split, *["valid"][: split == "val"])]
        named = [*folder.glob(f"annotations/instances_{escape(split)}*.json")]
        # Of one, not of two.
        year = named[0].stem.removeprefix("instances_") if len(named) == 1 else ""
        pictures = [place for place in (folder / year, folder / "images" / year) if place.is_dir()]
        found = [own, *((file, file.parent) for file in exported)]
        found += [(named[0], place) for place in pictures if year]
        found.append((folder / YOLO, folder))
        self.file, self.place = next((pair for pair in found if pair[0].is_file()), own)

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
            "; ".join(found[0].what for found in self.grouped().values() if found[0].fatal),
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
            if not warnings and not found[0].fatal:
                continue
            row = KINDS[kind]
            lines.append(f"  {row['level']}: {row['what']}, {len(found)} x (fix: {row['fix']})")
            lines += [f"    {fault}" for fault in found[: most or None]]
            if most and len(found) > most:
                lines.append(f"    and {len(found) - most} more")
        return lines
