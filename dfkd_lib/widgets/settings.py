"""The controls of the ablation widget, read from the configuration, and the cells that they ask for."""

from collections.abc import Sequence
from functools import lru_cache

import torch

from dfkd_lib import attention, models
from dfkd_lib.ablation import BASE, DEFAULTS, Cell, make_cell, resolved
from dfkd_lib.core import WorkbenchError, one_of
from dfkd_lib.presets import PRESETS, load, overrides_text

SETTINGS = BASE.settings()
# The field that gives the number of images, by source.
COUNTS = {
    source: {"real": "real_images", "inversion": "inversion_images"}.get(
        source.split()[0], "synthetic_images"
    )
    for source in SETTINGS["source"].choices
}
# What the widget offers, in its order, by heading; every other setting keeps the notebook's value.
OFFERED = {
    "losses": [name for name in SETTINGS if name.startswith("weights.")],
    "student": [
        *("student.model", "source", *dict.fromkeys(COUNTS.values()), "student.images"),
        *("student.epochs", "student.lr", "student.augmentation", "student.mix", "seeds"),
    ],
}
# Short enough for a control, where the configuration's own is not clear by itself.
LABELS = {
    **dict.fromkeys(COUNTS.values(), "images"),
    "source": "images from",
    "student.images": "sample (0: all)",
    "student.lr": "learning rate",
    "student.model": "student",
}


def control(name: str, group: str, value: object, choices: Sequence[tuple[str, str]]) -> dict:
    """What the front end draws a control from.

    Args:
        value: the notebook's own. choices: (value, text) of each, for a list; (): those of the setting, if it has any.

    Returns:
        name, label, kind (int, float, bool or str), group, help, choices, only (sources for which it counts; []: all), and
        of numbers the slider's low, reach and step; the box beside it takes any value, and the configuration checks it.
    """
    setting = SETTINGS[name]
    made = {
        "name": name,
        "label": LABELS.get(name, setting.label),
        "kind": "str" if setting.kind is tuple else setting.kind.__name__,
        "group": group,
        "help": f"{setting.help} ({setting.rule})" if setting.rule else setting.help,
        "choices": list(choices or ((c, c) for c in setting.choices)),
        "only": [source for source, count in COUNTS.items() if count == name],
    }
    if setting.kind in (int, float):
        # Where a range is open or far wider than what is in use, the slider reaches four times the notebook's value.
        wide = 4 * max(float(value), float(setting.default)) or 4.0
        reach = wide if setting.high is None else min(setting.high, wide)
        step = max(1, round(reach / 100)) if setting.kind is int else reach / 80
        made |= {"low": setting.low or 0, "reach": reach, "step": step}
    return made


def without_idle(settings: dict) -> dict:
    """Every setting of a cell but the numbers of images that its source does not use."""
    shown = {**DEFAULTS, **settings}
    idle = set(COUNTS.values()) - {COUNTS.get(shown["source"])}
    return {name: value for name, value in shown.items() if name not in idle}


class Settings:
    """A notebook's settings, and others beside them.

    Args:
        base: the notebook's own: settings of `AblationConfig`, and "seeds" if it has them.

    Raises:
        WorkbenchError: on a name that is none of these, or an impossible value.
    """

    def __init__(self, base: dict):
        base = dict(base)
        self.seeds = str(base.pop("seeds", "0"))
        self.base = {**DEFAULTS, **make_cell("", resolved(base), 0).settings}
        choices = {"student.model": self._students()}
        self.by_name = {
            name: control(name, group, self.base.get(name), choices.get(name, ()))
            for group, names in OFFERED.items()
            for name in names
        }

    def _students(self) -> list[tuple[str, str]]:
        """The transformers that take the images, and the notebook's own model, smallest first."""
        sizes = student_sizes(make_cell("", self.base, 0).study(None).test_set.shape)
        names = {*sizes, self.base["student.model"]}
        order = sorted(names, key=lambda name: (sizes.get(name, 0), name))
        return [(n, f"{n}  ({_count(sizes[n])})" if n in sizes else n) for n in order]

    def values(self, settings: dict | None = None, seeds: str = "") -> dict:
        """What the controls show for a cell's settings; the notebook's own by default."""
        shown = {**self.base, **without_idle(settings or self.base), "seeds": seeds or self.seeds}
        return {name: shown[name] for name in self.by_name}

    def read(self, values: dict) -> tuple[dict, list[int]]:
        """(every setting, seeds) of what the controls show.

        Raises:
            WorkbenchError: on a bad value, `where` naming its control if one alone is to blame.
        """
        unknown = set(values) - set(self.by_name)
        if unknown:
            raise WorkbenchError(
                "no such control",
                expected=", ".join(self.by_name),
                got=", ".join(sorted(unknown)),
                fix="reload the page",
            )
        chosen = {**self.values(), **values}
        for name, value in chosen.items():
            self._check(name, value)
        seeds = list(BASE.replace(seeds=chosen.pop("seeds")).seeds)
        settings = {**self.base, **without_idle({**self.base, **chosen})}
        # Refuses what cannot be together: all λ 0, a schedule that is none.
        return {**settings, **make_cell("", settings, 0).settings}, seeds

    def _check(self, name: str, value: object) -> None:
        """Refuse a value that is wrong by itself, naming its control."""
        known = [one for one, _ in self.by_name[name]["choices"]]
        try:
            if known:
                one_of(self.by_name[name]["label"], value, known)
            BASE.override({name: value})
        except WorkbenchError as error:
            error.where = name
            raise

    def cells(self, values: dict, named: dict[str, str] | None = None) -> list[Cell]:
        """The cells, one a seed, that the controls ask for; WorkbenchError as `read`.

        Args:
            named: {identity of settings: the name that they have already}.
        """
        settings, seeds = self.read(values)
        name = (named or {}).get(self.identity(settings)) or self.name(settings)
        return [make_cell(name, settings, seed) for seed in seeds]

    def identity(self, settings: dict) -> str:
        """A text that is equal for equal settings, defaults given or not."""
        return repr(sorted(without_idle(settings).items()))

    def differences(self, settings: dict) -> str:
        """In words where settings differ from the notebook's: "KD 0, epochs 3"; "" if nowhere."""
        shown = without_idle(settings)
        order = dict.fromkeys([*self.by_name, *shown])
        differing = (n for n in order if n in shown and shown[n] != self.base.get(n))
        return ", ".join(self._words(name, shown[name]) for name in differing)

    def name(self, settings: dict) -> str:
        """The name of a setting that has no other: what differs."""
        return self.differences(settings) or "as the notebook"

    def _words(self, name: str, value: object) -> str:
        if name == "source":
            return "real images" if value == "real" else f"images of {value}"
        label = self.by_name[name]["label"] if name in self.by_name else name
        if isinstance(value, float):
            value = f"{value:g}"
        elif isinstance(value, int) and value >= 10_000:
            value = f"{value:,}"
        return f"{label.partition(' (')[0]} {value}"

    def parameters(self, settings: dict, seeds: Sequence[int]) -> dict:
        """Parameters of notebook 35 that make exactly these settings its own, whatever its preset."""
        shown = {**self.base, **without_idle(settings)}
        shown = {name: shown[name] for name in DEFAULTS if name in shown}  # not a step
        # A preset may change what here is as by default.
        named = {n for preset in PRESETS for n in load("ablation", preset).differences(BASE)}
        named |= {n for n in shown if shown[n] != DEFAULTS[n]}
        overrides = {n: shown[n] for n in shown if n in named and n != "source"}
        return {
            "source": shown["source"],
            "seeds": ",".join(map(str, seeds)),
            "overrides": overrides_text(overrides),
        }


@lru_cache
def student_sizes(shape: tuple[int, int, int]) -> dict[str, int]:
    """{name: parameters} of the transformers that take images (C, S, S) and have a readable class token."""
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
