"""Two runs beside each other: one page of what differs between them."""

import math
from collections.abc import Iterator
from pathlib import Path

from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import resolve
from dfkd_lib.metrics.intervals import FEWEST, interval_text, paired_difference
from dfkd_lib.pipeline.html import duration, entries, read_metrics, write_page
from dfkd_lib.pipeline.parameters import OWN
from dfkd_lib.reporting.results import commit_text, metrics_of, read_results, value_text


def run_rows(a: dict, b: dict) -> list[tuple[str, str, str]]:
    """Profile, code, time, machine and command of both runs, and the versions that differ."""

    def about(results: dict) -> dict[str, str]:
        known = results["provenance"]
        machine = known.get("hardware", {})
        return {
            "profile": str(results["profile"]),
            "code": commit_text(known.get("git", {})),
            "started": str(known.get("started", "")),
            "time": duration(known.get("seconds")),
            "machine": ", ".join(str(machine[k]) for k in ("cpu", "cores", "gpu") if k in machine),
            "command": str(known.get("command", "")),
            "notebooks": ", ".join(name[:2] for name in results["notebooks"]),
            **{f"version of {k}": str(v) for k, v in known.get("versions", {}).items()},
        }

    first, second = about(a), about(b)
    return [
        (name, first.get(name, "–"), second.get(name, "–"))
        for name in first | second
        if not name.startswith("version") or first.get(name) != second.get(name)
    ]


def parameters_of(result: dict) -> dict[str, object]:
    """{name: value} of a notebook's parameters and typed settings, without the pipeline's own."""
    settings = {name: entry[0] for name, entry in result.get("settings", {}).items()}
    return {k: v for k, v in (result.get("parameters", {}) | settings).items() if k not in OWN}


def metric_row(a: list[float] | str | None, b: list[float] | str | None) -> tuple[str, ...]:
    """(A, B, B − A, p) of one metric as text; the interval and p where it is paired over three seeds or more."""
    texts = [
        "–" if one is None else one if isinstance(one, str) else interval_text(one, ".4g")
        for one in (a, b)
    ]
    if not isinstance(a, list) or not isinstance(b, list):
        return *texts, "", ""
    if len(a) == len(b) >= FEWEST:
        gap = paired_difference(a, b)
        p = f"{gap['p']:.2g}" if math.isfinite(gap["p"]) else ""
        return *texts, "{difference:+.3g} [{low:+.3g}, {high:+.3g}]".format(**gap), p
    return *texts, f"{sum(b) / len(b) - sum(a) / len(a):+.3g}", ""


def artifact_rows(a: list[dict], b: list[dict]) -> list[tuple[str, ...]]:
    """(stage, shared, A alone, B alone, functions that differ) of every stage whose artifacts differ."""
    keys = [{artifact["key"]: artifact for artifact in side} for side in (a, b)]
    rows = []
    for stage in dict.fromkeys(one.get("stage", one["key"].rpartition("-")[0]) for one in [*a, *b]):
        first, second = (
            {k: one for k, one in side.items() if k.rpartition("-")[0] == stage} for side in keys
        )
        if first.keys() != second.keys():
            differ = {name for name, _ in {*functions_of(first)} ^ {*functions_of(second)}}
            alone = [first.keys() - second.keys(), second.keys() - first.keys()]
            listed = (", ".join(sorted(one)) for one in (*alone, differ))
            rows.append((stage, str(len(first.keys() & second.keys())), *listed))
    return rows


def functions_of(artifacts: dict[str, dict]) -> Iterator[tuple[str, str]]:
    """(name, digest) of every function in the artifacts' record of their code."""
    for artifact in artifacts.values():
        code = artifact.get("code")
        table = code.get("functions", code) if isinstance(code, dict) else {}
        yield from ((str(name), str(digest)) for name, digest in table.items())


def figure_pairs(folders: list[Path], saved: list[dict]) -> list[list[dict | None]]:
    """The figures of a notebook that either run has, side by side."""
    found = []
    for folder, one in zip(folders, saved, strict=True):
        placed = (entry for kind, entry in entries(folder, one) if kind == "figures")
        found.append({entry["name"]: {**entry, "links": []} for entry in placed})
    return [[one.get(name) for one in found] for name in found[0] | found[1]]


def write_comparison(a: str | Path, b: str | Path, out: str | Path | None, command: str) -> Path:
    """Write one page of what differs between two run folders; returns its path.

    Args:
        a, b: the folders. out: where compare.html goes; None: into b. command: that makes the page again.

    Raises:
        WorkbenchError: if a folder is not that of a run, or the page cannot be written.
    """
    folders = [resolve(a), resolve(b)]
    results = [read_results(folder) for folder in folders]
    parameters, artifacts, metrics, figures, equal = [], [], [], [], 0
    for name in sorted(results[0]["notebooks"].keys() & results[1]["notebooks"].keys()):
        both = [one["notebooks"][name] for one in results]
        saved = [read_metrics(folder, name) for folder in folders]
        first, second = map(parameters_of, both)
        parameters += [
            (name, key, value_text(first.get(key, "–")), value_text(second.get(key, "–")))
            for key in first | second
            if first.get(key) != second.get(key)
        ]
        records = [
            s.get("artifacts") or r.get("artifacts", []) for r, s in zip(both, saved, strict=True)
        ]
        artifacts += [(name, *row) for row in artifact_rows(*records)]
        first, second = (dict(metrics_of(one.get("metrics", {}))) for one in both)
        for key in first | second:
            if first.get(key) == second.get(key):
                equal += 1
            else:
                metrics.append((name, key, *metric_row(first.get(key), second.get(key))))
        if pairs := figure_pairs(folders, saved):
            figures.append((name, pairs))
    sections = ("The runs", "Parameters", "Code and artifacts", "Metrics")
    contents = [
        (2, title.split()[-1 if title == "The runs" else 0].lower(), title) for title in sections
    ]
    folder = folders[1] if out is None else resolve(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_page(
            folder / "compare.html",
            "compare.html.j2",
            title="Two runs compared",
            names=[str(folder) for folder in folders],
            runs=run_rows(*results),
            parameters=parameters,
            artifacts=artifacts,
            metrics=metrics,
            equal=equal,
            figures=figures,
            contents=contents + [(2, f"f-{name}", f"Figures of {name}") for name, _ in figures],
            command=command,
            provenance=[],
        )
    except OSError as error:
        raise WorkbenchError(
            "the page cannot be written", got=error, where=folder, fix="give another --out"
        ) from None
