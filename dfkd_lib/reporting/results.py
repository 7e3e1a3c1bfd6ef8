"""Results files read back: `results.json` of a run, and every metric in it as values or text."""

import html
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from dfkd_lib.core import WorkbenchError, is_number

# Metrics that are lists of something else than one value a seed: of settings, a value for each block, an interval's ends.
NOT_REPEATS = {"seeds", "shares", "accuracy_without_block", "attention_distance_pixels"}
NOT_REPEATS |= {"head_diversity_nats", "interval_of_the_test_sample"}


def read_results(folder: Path) -> dict:
    """What results.json of a run folder holds.

    Raises:
        WorkbenchError: if there is none, or it is damaged.
    """
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        notebooks = {name: dict(result) for name, result in results["notebooks"].items()}
        return {"profile": "", "provenance": {}, **results, "notebooks": notebooks}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WorkbenchError(
            "this is no folder of a run",
            expected="results.json, as `run` writes it",
            got=error,
            where=folder,
            fix="give the --out of a run",
        ) from None


def metrics_of(metrics: object, name: str = "") -> Iterator[tuple[str, list[float] | str]]:
    """(name, one value a repeat, or text) of every metric; names of nested ones are joined by dots."""
    if isinstance(metrics, dict):
        for key, inner in metrics.items():
            yield from metrics_of(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(metrics, list) and any(isinstance(one, (list, dict)) for one in metrics):
        for place, inner in enumerate(metrics):
            yield from metrics_of(inner, f"{name}[{place}]")
    else:
        values = metrics if isinstance(metrics, list) else [metrics]
        numbers = values and all(map(is_number, values)) and not NOT_REPEATS & {*name.split(".")}
        yield name, list(map(float, values)) if numbers else value_text(metrics)


def repeats_text(values: list[float] | str) -> str:
    """A metric that `metrics_of` gives, as text: counts in full, other numbers to four digits, with their interval."""
    if isinstance(values, str):
        return values
    if len({*values}) == 1 and values[0].is_integer():
        return f"{values[0]:,.0f}"
    from dfkd_lib.metrics.intervals import (
        interval_text,
    )  # torch: commands that need none begin here

    return interval_text(values, ".4g")


def value_text(x: object) -> str:
    """A metric as text, floats to four digits."""
    if isinstance(x, float):
        return f"{x:.4g}"
    if isinstance(x, dict):
        return ", ".join(f"{name}: {value_text(one)}" for name, one in x.items())
    return ", ".join(map(value_text, x)) if isinstance(x, (list, tuple)) else str(x)


def markdown_table(head: Iterable, rows: Iterable[Iterable]) -> str:
    """A Markdown table; names of data sets come from folders that anyone may have named."""
    lines = [[plain(cell) for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(cell: object) -> str:
    """A value as text that Markdown takes for nothing else."""
    text = f"{cell:,.4g}" if isinstance(cell, float) else str(cell)
    return html.escape(text, quote=False).replace("|", r"\|").replace("\n", " ")


def is_file_name(name: object) -> bool:
    """Whether this can name the files of a figure or table: never a path."""
    return isinstance(name, str) and bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name))


def seeds_text(result: dict) -> str:
    """The seeds of a notebook's result, of its settings where it has them: an empty parameter means the preset's."""
    parameters = result.get("parameters", {})
    (seeds, *_) = result.get("settings", {}).get("seeds", [None])
    if seeds is None:
        seeds = parameters.get("seeds", parameters.get("seed", ""))
    return ",".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)


def commit_text(git: dict) -> str:
    """The commit, and whether files differed from it."""
    changes = ", with uncommitted changes" if git.get("dirty") else ""
    return (git.get("commit") or "unknown") + changes
