"""What a notebook is about, from its own metadata: its title, what it builds on, and its headline metrics.

"dfkd": {"title": "...", "needs": ["20_gan_fid"], "gpu": true, "trains": true, "headline": [{"metric": ..., "label": ...}]}
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from dfkd_lib.core import is_number, resolve
from dfkd_lib.metrics.intervals import interval_text
from dfkd_lib.reporting.papers import paper_number

FIELD = re.compile(r"{([\w. ]+)}")
COLUMNS = ("label", "value", "seeds", "size", "paper", "reference")  # of a headline


@dataclass(frozen=True)
class Headline:
    """A result to read first: where it is measured and how it is written.

    Args:
        metric: name in the notebook's metrics. label: what it is, names in it as in `size`.
        reference: its place in a paper that gives no number in papers.yaml.
        percent: whether the metric is a share of 1. size: what it was measured on, `{name}` standing for a parameter,
            a setting or a metric; a part between commas whose name is not known is left out.
    """

    metric: str
    label: str
    reference: str = ""
    percent: bool = False
    size: str = ""

    def text(self, value: object) -> str:
        """The measured value as a person reads it: a percentage where `percent` is true, a list as mean ± interval."""
        values = value if isinstance(value, list) else [value]
        if not values or not all(map(is_number, values)):
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
        label, size = (
            ", ".join(filter(None, (_filled(part, known) for part in text.split(", "))))
            for text in (self.label, self.size)
        )
        data = metrics.get("data") or settings.get("data.name") or "mnist"
        number, place = paper_number(data, self.metric)
        paper = "" if number is None else self.text(number)
        texts = (
            label,
            self.text(value),
            str(len(value)) if isinstance(value, list) else "1",
            re.sub(r"\b1 (\w+)s\b", r"1 \1", size),
            paper if self.percent or not paper else f"{paper} (Inception)",
            place or self.reference,
        )
        return dict(zip(COLUMNS, texts, strict=True))


@dataclass(frozen=True)
class Notebook:
    """What a notebook is about.

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
    about = metadata.get("dfkd")
    entries = about.get("headline") if isinstance(about, dict) else None
    known = {field.name for field in fields(Headline)}
    return tuple(
        Headline(**{k: v if k == "percent" else str(v) for k, v in entry.items() if k in known})
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and {"metric", "label"} <= set(entry)
    )


def read_notebook(path: Path) -> Notebook:
    """What the notebook at `path` is about; its name alone where the file cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        source = "".join(content["cells"][0]["source"])
    except (OSError, ValueError, LookupError):
        return Notebook(path.stem, path.stem)
    about = content["metadata"].get("dfkd", {})
    heading, _, rest = source.partition("\n")
    lead = re.sub(r"[*`]", "", rest.strip().partition("\n\n")[0].replace("\n", " "))
    return Notebook(
        path.stem,
        about.get("title") or heading.lstrip("# ") or path.stem,
        re.split(r"\. (?=[A-Z])", lead)[0].rstrip("."),
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
        rows of `Headline.row`, with the notebook's name.
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
