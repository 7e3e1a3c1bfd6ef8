"""What the ablation widget lets one set: its controls, what is said of settings in words, the cells they ask for."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from dfkd_lib import attention, models
from dfkd_lib.ablation import SOURCES, Cell, make_cell
from dfkd_lib.ablation.grid import BASE, DEFAULTS, resolve
from dfkd_lib.core import WorkbenchError

# The field that says how many images there are, by source.
COUNTS = {"real": "real_images"} | {
    name: "inversion_images" if name.startswith("inversion") else "synthetic_images"
    for name in SOURCES
    if name != "real"
}


@dataclass(frozen=True)
class Control:
    """One control of the widget.

    Args:
        name: a field of `ClassificationConfig`, "source" or "seeds". label: short, for the eye and for names of rows.
        kind: "number", "whole", "choice" or "text". group: heading it stands under. help: what it means.
        low, high, step: of the slider; the number box beside it takes any value from `low` on, or above it if `open`.
        log: the slider moves by factors. choices: {value: what is shown}. only: sources for which it counts; (): all.
    """

    name: str
    label: str
    kind: str
    group: str
    help: str = ""
    low: float = 0.0
    high: float = 4.0
    step: float = 0.05
    open: bool = False
    log: bool = False
    choices: dict | None = None
    only: tuple = ()

    def read(self, value) -> object:
        """The value as the recipe wants it; WorkbenchError, with `where` this control's name, if it is none."""
        if self.kind in ("choice", "text"):
            if (
                not isinstance(value, str)
                or self.kind == "choice"
                and value not in (self.choices or {})
            ):
                near = difflib.get_close_matches(str(value), self.choices or {}, n=1)
                raise WorkbenchError(
                    f"no such {self.label}",
                    expected=", ".join(self.choices or {}) or "text",
                    got=value,
                    where=self.name,
                    fix=f"did you mean {near[0]}?" if near else "choose one of the expected",
                )
            return value
        number = (
            value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        )
        fits = math.isfinite(number) and (number > self.low if self.open else number >= self.low)
        if not fits or self.kind == "whole" and number != int(number):
            raise WorkbenchError(
                f"{self.label} cannot be that",
                where=self.name,
                got="nothing" if value is None else value,
                expected=f"a {'whole ' if self.kind == 'whole' else ''}number "
                f"{'above' if self.open else 'from'} {self.low:g}{'' if self.open else ' on'}",
                fix="set the marked control",
            )
        return int(number) if self.kind == "whole" else float(number)


WEIGHTS = {
    "weights.kd": ("KD", "λ of the distillation loss: the teacher's softened outputs (A eq. 8)"),
    "weights.ce": ("CE", "λ of the cross entropy to the labels (A eq. 9)"),
    "weights.patch": (
        "patch",
        "λ of the patch probe loss: look where the teacher looks (A eq. 10)",
    ),
    "weights.hard": ("hard", "λ of the teacher's hard label on the distillation token"),
    "weights.soft": ("soft", "λ of the teacher's softened outputs on the distillation token"),
    "weights.early": ("early", "λ of aligned early features of a CNN teacher"),
}


def controls(base: dict, students: dict[str, str]) -> list[Control]:
    """The controls for the fields that the recipe has; sliders reach at least to the notebook's own values.

    Args:
        base: every field of `ClassificationConfig` and "source". students: {model name: what is shown}.
    """
    found = [
        Control(name, label, "number", "losses", text, high=max(4.0, base.get(name, 0.0)))
        for name, (label, text) in WEIGHTS.items()
    ]
    found += [
        Control(
            "weights.temperature",
            "weights.temperature",
            "number",
            "losses",
            "T of the softened outputs (A eq. 8)",
            0.0,
            max(10.0, base["weights.temperature"]),
            0.25,
            open=True,
        ),
        Control(
            "weights.schedules",
            "schedule",
            "text",
            "losses",
            "factors on the weights over training, as in "
            "kd: 1@0 0@1; patch: 0@0 1@0.5 (value@share of training)",
        ),
        Control(
            "student.model", "student", "choice", "student", "its architecture", choices=students
        ),
        Control(
            "source",
            "images from",
            "choice",
            "student",
            "what it is trained on",
            choices={name: "real images" if name == "real" else name for name in SOURCES},
        ),
        *(
            Control(
                name,
                "images",
                "whole",
                "student",
                f"{what} to train on",
                10,
                max(60_000, base[name]),
                log=True,
                only=tuple(source for source, counts in COUNTS.items() if counts == name),
            )
            for name, what in (
                ("real_images", "real images"),
                ("synthetic_images", "made images"),
                ("inversion_images", "inverted images"),
            )
        ),
        Control(
            "student.images",
            "sample (0: all)",
            "whole",
            "student",
            "a random sample of so many of them; 0: all",
            0,
            max(30_000, base.get("student.images", 0)),
            500,
        ),
        Control(
            "student.epochs",
            "epochs",
            "whole",
            "student",
            "passes over its images",
            1,
            max(20, 2 * base["student.epochs"]),
            1,
        ),
        Control(
            "student.lr",
            "learning rate",
            "number",
            "student",
            "AdamW's, at its peak",
            0.0,
            0.1,
            open=True,
            log=True,
        ),
        *(
            Control(
                f"student.{name}",
                name,
                "choice",
                "student",
                text,
                choices={value: value for value in BASE.settings()[f"student.{name}"].choices},
            )
            for name, text in (
                ("augmentation", "what is done to each image"),
                ("mix", "what is done to pairs of images"),
            )
        ),
        Control("seeds", "seeds", "text", "student", "one run for each, as in 0,1,2"),
    ]
    return [control for control in found if control.name in base or control.name == "seeds"]


def full(settings: dict) -> dict:
    """Every field of `ClassificationConfig` and "source": those named by `settings`, defaults for the others."""
    return {**DEFAULTS, **settings}


def counted(settings: dict) -> dict:
    """As `full`, without the numbers of images that its source does not ask for: they make no other experiment."""
    shown = full(settings)
    off = set(COUNTS.values()) - {COUNTS.get(shown["source"])}
    return {name: value for name, value in shown.items() if name not in off}


class Settings:
    """A notebook's settings, and others beside them.

    Args:
        base: the notebook's own: fields of `ClassificationConfig`, "source", and "seeds" if it has them.
        students: names of models to choose from; default: the transformers that take the images, smallest first.

    Raises:
        WorkbenchError: on a name that is none of these.
    """

    def __init__(self, base: dict, students: Sequence[str] | None = None):
        base = {name if name == "seeds" else resolve(name): value for name, value in base.items()}
        self.names, self.seeds = tuple(base), str(base.get("seeds", "0"))
        self.base = full(make_cell("", {k: v for k, v in base.items() if k != "seeds"}, 0).settings)
        self.controls = controls(self.base, self._students(students))
        self.by_name = {control.name: control for control in self.controls}

    def _students(self, names: Sequence[str] | None) -> dict[str, str]:
        shape = make_cell("", self.base, 0).study(None).test_set.shape
        sizes = student_sizes(shape)
        chosen = {
            self.base["student.model"]: None,
            **dict.fromkeys(sizes if names is None else names),
        }
        counts = {name: sizes.get(name) for name in chosen}
        order = sorted(chosen, key=lambda name: counts[name] or 0) if names is None else chosen
        return {
            name: f"{name}  ({_count(counts[name])})" if counts[name] else name for name in order
        }

    def values(self, settings: dict | None = None, seeds: str = "") -> dict:
        """What the controls show for a cell's settings; the notebook's own by default."""
        shown = {**self.base, **counted(settings or self.base)}
        return {
            name: (seeds or self.seeds) if name == "seeds" else shown[name] for name in self.by_name
        }

    def read(self, values: dict) -> tuple[dict, list[int]]:
        """(settings in full, seeds) of what the controls say.

        Raises:
            WorkbenchError: on a bad value, `where` naming its control if one alone is to blame.
        """
        unknown = set(values) - set(self.by_name)
        if unknown:
            raise WorkbenchError(
                "no such control", expected=", ".join(self.by_name), got=", ".join(sorted(unknown))
            )
        given = {
            name: self.by_name[name].read(value)
            for name, value in {**self.values(), **values}.items()
        }
        seeds = _seeds(given.pop("seeds"))
        settings = {**self.base, **counted({**self.base, **given})}
        make_cell("", settings, 0)  # refuses what cannot be: all λ 0, a schedule that is none
        return settings, seeds

    def cells(self, values: dict, named: dict[str, str] | None = None) -> list[Cell]:
        """The cells, one a seed, that the controls ask for; WorkbenchError as `read`.

        Args:
            named: {identity of settings: name of the row they have already}.
        """
        settings, seeds = self.read(values)
        name = (named or {}).get(self.identity(settings)) or self.name(settings)
        return [make_cell(name, settings, seed) for seed in seeds]

    def identity(self, settings: dict) -> str:
        """A text that is equal for equal settings, defaults given or not."""
        return repr(sorted(counted(settings).items()))

    def differences(self, settings: dict) -> str:
        """In words where settings differ from the notebook's: "KD 0, epochs 3"; "" if nowhere."""
        shown = counted(settings)
        order = [name for name in self.by_name if name in shown] + [
            name for name in shown if name not in self.by_name
        ]
        return ", ".join(
            _told(self.by_name.get(name), name, shown[name])
            for name in order
            if shown[name] != self.base.get(name)
        )

    def name(self, settings: dict) -> str:
        """A row's name where it has no other: what differs."""
        return self.differences(settings) or "as the notebook"

    def parameters(self, settings: dict, seeds: Sequence[int]) -> tuple[dict, list[str]]:
        """(parameters for the notebook, settings it has no parameter for): only what the notebook knows."""
        shown = {**self.base, **counted(settings)}
        given = {
            name: ",".join(map(str, seeds)) if name == "seeds" else shown[name]
            for name in self.names
        }
        lost = [
            name
            for name, value in shown.items()
            if name not in self.names and value != self.base[name]
        ]
        return given, lost


def _seeds(text: str) -> list[int]:
    try:
        return list(BASE.replace(seeds=text).seeds)
    except WorkbenchError:
        raise WorkbenchError(
            "these are no seeds",
            expected="whole numbers from 0 on, comma-separated: 0,1,2",
            got=text or "nothing",
            where="seeds",
            fix="one run is made for each",
        ) from None


def _told(control: Control | None, name: str, value) -> str:
    if name == "source":
        return "real images" if value == "real" else f"images of {value}"
    large = isinstance(value, int) and value >= 10_000
    shown = f"{value:,}" if large else f"{value:g}" if isinstance(value, float) else value
    label = (
        "T"
        if name == "weights.temperature"
        else control.label.partition(" (")[0]
        if control
        else name.replace("_", " ").replace(".", " ")
    )
    return f"{label} {shown}"


@lru_cache
def student_sizes(shape: tuple[int, int, int]) -> dict[str, int]:
    """{name: parameters} of the transformers that take images (C, S, S) and whose class token can be looked at."""
    found = {}
    for name in models.model_names():
        try:
            with torch.device("meta"):  # sizes without weights
                model = models.create_model(name, img_size=shape[1], in_chans=shape[0])
            attention.attention_sites(model)
        except WorkbenchError:
            continue
        found[name] = models.count_parameters(model)
    return found


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.3g} M" if parameters >= 1e6 else f"{parameters / 1e3:.3g} k"
