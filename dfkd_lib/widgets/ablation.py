"""The ablation widget: set, run, watch, stop and compare students; its front end (ablation.js) draws what `Jobs` knows."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import traitlets

from dfkd_lib import ablation, core, losses, plots
from dfkd_lib.ablation import Cell, Outcome, as_sent
from dfkd_lib.core import ArtifactError, WorkbenchError, fingerprint, printable, save_json
from dfkd_lib.reporting.report import write_csv
from dfkd_lib.widgets.base import Widget, front_end
from dfkd_lib.widgets.rows import Line, compared, distinct
from dfkd_lib.widgets.settings import Settings

ENDED = ("failed", "stopped")
LONGEST = 80  # letters of a name
NAMES = "names"  # the file beside the jobs with the names that the user gave


class AblationLab(Widget):
    """Set the weights, run students, watch them, compare; made by `widgets.ablation_lab`.

    The training runs in a process of its own, which `jobs` knows: nothing is lost with the page or this kernel.

    Traits: `values`, what the controls show; `checked`, ids of the lines that are; `status`, what the last button did;
    `error`, what was wrong with it, in full, or ""; `field`, the control to blame, or "".
    """

    _esm = front_end("ablation")
    values = traitlets.Dict().tag(sync=True)
    checked = traitlets.List().tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    field = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        settings: Settings,
        store,
        jobs,
        shown: Sequence[Outcome],
        out_dir: str | Path,
        notebook: str,
        step: Callable | None = None,
    ):
        self.step, self._sent = step, None if step is None else core.signed(core.as_sent(step))
        self.settings, self.store, self.jobs, self.notebook = settings, store, jobs, notebook
        self.lost = [o for o in shown if o.artifact is None]  # shown with their errors, not dropped
        done = [o for o in shown if o.artifact is not None]
        self.shown = [Line.of(o.cell, o.artifact, "found" if o.cached else "run") for o in done]
        self._own: dict[str, Line] = {}  # by key, in the order in which they were first seen
        self._of_job: dict[str, str] = {}  # finished job -> key of its line, "" if that is gone
        self._cells: dict[str, Cell] = {}  # of jobs, by id
        self._overlaid: list[str] = []
        self._renamed = _names_in(jobs.folder / NAMES)  # identity of settings -> name
        start = settings.values()
        controls = list(settings.by_name.values())
        super().__init__(out_dir, controls=controls, start=start, notebook=notebook)
        self.values = start

    def _on_message(self, _, content: dict, buffers) -> None:
        if "values" in content:  # however wrong: a page that is loaded again shows them again
            self.values = content["values"]
        super()._on_message(_, content, buffers)

    def _answer(self, content: dict) -> None:
        """Send the state if it is another than the page has seen."""
        try:
            state = self.state()
        except Exception as error:  # jobs that cannot be read: reported, and asked at the next poll
            self._failed(error)
            state = None
        same = content.get("do") == "poll" and state and content.get("seen") == state["version"]
        more = {"kind": "same"} if same or state is None else {"kind": "state", **state}
        self.send({"id": content.get("id", 0), **more})

    def _try(self, act) -> None:
        """Act, and show in `status` what was done, or in `error` and `field` what was wrong."""

        def noted() -> None:
            self.status = act() or ""

        with self.hold_sync():  # one message: an error is never shown without the control to blame
            self.status = self.field = ""
            super()._try(noted)

    def _failed(self, error: Exception) -> None:
        super()._failed(error)
        where = getattr(error, "where", None)
        self.field = where if where in self.settings.by_name else ""

    # -- run, queue, stop ------------------------------------------------------------------------------------------------

    def do_run(self, content: dict) -> str:
        return self._submit(content["values"], first=True)

    def do_queue(self, content: dict) -> str:
        return self._submit(content["values"], first=False)

    def _submit(self, values: dict, first: bool) -> str:
        if self._sent and fingerprint(self.step).digest != self._sent["digest"]:
            raise WorkbenchError(
                "the step has changed since this widget was made", fix="run the widget's cell again"
            )
        cells = {self._same(cell): cell for cell in self.settings.cells(values, self._names())}
        known = {self._same(line.cell): line for line in self._lines()}
        found = {same: known.get(same) or self._find(cell) for same, cell in cells.items()}
        lines = [line for line in found.values() if line]
        jobs = {self._same(self._cell(job)): job for job in self.jobs.all()}
        missing = [same for same, line in found.items() if not line]
        states = {same: jobs[same]["state"] for same in missing if same in jobs}
        stays = ("running",) if first else ("running", "queued")
        already = [states[same] for same in missing if states.get(same) in stays]
        wanted = [same for same in missing if states.get(same) not in stays]
        moved = [same for same in wanted if states.get(same) == "queued"]
        new = [cells[same] for same in wanted if same not in moved]
        for same in wanted:
            if same in states:
                self.jobs.stop(jobs[same]["id"])
                self.jobs.forget(jobs[same]["id"])
        # Each before all others: first seed last.
        for same in reversed(wanted) if first else wanted:
            self.jobs.submit(as_sent(cells[same], self._sent), first=first)
        parts = []
        if lines:
            shown = "; ".join(f"{line.title}: {line.accuracy:.2f} %" for line in lines)
            parts.append(f"found, nothing was run: {shown}")
        if new:
            parts.append(f"{_runs(new)} {'next' if first else 'queued'}: {new[0].name}")
        if moved:
            parts.append(f"{_runs(moved)} moved to the front")
        elif already:
            parts.append(f"{_runs(already)} already {already[0]}")
        return ". ".join(parts)

    def _find(self, cell: Cell) -> Line | None:
        artifact = ablation.find(self.store, cell, self.step)
        if artifact is None:
            return None
        return self._own.setdefault(artifact.key, Line.of(cell, artifact, "found"))

    def _same(self, cell: Cell) -> tuple[str, int]:
        return self.settings.identity(cell.settings), cell.seed

    def _names(self) -> dict[str, str]:
        """{identity of settings: the name that the user or the notebook has for them}."""
        cells = [line.cell for line in reversed(self.shown)]
        known = {self.settings.identity(cell.settings): cell.name for cell in cells}
        return known | self._renamed

    def do_stop(self, content: dict) -> str:
        job = self._job(content)["id"]
        was = self.jobs.stop(job)
        if was == "queued":
            self.jobs.forget(job)
            return "taken out of the queue"
        if was == "running":
            return "stopped; its finished epochs stay, and the same settings go on from there"
        return f"it had {was} already"

    def do_again(self, content: dict) -> str:
        job = self._job(content)
        cell = Cell.of(job["cell"])
        self.jobs.submit(as_sent(cell, job["cell"].get("step")), first=True)
        self.jobs.forget(job["id"])
        return f"goes on next: {cell.name}, seed {cell.seed}"

    def do_clear(self, content: dict) -> str:
        job = self._job(content)["id"]
        self.jobs.forget(job)
        self._own.pop(self._of_job.pop(job, ""), None)
        return "cleared here; what was trained stays in the store"

    def _job(self, content: dict) -> dict:
        return _known({job["id"]: job for job in self.jobs.all()}, content["job"], "job")

    # -- the table -------------------------------------------------------------------------------------------------------

    def _lines(self) -> list[Line]:
        """Every finished cell once: own ones, the latest first, then the notebook's."""
        shown = {line.id for line in self.shown}
        own = [line for line in reversed(self._own.values()) if line.id not in shown]
        return [self._named(line) for line in own + self.shown]

    def _named(self, line: Line) -> Line:
        """A line under the name that the user gave its settings, if any."""
        name = self._renamed.get(self.settings.identity(line.cell.settings), line.cell.name)
        return replace(line, cell=replace(line.cell, name=name))

    def _take_in(self, jobs: list[dict]) -> None:
        """Lines of jobs that have finished meanwhile, and none of those another page has cleared."""
        for job in jobs:
            if job["state"] != "finished" or job["id"] in self._of_job:
                continue
            try:
                artifact = self.store.find(job["key"]) if job["key"] else None
            except ArtifactError:  # damaged: as good as gone, and no reason to show nothing else
                artifact = None
            self._of_job[job["id"]] = artifact.key if artifact else ""
            if artifact:
                line = Line.of(self._cell(job), artifact, "run", job["id"])
                self._own.setdefault(artifact.key, line)
        for gone in set(self._of_job) - {job["id"] for job in jobs}:
            self._own.pop(self._of_job.pop(gone), None)

    def _cell(self, job: dict) -> Cell:
        """The cell of a job under the name it has here: another notebook's "as the notebook" is not this one's."""
        if job["id"] not in self._cells:
            saved = job["cell"]
            try:
                cell = self._marked(Cell.of(saved), saved.get("step"))
                known = self._names().get(self.settings.identity(cell.settings))
                name = known or self.settings.name(cell.settings)
            # Of a version with other settings: refused if it is to run again.
            except WorkbenchError:
                cell = Cell(saved["name"], saved["settings"], saved["seed"])
                name = f"{cell.name} (of another version)"
            self._cells[job["id"]] = Cell(name, cell.settings, cell.seed)
        return self._cells[job["id"]]

    def _marked(self, cell: Cell, sent: dict | None) -> Cell:
        """The cell, as one of other settings if its step is not this widget's."""
        own, step = ((one or {}).get("digest", "of the library") for one in (self._sent, sent))
        return cell if step == own else replace(cell, settings={**cell.settings, "step": step})

    def _chosen(self) -> list[Line]:
        """The checked lines, the notebook's first: what is compared is the new against the known."""
        known = [*self.shown, *self._own.values()]
        return [self._named(line) for line in known if line.id in self.checked]

    def _checked(self, what: str) -> list[Cell]:
        """The checked cells; WorkbenchError unless they are of one setting."""
        cells = [line.cell for line in self._chosen()]
        if len({self.settings.identity(cell.settings) for cell in cells}) != 1:
            raise WorkbenchError(
                f"{what} is of one setting",
                expected="checked lines that differ in the seed alone",
                got=f"{len(cells)} lines",
                fix="check lines of one setting",
            )
        return cells

    def state(self) -> dict:
        """Everything the front end shows, as JSON, with a `version` that changes if anything does."""
        self.jobs.wake()
        jobs = self.jobs.all()
        self._take_in(jobs)
        lines = self._lines()
        by_id = {line.id: line for line in lines}
        overlaid = [by_id[name] for name in self._overlaid if name in by_id]
        # What has just finished stays in the charts until something else runs.
        latest = [line for line in lines if line.job][:1]
        curves = distinct(overlaid or latest, self.settings)
        state = {
            "jobs": [job for job in map(self._job_shown, jobs) if job],
            "rows": [line.as_dict(self.settings) for line in lines],
            "curves": [
                {"id": c.id, "name": c.title, "setting": c.cell.name, "history": c.history}
                for c in curves
            ],
            "overlaid": [line.id for line in overlaid],
            "compared": compared(overlaid, self.settings),
            "lost": [f"{o.cell.name}, seed {o.cell.seed}: {o.error}" for o in self.lost],
        }
        text = json.dumps(state, sort_keys=True)
        # A page's JSON has neither NaN nor infinity.
        plain = json.loads(text, parse_constant=lambda _: None)
        return {**plain, "version": _digest(text, 16)}

    def _job_shown(self, job: dict) -> dict | None:
        """What is shown of a job; None of one that has finished and has its line in the table."""
        cell, state, error = self._cell(job), job["state"], job["error"]
        if state == "finished":
            if self._of_job[job["id"]]:
                return None
            state, error = "failed", "its result is no longer on this disk"
        return {
            "id": job["id"],
            "name": cell.name,
            "seed": cell.seed,
            "state": state,
            "error": error,
            "seconds": round(job["seconds"] or 0),
            "progress": job["progress"] if job["state"] in ("running", *ENDED) else None,
        }

    # -- compare, save, take over ----------------------------------------------------------------------------------------

    def do_compare(self, _: dict) -> str:
        lines = self._chosen()
        if not lines:
            raise WorkbenchError("no line is checked", fix="check lines of the table")
        self._overlaid = [line.id for line in lines]
        return f"{_runs(lines)} in the charts"

    def do_alone(self, _: dict) -> str:
        self._overlaid = []
        return "the charts show what runs"

    def do_use(self, content: dict) -> str:
        line = _known({line.id: line for line in self._lines()}, content["row"], "line")
        self.values = self.settings.values(line.cell.settings, str(line.cell.seed))
        return f"the controls show {line.title}"

    def do_reset(self, _: dict) -> str:
        self.values = self.settings.values()
        return "the controls show the notebook's own values"

    def do_rename(self, content: dict) -> str:
        name = " ".join(str(content["name"]).split())
        same = self.settings.identity(self._checked("a name")[0].settings)
        cells = (line.cell for line in self._lines())
        taken = {cell.name for cell in cells if self.settings.identity(cell.settings) != same}
        if name in taken or not (0 < len(name) <= LONGEST and printable(name)):
            raise WorkbenchError(
                "this cannot be its name",
                expected=f"1 to {LONGEST} letters that no other setting has for a name",
                got=name,
                fix="choose another",
            )
        self._cells.clear()
        # Another page may have given others names meanwhile.
        self._renamed = _names_in(self.jobs.folder / NAMES) | {same: name}
        save_json(self.jobs.folder / NAMES, self._renamed)
        return f"renamed: {name}"

    def do_csv(self, _: dict) -> str:
        outcomes, name = self._selected()
        path = self._place("tables", ("ablation", "runs", name)).with_suffix(".csv")
        write_csv(ablation.tidy(outcomes), path)
        self.saved = str(path)
        return f"{_runs(outcomes)} saved as {path}"

    def _selected(self) -> tuple[list[Outcome], str]:
        """The checked runs, or all, and a name of what they are, so that another selection does not overwrite it."""
        lines = distinct(self._chosen() or self._lines(), self.settings)
        if not lines:
            raise WorkbenchError("no run has finished", fix="run one first")
        name = _digest(" ".join(sorted(line.id for line in lines)), 8)
        return [line.outcome for line in lines], name

    def do_figure(self, _: dict) -> str:
        outcomes, name = self._selected()
        cells = ablation.tidy(outcomes)
        curves = plots.ablation_curves(ablation.histories(outcomes), losses.loss_titles())
        self._save(curves, "ablation", "curves", name)
        accuracy = plots.ablation_accuracy(cells, ablation.summary(cells))
        self._save(accuracy, "ablation", "accuracy", name)
        return f"saved as {self.saved}, and their curves"

    def do_parameters(self, content: dict) -> str:
        if self._chosen():
            cells = self._checked("a file of parameters")
            settings, seeds = cells[0].settings, sorted({cell.seed for cell in cells})
        else:
            settings, seeds = self.settings.read(content["values"])
        parameters = self.settings.parameters(settings, seeds)
        name = _digest(json.dumps(parameters), 8)
        return self._save_parameters(self.notebook, parameters, "ablation", name)


def _names_in(file: Path) -> dict[str, str]:
    """The names that a file gives settings, {} where there is none or it is damaged."""
    try:
        return {str(same): str(name) for same, name in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _known(things: dict, asked: str, what: str) -> object:
    """The thing of that id; WorkbenchError if another page has cleared it meanwhile."""
    if asked not in things:
        raise WorkbenchError(f"this {what} is no longer there", got=asked, fix="choose another")
    return things[asked]


def _digest(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _runs(some: Sequence) -> str:
    return f"{len(some)} run{'' if len(some) == 1 else 's'}"
