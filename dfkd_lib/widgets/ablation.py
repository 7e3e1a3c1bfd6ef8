"""The ablation widget: set, run, watch, stop and compare students; its front end (ablation.js) draws what `Jobs` tells."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets

from dfkd_lib import ablation
from dfkd_lib.ablation import Cell, Outcome
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import ArtifactError, resolve
from dfkd_lib.widgets.rows import Row, compared, distinct, save_figures
from dfkd_lib.widgets.settings import Settings

HERE = Path(__file__).parent
WAITS, ENDED = ("queued", "running"), ("failed", "stopped")


class AblationLab(anywidget.AnyWidget):
    """Set the weights, run students, watch them, compare; made by `widgets.ablation_lab`.

    The training runs in a process of its own, which `jobs` tells of: nothing is lost with the page or this kernel.

    Traits: `values`, what the controls show; `checked`, ids of the rows that are; `said`, what the last button did; `error`,
    what was wrong with it, in full, or ""; `field`, the control to blame, or "".
    """

    _esm = HERE / "ablation.js"
    _css = HERE / "ablation.css"
    options = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    checked = traitlets.List().tag(sync=True)
    said = traitlets.Unicode("").tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    field = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        settings: Settings,
        store,
        jobs,
        shown: Sequence[Outcome],
        out_dir: str | Path,
        notebook: str,
    ):
        self.settings, self.store, self.jobs = settings, store, jobs
        self.out, self.notebook = resolve(out_dir), notebook
        self.shown = [
            Row.of(o.cell, o.artifact, "found" if o.cached else "run")
            for o in shown
            if o.artifact is not None
        ]
        self.lost = [o for o in shown if o.artifact is None]  # said, not dropped
        self._own: dict[str, Row] = {}  # by key, in the order in which they were first seen
        self._of_job: dict[
            str, str
        ] = {}  # id of a finished job -> key of its row, or "" if that is gone
        self._cells: dict[str, Cell] = {}  # of jobs, by id: to read one asks for its model
        self._overlaid: list[str] = []
        super().__init__()
        told = [
            {name: getattr(c, name) for name in c.__dataclass_fields__} for c in settings.controls
        ]
        self.options = {"controls": told, "start": settings.values(), "notebook": notebook}
        self.values = settings.values()
        self.on_msg(self._on_message)

    # -- what the front end asks -----------------------------------------------------------------------------------------

    def _on_message(self, _, content: dict, __) -> None:
        asked = content.get("do")
        acts = {
            "run": lambda: self._submit(content["values"], first=True),
            "queue": lambda: self._submit(content["values"], first=False),
            "stop": lambda: self._stop(content["job"]),
            "again": lambda: self._again(content["job"]),
            "clear": lambda: self._clear(content["job"]),
            "use": lambda: self._use(content["row"]),
            "reset": self._reset,
            "compare": self._compare,
            "alone": self._alone,
            "figure": self._save_figure,
            "parameters": lambda: self._save_parameters(content["values"]),
        }
        if asked in acts:
            if "values" in content:
                self.values = content[
                    "values"
                ]  # however wrong: a page that is loaded again shows them again
            self._try(acts[asked])
        try:
            state = self.state()
        except (
            Exception
        ) as error:  # a folder of jobs that cannot be read: said, and asked again at the next poll
            self.error = str(error) or repr(error)
            state = None
        same = asked == "poll" and state is not None and content.get("seen") == state["version"]
        self.send(
            {
                "kind": "same" if same or state is None else "state",
                "id": content.get("id", 0),
                **({} if same or state is None else state),
            }
        )

    def _try(self, act) -> None:
        """Act; what is wrong is said in place, nothing else has happened, and the widget stays usable."""
        self.said, self.error, self.field = "", "", ""
        try:
            self.said = act() or ""
        except Exception as error:  # whatever it is: a widget has no other place to say it
            self.error = str(error) or repr(error)
            self.field = (
                error.where if getattr(error, "where", None) in self.settings.by_name else ""
            )

    # -- run, queue, stop ------------------------------------------------------------------------------------------------

    def run(self, **values) -> None:
        """Press Run: before all others that wait; `values` as in `values`, the controls' own where not named."""
        self.values = {**self.values, **values}
        self._try(lambda: self._submit(self.values, first=True))

    def _submit(self, values: dict, first: bool) -> str:
        cells = self.settings.cells(values, self._names())
        jobs = self.jobs.all()
        waiting = {self._same(self._cell(job)): job for job in jobs if job["state"] in WAITS}
        known = {self._same(row.cell): row for row in self._rows()}
        found, asked, already = [], [], []
        for cell in cells:
            row = known.get(self._same(cell)) or self._find(cell)
            if row is not None:
                found.append(f"{row.cell.name}, seed {row.cell.seed}: {100 * row.accuracy:.2f} %")
            elif self._same(cell) in waiting:
                already.append((cell, waiting[self._same(cell)]))
            else:
                asked.append(cell)
        moved = [(cell, job) for cell, job in already if first and job["state"] == "queued"]
        for _, job in moved:
            self.jobs.stop(job["id"])
            self.jobs.forget(job["id"])
        wanted = [cell for cell in cells if cell in asked or cell in [c for c, _ in moved]]
        again = {self._same(cell) for cell in wanted}
        for job in jobs:
            if job["state"] in ENDED and self._same(self._cell(job)) in again:
                self.jobs.forget(job["id"])
        for cell in (
            reversed(wanted) if first else wanted
        ):  # each before all others: the first seed last
            self.jobs.submit(cell, first=first)
        told = [f"found, nothing was run: {'; '.join(found)}"] if found else []
        told += (
            [f"{_runs(asked)} {'next' if first else 'queued'}: {asked[0].name}"] if asked else []
        )
        told += [f"{_runs(moved)} moved to the front"] if moved else []
        told += (
            [f"{_runs(already)} already {already[0][1]['state']}"] if already and not moved else []
        )
        return ". ".join(told)

    def _find(self, cell: Cell) -> Row | None:
        artifact = ablation.find(self.store, cell)
        if artifact is None:
            return None
        return self._own.setdefault(artifact.key, Row.of(cell, artifact, "found"))

    def _same(self, cell: Cell) -> tuple[str, int]:
        return self.settings.identity(cell.settings), cell.seed

    def _names(self) -> dict[str, str]:
        """{identity of settings: the name that rows of the notebook have for them}."""
        return {
            self.settings.identity(row.cell.settings): row.cell.name for row in reversed(self.shown)
        }

    def _stop(self, job: str) -> str:
        self._job(job)  # or it is said that it is gone
        was = self.jobs.stop(job)
        if was not in WAITS:
            return f"it had {was} already"
        if was == "queued":
            self.jobs.forget(job)
            return "taken out of the queue"
        return "stopped; its finished epochs are kept, and the same settings go on from there"

    def _again(self, job: str) -> str:
        cell = Cell.of(self._job(job)["cell"])
        self.jobs.submit(cell, first=True)
        self.jobs.forget(job)
        return f"goes on next: {cell.name}, seed {cell.seed}"

    def _clear(self, job: str) -> str:
        self._job(job)
        self.jobs.forget(job)
        self._own.pop(self._of_job.pop(job, ""), None)
        return "cleared here; what was trained is kept"

    def _job(self, name: str) -> dict:
        found = next((job for job in self.jobs.all() if job["id"] == name), None)
        if found is None:
            raise WorkbenchError(
                "this job is no longer there", got=name, fix="another page may have cleared it"
            )
        return found

    # -- the table -------------------------------------------------------------------------------------------------------

    def _rows(self) -> list[Row]:
        """Every finished cell once: own ones, the latest first, then the notebook's."""
        shown = {row.id for row in self.shown}
        return [row for row in reversed(self._own.values()) if row.id not in shown] + self.shown

    def _take_in(self, jobs: list[dict]) -> None:
        """Rows of jobs that have finished since the last look, and none of those another page has cleared."""
        for job in jobs:
            if job["state"] != "finished" or job["id"] in self._of_job:
                continue
            try:
                artifact = self.store.find(job["key"]) if job["key"] else None
            except ArtifactError:  # damaged: as good as gone, and no reason to show nothing else
                artifact = None
            self._of_job[job["id"]] = artifact.key if artifact else ""
            if artifact:
                self._own.setdefault(
                    artifact.key, Row.of(self._cell(job), artifact, "run", job["id"])
                )
        for gone in set(self._of_job) - {job["id"] for job in jobs}:
            self._own.pop(self._of_job.pop(gone), None)

    def _cell(self, job: dict) -> Cell:
        """The cell of a job under the name it has here: another notebook's "as the notebook" is not this one's."""
        if job["id"] not in self._cells:
            saved = job["cell"]
            try:
                cell = Cell.of(saved)
                name = self._names().get(
                    self.settings.identity(cell.settings)
                ) or self.settings.name(cell.settings)
            except WorkbenchError:  # of a version with other settings: shown as it is, and refused if it is to run again
                cell, name = Cell(**saved), f"{saved['name']} (of another version)"
            self._cells[job["id"]] = Cell(name, cell.settings, cell.seed)
        return self._cells[job["id"]]

    def _chosen(self) -> list[Row]:
        """The checked rows, the notebook's first: what is compared is the new against the known."""
        return [row for row in [*self.shown, *self._own.values()] if row.id in self.checked]

    def state(self) -> dict:
        """Everything the front end shows, as JSON, with a `version` that changes if anything does."""
        self.jobs.wake()
        jobs = self.jobs.all()
        self._take_in(jobs)
        rows = self._rows()
        by_id = {row.id: row for row in rows}
        overlaid = [by_id[name] for name in self._overlaid if name in by_id]
        # What has just finished stays in the charts until something else runs.
        last = next((row for row in rows if row.job), None)
        curves = distinct(overlaid, self.settings) if overlaid else [last] if last else []
        state = _clean(
            {
                "jobs": [self._told(job) for job in jobs if job["state"] != "finished"]
                + self._gone(jobs),
                "rows": [row.told(self.settings) for row in rows],
                "curves": [row.curve() for row in curves],
                "overlaid": [row.id for row in overlaid],
                "compared": compared(overlaid, self.settings),
                "lost": [f"{o.cell.name}, seed {o.cell.seed}: {o.error}" for o in self.lost],
            }
        )
        text = json.dumps(state, sort_keys=True)
        return {**state, "version": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def _told(self, job: dict) -> dict:
        cell = self._cell(job)
        progress = job["progress"] if job["state"] in ("running", *ENDED) else None
        return {
            "id": job["id"],
            "name": cell.name,
            "seed": cell.seed,
            "state": job["state"],
            "error": job["error"],
            "seconds": round(job["seconds"] or 0),
            "progress": progress,
        }

    def _gone(self, jobs: list[dict]) -> list[dict]:
        return [
            {**self._told(job), "state": "failed", "error": "its result is no longer on this disk"}
            for job in jobs
            if job["state"] == "finished" and not self._of_job[job["id"]]
        ]

    # -- compare, save, take over ----------------------------------------------------------------------------------------

    def _compare(self) -> str:
        rows = self._chosen()
        if not rows:
            raise WorkbenchError(
                "no row is checked",
                expected="one row or more",
                got="none",
                fix="check rows of the table",
            )
        self._overlaid = [row.id for row in rows]
        return f"{len(rows)} {'run' if len(rows) == 1 else 'runs'} in the charts"

    def _alone(self) -> str:
        self._overlaid = []
        return "the charts show what runs"

    def _use(self, row: str) -> str:
        found = next((r for r in self._rows() if r.id == row), None)
        if found is None:
            raise WorkbenchError("this row is no longer there", got=row)
        self.values = self.settings.values(found.cell.settings, str(found.cell.seed))
        return f"the controls show {found.cell.name}, seed {found.cell.seed}"

    def _reset(self) -> str:
        self.values = self.settings.values()
        return "the controls show the notebook's own values"

    def _save_figure(self) -> str:
        saved = save_figures(self._chosen() or self._rows(), self.settings, self.out)
        stems = dict.fromkeys(path.with_suffix("") for path in saved)
        return f"saved as svg, pdf, png: {', '.join(map(str, stems))}"

    def _save_parameters(self, values: dict) -> str:
        rows = self._chosen()
        if len({self.settings.identity(row.cell.settings) for row in rows}) > 1:
            raise WorkbenchError(
                "parameters are of one setting",
                expected="rows that differ in the seed alone, or none (then of the controls)",
                got=f"{len(rows)} rows of several",
                fix="uncheck the others",
            )
        settings, seeds = (
            (rows[0].cell.settings, sorted({row.cell.seed for row in rows}))
            if rows
            else self.settings.read(values)
        )
        given, lost = self.settings.parameters(settings, seeds)
        text = json.dumps(given, indent=1) + "\n"
        path = self.out / f"ablation_{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            text
        )  # JSON is YAML: papermill reads it with -f, and quoting is never a question
        note = (
            f" (not in it, since the notebook has no such parameter: {', '.join(lost)})"
            if lost
            else ""
        )
        return f"papermill notebooks/{self.notebook}.ipynb out.ipynb -f {path}{note}"


def _runs(some: Sequence) -> str:
    return f"{len(some)} run{'' if len(some) == 1 else 's'}"


def _clean(value):
    """JSON without numbers that JSON has not."""
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
