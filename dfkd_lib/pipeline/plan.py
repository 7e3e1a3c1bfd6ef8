"""A run, checked before a kernel starts: which notebooks, with which parameters, where to, on what."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from dfkd_lib import jobs as fanout
from dfkd_lib import presets
from dfkd_lib.core import WorkbenchError
from dfkd_lib.core.artifacts import REPOSITORY, home
from dfkd_lib.core.artifacts import resolve as resolve_path
from dfkd_lib.pipeline import parameters as declared
from dfkd_lib.pipeline.execute import HUNG_MINUTES
from dfkd_lib.presets import PRESETS
from dfkd_lib.reporting.notebooks import read_notebook as read_about

ABLATION = "35_ablation"


@dataclass
class Plan:
    """A run, checked: what to run with which parameters, where everything goes, and on what it runs."""

    profile: str
    notebooks: dict[str, Path]
    parameters: dict[str, dict]
    out: Path
    jobs: int
    command: str
    hung_minutes: float = HUNG_MINUTES
    scheduler: str | None = None
    threads: int | None = None

    @property
    def spread(self) -> bool:
        """Whether several tasks may run at a time: then students of an ablation are tasks of their own."""
        return self.jobs > 1 or self.scheduler is not None


def notebook_files(folder: Path | None = None) -> dict[str, Path]:
    """The notebooks `NN_name.ipynb` of a folder (the repository's by default), by name, in order."""
    folder = folder or REPOSITORY / "notebooks"
    found = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise WorkbenchError(
            "there are no notebooks",
            where=folder,
            expected="files named NN_name.ipynb",
            fix="run from a checkout of the whole repository",
        )
    return found


def make_plan(
    profile: str,
    only: str | None = None,
    settings: list[str] | tuple[str, ...] = (),
    out: str | None = None,
    jobs: int | None = None,
    artifacts: str = "data/artifacts",
    notebooks: Path | None = None,
    scheduler: str | None = None,
    grid: str | None = None,
    hung: float = HUNG_MINUTES,
    threads: int | None = None,
) -> Plan:
    """Check everything that can be checked before a kernel starts.

    Args:
        profile: "smoke", "quick" or "paper". only: comma-separated notebook prefixes. settings: words such as
            "10.epochs=3". out, artifacts: folders, relative to the repository root.
        jobs: tasks at a time on this machine, 1 by default; a task is a notebook, or a student of an ablation.
        notebooks: another folder of notebooks. scheduler: address or file of a Dask scheduler whose workers run the tasks.
        grid: a YAML file of rows and seeds: notebook 35 alone, unless `only` says otherwise, into
            reports/grid_<name of the file>, its students `jobs` at a time (default: as many as cores).
        hung: minutes without processor time and output after which a kernel is ended; 0: never.
        threads: of each task; by default an equal share of the cores (1 job: all), or all of a cluster's smallest worker.

    Raises:
        WorkbenchError: naming the notebook, the parameter, what was expected and the nearest right name.
    """
    _check_options(profile, jobs, hung, threads, scheduler)
    files = notebook_files(notebooks)
    if grid is not None:
        path = home(grid).resolve()
        only, out = only or ABLATION, out or f"reports/grid_{path.stem}"
        settings = [f"{ABLATION}.grid={path}", *settings]
        jobs = jobs or (1 if scheduler else fanout.most_processes())
    jobs = 1 if jobs is None else jobs
    names = list(files)
    if only is not None:
        chosen = {declared.find_notebook(word.strip(), names) for word in only.split(",")}
        if grid is not None and ABLATION not in chosen:
            raise WorkbenchError(
                "a grid runs in notebook 35",
                expected=f"--only with {ABLATION}, or none",
                got=f"--only {only}",
                fix="leave --only out",
            )
        names = [name for name in names if name in chosen]
    settings = list(settings)
    _check_used(settings, list(files), names)
    known = {name: declared.read_notebook(files[name]) for name in files}
    methods = {name: read_about(path).method for name, path in files.items()}
    methods = {name: method for name, method in methods.items() if method and name in names}
    values = declared.resolve({name: known[name] for name in names}, methods, profile, settings)
    if grid is not None:
        from dfkd_lib import ablation  # imports torch: only where it is needed

        ablation.cells_of(
            presets.of_parameters("ablation", {"preset": profile, **values[ABLATION]})
        )
    folder = resolve_path(out or f"reports/{profile}")
    for name in names:
        values[name] |= {
            "preset" if "preset" in known[name] else "profile": profile,
            "out_dir": str(folder),
            "artifacts_dir": str(resolve_path(artifacts)),
            "interactive": False,
        }
        for own in ("out_dir", "artifacts_dir", "interactive"):
            declared.find_parameter(own, known[name], name)
    plan = Plan(
        profile,
        {name: files[name] for name in names},
        {name: values[name] for name in names},
        folder,
        jobs,
        shlex.join(["python", "-m", "dfkd_lib", *sys.argv[1:]]),
        hung,
        scheduler,
        threads,
    )
    if plan.spread and plan.parameters.get(ABLATION, {}).get("jobs", 0) > 1:
        raise WorkbenchError(
            "an ablation's students are tasks of this run",
            where=f"{ABLATION}.jobs",
            got=plan.parameters[ABLATION]["jobs"],
            expected="no value",
            fix="leave it out: --jobs, or the cluster, says how many run at a time",
        )
    if plan.spread and "jobs" in plan.parameters.get(ABLATION, {}):
        plan.parameters[ABLATION]["jobs"] = (
            1  # its students are tasks of their own, and found when it runs
        )
    return plan


def _check_used(settings: list[str] | tuple[str, ...], known: list[str], chosen: list[str]) -> None:
    for setting in settings:
        if declared.notebook_of(setting, known) not in chosen:
            raise WorkbenchError(
                "a setting of a notebook that is not to run",
                got=setting,
                where="--set",
                expected="of " + ", ".join(chosen),
                fix="name the notebook in --only too, or leave the setting out",
            )


def _check_options(
    profile: str, jobs: int | None, hung: float, threads: int | None, scheduler: str | None
) -> None:
    if profile not in PRESETS:
        near = declared.nearest(profile, PRESETS)
        raise WorkbenchError(
            f"there is no profile '{profile}'",
            expected="one of " + ", ".join(PRESETS),
            got=profile,
            fix=f"did you mean '{near}'?" if near else "choose one of them",
        )
    if jobs is not None and jobs < 1:
        raise WorkbenchError(
            "--jobs must be a positive number of tasks",
            expected="1..",
            got=jobs,
            fix="give 1 or more",
        )
    if threads is not None and threads < 1:
        raise WorkbenchError(
            "--threads must be a positive number",
            expected="1..",
            got=threads,
            fix="give 1 or more",
        )
    if scheduler is not None and jobs is not None:
        raise WorkbenchError(
            "--jobs and --scheduler exclude each other",
            got=f"--jobs {jobs} --scheduler {scheduler}",
            fix="leave --jobs out: a cluster runs as many tasks as its workers have room for",
        )
    if not hung >= 0:
        raise WorkbenchError(
            "--hung must be a number of minutes",
            expected="minutes, 0: never",
            got=hung,
            fix="give 0 or more",
        )
