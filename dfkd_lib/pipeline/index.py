"""The index of a run: headline results with size and seeds, the notebooks, the papers' figures beside ours."""

from collections.abc import Mapping
from pathlib import Path

from dfkd_lib.pipeline.html import entries, fallbacks_of, read_metrics, write_page
from dfkd_lib.reporting.notebooks import COLUMNS, Notebook, headlines
from dfkd_lib.reporting.results import seeds_text


def notebook_entry(out: Path, name: str, title: str, result: dict) -> dict:
    """Everything the index shows of one notebook; of figures and tables those with a place in a paper."""
    saved = read_metrics(out, name) if result["status"] != "skipped" else {}
    cached = [artifact.get("cached", False) for artifact in saved.get("artifacts", [])]
    files = {kind: f"{name}.{kind}" for kind in ("html", "ipynb")}
    return {
        "error": None,
        "earlier": False,
        "unchanged": False,
        "name": name,
        "title": title if title == name else f"{name[:2]} · {title}",
        **result,
        "figures": [entry for _, entry in entries(out, saved, f"{name[:2]}.") if entry["paper"]],
        "made": cached.count(False),
        "found": cached.count(True),
        "seeds": seeds_text(result),
        **{kind: file if (out / file).exists() else None for kind, file in files.items()},
    }


def write_index(out: Path, results: dict, about: Mapping[str, Notebook]) -> Path:
    """Write `index.html` of a run folder from its results; returns the path.

    Args:
        results: what results.json holds.
        about: what the notebooks are about, by name.
    """
    provenance = results["provenance"]
    notebooks = [
        notebook_entry(out, name, about.get(name, Notebook(name, name)).title, result)
        for name, result in results["notebooks"].items()
    ]
    statuses = ["from earlier runs" if n["earlier"] else n["status"] for n in notebooks]
    found = headlines(results["notebooks"], about)
    beside = [tuple(row[column] for column in COLUMNS) for row in found if row["paper"]]
    sections = [("notebooks", "Notebooks"), *([("papers", "Beside the papers")] if beside else [])]
    sections += [(n["name"], n["title"]) for n in notebooks]
    return write_page(
        out / "index.html",
        "index.html.j2",
        fallbacks_of(results["notebooks"]),
        title="Data-free knowledge distillation of vision transformers",
        profile=results["profile"],
        started=provenance["started"],
        seconds=provenance["seconds"],
        counts=[(status, statuses.count(status)) for status in dict.fromkeys(statuses)],
        notebooks=notebooks,
        headlines=found,
        beside=beside,
        contents=[(2, anchor, title) for anchor, title in sections],
        command=provenance["command"],
        provenance=provenance,
    )
