"""`reports/published/README.md`: every measured figure, from the results files that lie beside it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dfkd_lib.core import REPOSITORY, WorkbenchError
from dfkd_lib.core.files import replacing
from dfkd_lib.reporting.notebooks import COLUMNS, headlines, read_notebooks
from dfkd_lib.reporting.results import markdown_table, metrics_of, repeats_text

FOLDER = REPOSITORY / "reports" / "published"
HEAD = """\
# Published results

Written by `dfkd published` from the results files in this folder; a test fails when it is stale. ± is the 95 % interval
over seeds; with fewer than three seeds their values stand alone. Results of a tree with uncommitted changes, or of several
commits, cannot be made again from one commit: they are refused.
"""
NO_MEASURES = {"history", "settings", "ledger", "made"}  # in files of students


@dataclass(frozen=True)
class Published:
    """One results file: its path below the folder of published results, and what it holds."""

    path: Path
    content: dict

    @property
    def provenance(self) -> dict:
        return self.content["provenance"]

    @property
    def commit(self) -> str:
        """The commit in 12 digits, "" where the results cannot be made again from one commit."""
        git = self.provenance.get("git", self.provenance)
        commit = str(git.get("commit"))
        several = self.content.get("mixed_commits") or git.get("dirty") or commit.endswith("+")
        return "" if several else commit[:12]

    @property
    def notebooks(self) -> dict[str, dict]:
        return self.content.get("notebooks", {})

    @property
    def students(self) -> dict[str, dict]:
        """{name: result} of students that were trained outside a notebook."""
        return self.content.get("results") or self.content.get("makers") or {}

    def measures(self) -> Iterator[tuple[str, str, str]]:
        """(where, metric, text) of all that was measured."""
        found = {name: result.get("metrics", {}) for name, result in self.notebooks.items()}
        for name, result in self.students.items():
            found[name] = {key: one for key, one in result.items() if key not in NO_MEASURES}
        for name, metrics in found.items():
            for metric, values in metrics_of(metrics):
                text = repeats_text(values)
                yield name, metric, text


def read_published(folder: Path = FOLDER) -> list[Published]:
    """The results files below a folder, in the order of their paths.

    Raises:
        WorkbenchError: if one is damaged, or cannot be made again from one commit.
    """
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
        if not isinstance(content, dict) or "provenance" not in content:
            continue
        file = Published(path.relative_to(folder), content)
        if not file.commit:
            raise WorkbenchError(
                "published results cannot be made again from one commit",
                expected="a commit without changes, the same for all notebooks",
                where=path,
                fix="run again from a clean checkout, or do not publish them",
            )
        if any("fallback" in one.get("metrics", {}) for one in file.notebooks.values()):
            raise WorkbenchError(
                "published results are of something else than was asked for",
                expected="no notebook with a fallback",
                where=path,
                fix="run again without fallback, or do not publish them",
            )
        found.append(file)
    return found


def headline_rows(files: list[Published]) -> Iterator[tuple[str, ...]]:
    """(result, ours, n, size, paper, where, run) of the headlines of all files."""
    about = read_notebooks()
    for file in files:
        run = f"[{file.path.parent}]({file.path.as_posix()}), {file.commit[:7]}"
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
    made = str(known.get("started") or known.get("date") or "")[:16]
    torch = known.get("versions", known).get("torch")
    about = (f"Commit {file.commit}", made, f"{machine.get('cpu')}, {machine.get('cores')} cores")
    yield f"\n## {file.path.as_posix()}\n"
    yield "; ".join(filter(None, (*about, f"torch {torch}"))) + "."
    if command := known.get("command") or file.content.get("command"):
        yield f"\n    {command}\n"
    if note := file.content.get("note") or file.content.get("what"):
        yield f"{note}\n"
    if rows := list(file.measures()):
        yield f"\n<details><summary>{len(rows)} metrics</summary>\n"
        yield markdown_table(("", "metric", "value"), rows)
        yield "\n</details>"
    if "rows" in file.content:
        beside = file.path.with_suffix(".md")
        yield f"\nRows in [{beside.name}]({beside.as_posix()})."


def readme(folder: Path = FOLDER) -> str:
    """The README of published results."""
    files = read_published(folder)
    head = ("result", "measured", "n", "size", "paper", "where", "run")
    parts = [HEAD, "## Headlines\n", markdown_table(head, headline_rows(files))]
    for file in files:
        parts += section(file)
    shown = [p for p in sorted(folder.rglob("*")) if p.suffix in (".svg", ".png", ".csv")]
    shown = [path.relative_to(folder).as_posix() for path in shown]
    parts += ["\n## Figures and tables\n", ", ".join(f"[{path}]({path})" for path in shown)]
    return "\n".join(parts) + "\n"


def write_published(folder: Path = FOLDER) -> Path:
    """Write the README of published results; returns its path."""
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(readme(folder), encoding="utf-8")
    return folder / "README.md"
