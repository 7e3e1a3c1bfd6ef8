"""A run, checked before a kernel starts: which notebooks, with which parameters, where to, on what."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfkd_lib import jobs as fanout
from dfkd_lib import presets
from dfkd_lib.core import REPOSITORY, WorkbenchError, home
from dfkd_lib.core import resolve as resolve_path
from dfkd_lib.pipeline.parameters import find_notebook, parse_setting, read_notebook

ABLATION = "35_ablation"
HUNG_MINUTES = 30.0  # without a sign of life: far more than a slow download or disk takes


@dataclass
class Plan:
    """A run, checked: what to run with which parameters, where everything goes, and on what it runs."""

    profile: str
    notebooks: dict[str, Path]
    parameters: dict[str, dict]
    out: Path
    jobs: int
    hung_minutes: float = HUNG_MINUTES
    scheduler: str | None = None
    threads: int | None = None
    again: bool = False

    @property
    def spread(self) -> bool:
        """Whether several tasks may run at a time: then what notebooks train are tasks of their own."""
        return self.jobs > 1 or self.scheduler is not None

    @property
    def command(self) -> str:
        """The command line that this process was started with."""
        return shlex.join(["dfkd", *sys.argv[1:]])


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
    settings: Sequence[str] = (),
    out: str | None = None,
    jobs: int | None = None,
    artifacts: str = "data/artifacts",
    notebooks: Path | None = None,
    scheduler: str | None = None,
    grid: str | None = None,
    hung: float = HUNG_MINUTES,
    threads: int | None = None,
    again: bool = False,
) -> Plan:
    """Check everything that can be checked before a kernel starts.

    Args:
        profile: a preset. only: comma-separated notebook prefixes. settings: such as "10.epochs=3".
        out, artifacts: folders, relative to the repository root.
        jobs: tasks at a time on this machine, 1 by default; a task is a notebook, or something that one trains.
        notebooks: another folder of notebooks. scheduler: address or file of a Dask scheduler whose workers run the tasks.
        grid: a YAML file of settings and seeds: notebook 35 alone, unless `only` names more, into
            reports/grid_<name of the file>, its students `jobs` at a time (default: as many as cores).
        hung: minutes without processor time and output after which a kernel is ended; 0: never.
        again: whether notebooks run whose pages there are, and nothing of which has changed.
        threads: of each task; by default an equal share of the cores (1 job: all), or all of a cluster's smallest worker.

    Raises:
        WorkbenchError: naming the notebook, the parameter, what was expected and the nearest right name.
    """
    check_options(profile, jobs, hung, threads, scheduler)
    files = notebook_files(notebooks)
    if grid is not None:
        path = home(grid).resolve()
        only, out = only or ABLATION, out or f"reports/grid_{path.stem}"
        settings = [f"{ABLATION}.grid={path}", *settings]
        jobs = jobs or (1 if scheduler else fanout.most_processes())
    names = _chosen(list(files), only, grid)
    folder = resolve_path(out or f"reports/{profile}")
    plan = Plan(
        profile,
        {name: files[name] for name in names},
        _parameters(files, names, profile, settings),
        folder,
        1 if jobs is None else jobs,
        hung,
        scheduler,
        threads,
        again,
    )
    if grid is not None:
        from dfkd_lib import ablation  # imports torch: only where it is needed

        ablation.cells_of(presets.of_parameters("ablation", plan.parameters[ABLATION]))
    for values in plan.parameters.values():
        values["out_dir"], values["artifacts_dir"] = str(folder), str(resolve_path(artifacts))
    _share_jobs(plan)
    return plan


def check_options(
    profile: str, jobs: int | None, hung: float, threads: int | None, scheduler: str | None
) -> None:
    """Raise a WorkbenchError on a preset that is none, and on options out of range."""
    presets.of_preset("summary", profile)  # an unknown one is refused
    for option, value, least in (
        ("--jobs", jobs, 1),
        ("--threads", threads, 1),
        ("--hung", hung, 0),
    ):
        if value is not None and not value >= least:
            raise WorkbenchError(
                f"{option} is too small",
                expected=f"{least}..",
                got=value,
                fix=f"give {least} or more",
            )
    if scheduler is not None and jobs is not None:
        raise WorkbenchError(
            "--jobs and --scheduler exclude each other",
            got=f"--jobs {jobs} --scheduler {scheduler}",
            fix="leave --jobs out: a cluster runs as many tasks as its workers have room for",
        )


def _chosen(names: list[str], only: str | None, grid: str | None) -> list[str]:
    """The notebooks that `only` names, in their order; a grid needs notebook 35 among them."""
    if only is None:
        return names
    chosen = {find_notebook(word.strip(), names) for word in only.split(",")}
    if grid is not None and ABLATION not in chosen:
        raise WorkbenchError(
            "a grid runs in notebook 35",
            expected=f"--only with {ABLATION}, or none",
            got=f"--only {only}",
            fix="leave --only out",
        )
    return [name for name in names if name in chosen]


def _parameters(
    files: dict[str, Path], names: list[str], profile: str, settings: Sequence[str]
) -> dict[str, dict]:
    """The parameters of each chosen notebook; WorkbenchError if a setting is of another one."""
    changes: dict[str, list] = {name: [] for name in names}
    for setting in settings:
        notebook, name, text = parse_setting(setting, list(files))
        if notebook not in changes:
            raise WorkbenchError(
                "a setting of a notebook that is not to run",
                got=setting,
                where="--set",
                expected="of " + ", ".join(names),
                fix="name the notebook in --only too, or leave the setting out",
            )
        changes[notebook].append((name, text))
    declared = {name: read_notebook(files[name]) for name in names}
    for notebook, pairs in changes.items():
        declared[notebook].check_names(name for name, _ in pairs)
    own = {"preset": profile, "interactive": False}
    return {name: declared[name].values(profile, pairs) | own for name, pairs in changes.items()}


def _share_jobs(plan: Plan) -> None:
    """Where several tasks run at a time, an ablation's students are tasks too, and its notebook finds them made."""
    values = plan.parameters.get(ABLATION, {})
    if not plan.spread or "jobs" not in values:
        return
    if values["jobs"] > 1:
        raise WorkbenchError(
            "an ablation's students are tasks of this run",
            where=f"{ABLATION}.jobs",
            got=values["jobs"],
            expected="no value",
            fix="leave it out: --jobs, or the cluster, sets how many run at a time",
        )
    values["jobs"] = 1
