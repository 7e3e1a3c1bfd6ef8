"""`reports/published/README.md`: every measured figure, from the results files that lie beside it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dfkd_lib.core import REPOSITORY, WorkbenchError
from dfkd_lib.core.files import replacing
from dfkd_lib.metrics.intervals import interval_text
from dfkd_lib.reporting.notebooks import COLUMNS, headlines, read_notebooks
from dfkd_lib.reporting.results import commit_text, metrics_of

FOLDER = REPOSITORY / "reports" / "published"
HEAD = """\
# Published results

Written by `dfkd published` from the results files in this folder; a test fails when it is stale. ± is the 95 % interval
over seeds; with fewer than three seeds their values stand alone. Results of a tree with uncommitted changes, or of several
commits, cannot be made again from one commit: they are named as such, and are no headlines.
"""
NO_MEASURES = {"history", "settings", "ledger", "made"}  # in files of students


@dataclass(frozen=True)
class Published:
    """One results file.

    Args:
        path: below the folder of published results. content: what it holds.
    """

    path: Path
    content: dict

    @property
    def provenance(self) -> dict:
        return self.content["provenance"]

    @property
    def git(self) -> dict:
        """{commit, dirty}, in whichever of the two ways the file has it."""
        known = self.provenance.get("git", self.provenance)
        commit = str(known.get("commit"))
        dirty = known.get("dirty") or commit.endswith("+")
        return {"commit": commit.rstrip("+")[:12], "dirty": bool(dirty)}

    @property
    def doubt(self) -> str:
        """Why the results cannot be made again from one commit; empty if they can."""
        if self.git["dirty"]:
            return "uncommitted changes"
        return "several commits" if self.content.get("mixed_commits") else ""

    @property
    def started(self) -> str:
        return str(self.provenance.get("started") or self.provenance.get("date") or "")

    @property
    def notebooks(self) -> dict[str, dict]:
        return self.content.get("notebooks", {})

    @property
    def students(self) -> dict[str, dict]:
        """{name: result} of students that were trained outside a notebook."""
        return self.content.get("results") or self.content.get("makers") or {}

    def measures(self) -> Iterator[tuple[str, str, list[float] | str]]:
        """(where, metric, values or text) of all that was measured."""
        found = {name: result.get("metrics", {}) for name, result in self.notebooks.items()}
        for name, result in self.students.items():
            found[name] = {key: one for key, one in result.items() if key not in NO_MEASURES}
        for name, metrics in found.items():
            yield from ((name, *pair) for pair in metrics_of(metrics))


def read_published(folder: Path = FOLDER) -> list[Published]:
    """The results files below a folder, in the order of their paths."""
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WorkbenchError(
                "a published results file cannot be read",
                got=error,
                where=path,
                fix="restore it from the repository",
            ) from None
        if isinstance(content, dict) and "provenance" in content:
            found.append(Published(path.relative_to(folder), content))
    return found


def headline_rows(files: list[Published]) -> Iterator[tuple[str, ...]]:
    """(result, ours, n, size, paper, where, run) of results that can be made again from one commit."""
    about = read_notebooks()
    for file in files:
        if file.doubt:
            continue
        run = f"[{file.path.parent}]({file.path.as_posix()}), {file.git['commit'][:7]}"
        for row in headlines(file.notebooks, about):
            yield *(row[column] for column in COLUMNS), run
        for name, result in file.students.items():
            student = {**result, **result.get("student", {})}
            size = f"{student['parameters']:,} parameters, {student['train_images']:,} images"
            label = name if "student" in name else f"student, images of {name}"
            yield label, f"{100 * student['accuracy']:.2f} %", "1", size, "", "", run


def section(file: Published) -> Iterator[str]:
    """The part of the README about one file."""
    known = file.provenance
    machine = known.get("hardware", known)
    yield f"\n## {file.path.as_posix()}\n"
    about = [
        f"Commit {commit_text(file.git)}",
        file.started[:16],
        f"{machine.get('cpu')}, {machine.get('cores')} cores",
        f"torch {known.get('versions', known).get('torch')}",
    ]
    yield "; ".join(filter(None, about)) + "."
    if command := known.get("command") or file.content.get("command"):
        yield f"\n    {command}\n"
    if file.doubt:
        yield f"**Of {file.doubt}: cannot be made again from one commit.**\n"
    if note := file.content.get("note") or file.content.get("what"):
        yield f"{note}\n"
    rows = [
        (where, metric, values if isinstance(values, str) else interval_text(values, ".4g"))
        for where, metric, values in file.measures()
    ]
    if rows:
        yield f"\n<details><summary>{len(rows)} metrics</summary>\n"
        yield table(("", "metric", "value"), rows)
        yield "\n</details>"
    if "rows" in file.content:
        beside = file.path.with_suffix(".md")
        yield f"\nRows in [{beside.name}]({beside.as_posix()})."


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of GitHub's Markdown."""
    shown = [head, ("---",) * len(head), *rows]
    cells = ([str(cell).replace("|", "/").replace("\n", " ") for cell in row] for row in shown)
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def readme(folder: Path = FOLDER) -> str:
    """The README of published results."""
    files = read_published(folder)
    head = ("result", "measured", "n", "size", "paper", "where", "run")
    parts = [HEAD, "## Headlines\n", table(head, headline_rows(files))]
    for file in files:
        parts += section(file)
    shown = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in (".svg", ".png", ".csv")
    )
    parts += ["\n## Figures and tables\n", ", ".join(f"[{path}]({path})" for path in shown)]
    return "\n".join(parts) + "\n"


def write_published(folder: Path = FOLDER) -> Path:
    """Write the README of published results; returns its path."""
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(readme(folder), encoding="utf-8")
    return folder / "README.md"
