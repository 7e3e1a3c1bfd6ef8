"""What a notebook is about, from its own metadata: its title, what it builds on, and its headline metrics.

"dfkd": {"title": "...", "needs": ["20_gan_fid"], "gpu": true, "trains": true, "headline": [{"metric": ..., "label": ...}]}
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from dfkd_lib.core.artifacts import resolve
from dfkd_lib.metrics.intervals import interval_text

FIELD = re.compile(r"{([\w. ]+)}")


@dataclass(frozen=True)
class Headline:
    """A result to read first: where it is measured, how it is written, and what the paper gives for it.

    Args:
        metric: name in the notebook's metrics. label: what it is.
        paper: the paper's figure, measured on MNIST. reference: its place in the paper.
        percent: whether the metric is a share of 1. size: what it was measured on, `{name}` standing for a parameter,
            a setting or a metric; a part between commas whose name is not known is left out.
    """

    metric: str
    label: str
    paper: str = ""
    reference: str = ""
    percent: bool = False
    size: str = ""

    def text(self, value: object) -> str:
        """The measured value as a person reads it: a percentage where `percent` says so, a list as mean ± interval."""
        values = value if isinstance(value, list) else [value]
        if not values or any(
            isinstance(v, bool) or not isinstance(v, (int, float)) for v in values
        ):
            return str(value)
        if len(values) == 1 and isinstance(values[0], int) and not self.percent:
            return f"{values[0]:,}"
        times, spec, unit = (100, ".2f", " %") if self.percent else (1, ".3g", "")
        text = interval_text([times * v for v in values], spec, unit)
        return text.partition(" (n = ")[0]  # which stands beside it

    def row(self, result: Mapping) -> dict[str, str] | None:
        """{label, value, seeds, size, paper, reference}, all text, of a notebook's result; None if it was not measured.

        Args:
            result: {"metrics": {…}, "parameters": {…}, "settings": {name: [value, …]}}.
        """
        metrics = result.get("metrics", {})
        value = metrics.get(self.metric)
        if value is None:
            return None
        settings = {name: entry[0] for name, entry in result.get("settings", {}).items()}
        known = {**settings, **result.get("parameters", {}), **metrics}
        parts = (_filled(part, known) for part in self.size.split(", "))
        size = ", ".join(part for part in parts if part)
        return {
            "label": self.label,
            "value": self.text(value),
            "seeds": str(len(value)) if isinstance(value, list) else "1",
            "size": re.sub(r"\b1 (\w+)s\b", r"1 \1", size),
            # The papers' figures named here are MNIST's: beside other data they would mislead.
            "paper": self.paper if metrics.get("data", "mnist") == "mnist" else "",
            "reference": self.reference,
        }


@dataclass(frozen=True)
class Notebook:
    """What a notebook says of itself.

    Args:
        name: "20_gan_fid". title: its first heading. shows: the first sentence below it.
        needs: the notebooks it builds on; "*": all others. gpu: whether it wants one. trains: whether it trains anything.
        method: whose configuration it loads, as `presets.load` names it; "" for none.
        headline: its results to read first.
    """

    name: str
    title: str
    shows: str = ""
    needs: tuple[str, ...] = ()
    gpu: bool = True
    trains: bool = True
    method: str = ""
    headline: tuple[Headline, ...] = ()


def headlines_of(metadata: Mapping) -> tuple[Headline, ...]:
    """The headlines in a notebook's metadata; what is not of that form is left out."""
    known = {field.name: type(field.default) for field in fields(Headline)}
    found = []
    about = metadata.get("dfkd")
    entries = about.get("headline") if isinstance(about, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            continue
        texts = {k: v if k == "percent" else str(v) for k, v in entry.items() if k in known}
        if {"metric", "label"} <= set(texts):
            found.append(Headline(**texts))
    return tuple(found)


def read_notebook(path: Path) -> Notebook:
    """What the notebook at `path` is about; its name alone where the file cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        source = "".join(content["cells"][0]["source"])
    except (OSError, ValueError, LookupError):
        return Notebook(path.stem, path.stem)
    about = content["metadata"].get("dfkd", {})
    heading, _, rest = source.partition("\n")
    words = re.sub(r"[*`]", "", rest.strip().partition("\n\n")[0].replace("\n", " "))
    return Notebook(
        path.stem,
        about.get("title") or heading.lstrip("# ") or path.stem,
        re.split(r"\. (?=[A-Z])", words)[0].rstrip("."),
        tuple(about.get("needs", ())),
        about.get("gpu", True),
        about.get("trains", True),
        about.get("method", ""),
        headlines_of(content["metadata"]),
    )


def read_notebooks(folder: str | Path = "notebooks") -> dict[str, Notebook]:
    """The notebooks `NN_name.ipynb` of a folder, by name, in order."""
    paths = sorted(resolve(folder).glob("[0-9][0-9]_*.ipynb"))
    return {path.stem: read_notebook(path) for path in paths}


def headlines(results: Mapping[str, dict], about: Mapping[str, Notebook]) -> list[dict[str, str]]:
    """The results to read first, in the notebooks' order.

    Args:
        results: {notebook: {"metrics": …, "parameters": …}}, as in results.json.
        about: what the notebooks are about.

    Returns:
        rows {notebook, label, value, seeds, size, paper, reference}, all text.
    """
    return [
        {"notebook": name, **row}
        for name, notebook in about.items()
        if name in results
        for wanted in notebook.headline
        if (row := wanted.row(results[name]))
    ]


def notebook_table(folder: str | Path = "notebooks"):
    """The notebooks in order, with the title and the first sentence of each, as a table."""
    import pandas as pd

    rows = [(n.name, n.title, n.shows) for n in read_notebooks(folder).values()]
    return pd.DataFrame(rows, columns=["notebook", "title", "what it shows"])


def _filled(part: str, known: Mapping[str, object]) -> str:
    """A part of a size with its `{name}`s replaced, "" if one is not known: `{gan.lr}` is `gan.lr`, `gan_lr` or `lr`."""
    for name in FIELD.findall(part):
        names = (name, name.replace(".", "_"), name.rpartition(".")[2])
        value = next((known[one] for one in names if known.get(one) not in (None, "")), None)
        if value is None:
            return ""
        number = isinstance(value, int) and not isinstance(value, bool)
        part = part.replace(f"{{{name}}}", f"{value:,}" if number else str(value))
    return part
