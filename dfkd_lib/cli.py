"""The command `dfkd`: run the notebooks, list them and their settings, explain and verify artifacts."""

import argparse
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TextIO

from dfkd_lib.core import Store, WorkbenchError, one_of, resolve


def run(log: str | None, figure_width: str | None, font_size: float | None, **options) -> int:
    """Run notebooks into HTML reports."""
    from dfkd_lib import pipeline
    from dfkd_lib.core import processes
    from dfkd_lib.reporting import trackers

    if processes.count() > 1:
        raise WorkbenchError(
            "notebooks run in kernels of their own, each in one process",
            got=f"{processes.count()} processes",
            expected="1",
            fix="give several processes the verb train; then run, started "
            "alone, finds what they trained and writes the reports",
        )
    if log is not None:
        trackers.check_tracker(log)
    drawn = {"DFKD_FIGURE_WIDTH": figure_width, "DFKD_FONT_SIZE": font_size}
    os.environ |= {name: str(value) for name, value in drawn.items() if value}
    plan = pipeline.make_plan(**options)
    ended = partial(trackers.track, log, plan.out) if log else None
    results = pipeline.run(plan, ended=ended)
    print(os.path.relpath(plan.out / "index.html"))
    return pipeline.exit_code(results)


def train(**options) -> int:
    """Train what notebooks train, without reports; for accelerate launch, torchrun."""
    from dfkd_lib import pipeline

    plan = pipeline.make_plan(**options)  # before what trains is imported
    pipeline.train(plan)
    return 0


def list_notebooks(notebook: str | None) -> int:
    """List notebooks and their parameters; of one, every setting."""
    from dfkd_lib import pipeline

    files = pipeline.notebook_files()
    wanted = [pipeline.find_notebook(notebook, list(files))] if notebook else list(files)
    for name in wanted:
        declared = pipeline.read_notebook(files[name])
        print(f"{name} ({declared.method})" if declared.method else name)
        for parameter in declared.parameters.values():
            value = f"{parameter.name} = {parameter.default!r}"
            print(f"  {value:<40} {declared.help(parameter.name)}")
    if notebook and declared.method:
        print_settings(declared.known.settings)
    return 0


def print_settings(settings: dict[str, dict]) -> None:
    """Print every setting of a method: the paper's value and what other presets have, help and range."""
    print("  settings, as --set or in overrides: paper (and what other presets have), help, range")
    for full, setting in settings.items():
        values = setting["values"]
        others = [f"{preset} {v}" for preset, v in values.items() if v != values["paper"]]
        value = f"{full} = {values['paper']}" + (f" ({', '.join(others)})" if others else "")
        rule = f" [{setting['rule']}]" if setting["rule"] else ""
        print(f"    {value:<60} {setting['help']}{rule}")


def compare(a: str, b: str, out: str | None) -> int:
    """Write one page of what differs between two runs."""
    from dfkd_lib.pipeline.compare import write_comparison

    command = ["dfkd", "compare", a, b, *(["--out", out] if out else [])]
    print(os.path.relpath(write_comparison(a, b, out, shlex.join(command))))
    return 0


def published() -> int:
    """Write reports/published/README.md from its results files."""
    from dfkd_lib.reporting.published import write_published

    print(os.path.relpath(write_published()))
    return 0


def tables(
    names: list[str],
    preset: str,
    data: str,
    settings: list[str],
    out: str | None,
    artifacts: str,
    jobs: int | None,
    threads: int | None,
    hours: float | None,
) -> int:
    """Make the papers' tables beside ours, told first what they cost; without names: list them and the figures."""
    from dfkd_lib.pipeline.asked import chosen, list_tables

    if not names:
        print(list_tables())
        return 0
    command, processes = shlex.join(["dfkd", *sys.argv[1:]]), 1 if jobs is None else jobs
    requests = chosen(names, preset, data, settings, artifacts, processes, threads)
    from dfkd_lib.pipeline.tables import run_tables  # torch: not before all of this is right

    page, whole = run_tables(requests, out or "", processes, threads, hours, command)
    print(os.path.relpath(page))
    return 0 if whole else 1


def explain_artifact(key: str, other: str | None, artifacts: str) -> int:
    """Print what an artifact was made from, or what differs between two."""
    from dfkd_lib.core import explain

    root = existing(artifacts)
    print(explain.compare(root, key, other) if other else explain.explain(root, key))
    return 0


def verify(artifacts: str) -> int:
    """Check the checksums of every trained thing."""
    store = Store(existing(artifacts))
    store.tidy()
    rows = store.verify()
    for key, problem in rows:
        print(f"{'damaged' if problem else 'sound':8} {key}" + (f"\n{problem}" if problem else ""))
    damaged = sum(problem is not None for _, problem in rows)
    for key in store.unfinished():
        print(f"begun    {key}: the next run that needs it goes on there")
    for name in store.set_aside():
        print(f"aside    .damaged/{name}: no longer used; delete it when you have seen it")
    print(f"{len(rows)} artifact{'s' * (len(rows) != 1)}, {damaged} damaged")
    return 1 if damaged else 0


def convert(file: str, out: str, part: str) -> int:
    """Write a pickled checkpoint's weights (.pth, .ckpt, .bin) as safetensors, without running its code."""
    from dfkd_lib import models

    print(os.path.relpath(models.convert(file, out, part)))
    return 0


def paper(run: str, out: str | None, only: str | None) -> int:
    """Copy a run's figures and tables under the papers' numbers, with a README.tex."""
    from dfkd_lib.reporting.tex import collect

    chosen = [name.strip() for name in only.split(",")] if only else []
    print(os.path.relpath(collect(run, out or "figures", chosen)))
    return 0


def card(key: str, out: str | None, artifacts: str) -> int:
    """Write a classifier as a folder for timm, with a model card and its data-free certificate."""
    from dfkd_lib.reporting.card import write_card

    print(os.path.relpath(write_card(Store(existing(artifacts)), key, out or "")))
    return 0


def push(key: str, repository: str, public: bool, out: str | None, artifacts: str) -> int:
    """Write a classifier's folder, as card does, and upload it to the hub."""
    from dfkd_lib.reporting import card

    print(card.push(Store(existing(artifacts)), key, repository, out or "", public))
    return 0


def existing(folder: str) -> Path:
    """The artifact folder of that name, which must exist."""
    path = resolve(folder)
    if not path.is_dir():
        raise WorkbenchError(
            "there is no such artifact folder",
            where=path,
            fix="check --artifacts; the default is made by the first run",
        )
    return path


ARGUMENTS = {
    "--profile": dict(default="quick", help="smoke, quick, night or paper (default: quick)"),
    "--only": dict(
        metavar="10,20", help="these notebooks only; of paper: these figures and tables"
    ),
    "--set": dict(
        dest="settings",
        action="append",
        default=[],
        metavar="notebook.parameter=value",
        help="change one parameter or setting; may be given again",
    ),
    "--grid": dict(
        metavar="FILE", help="run an ablation: a YAML file of settings and seeds, in notebook 35"
    ),
    "--out": dict(
        metavar="DIR",
        help="where pages go (default: reports/<profile>, of a grid reports/grid_<its file>, of tables reports/tables_<preset>, "
        "of compare DIR_B, of paper figures, of card and push reports/cards/<key>)",
    ),
    "--artifacts": dict(
        metavar="DIR", default="data/artifacts", help="where trained things are kept"
    ),
    "--jobs": dict(
        type=int,
        metavar="N",
        help="notebooks, or what they train, at a time, in processes of their own "
        "(default: 1; of a grid: as many as cores)",
    ),
    "--scheduler": dict(
        metavar="ADDRESS", help="run on a Dask cluster: its scheduler's address or file"
    ),
    "--threads": dict(type=int, metavar="T", help="threads of each task (default: an equal share)"),
    "--hung": dict(
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="end a kernel that for so long used no processor time and printed nothing (default: 30; 0: never)",
    ),
    "--log": dict(
        metavar="TRACKER",
        help="also to trackio, tensorboard or wandb: parameters, histories, metrics and figures, offline by default",
    ),
    "--figure-width": dict(
        choices=("single", "double"),
        help="figures as wide as a column of a paper, or as its page (default: as they come)",
    ),
    "--font-size": dict(
        type=float, metavar="POINTS", help="of text in figures (default: 10, of a chosen width 8)"
    ),
    "--again": dict(
        action="store_true",
        help="run notebooks again of which nothing has changed (default: their pages are kept)",
    ),
    "--preset": dict(default="quick", help="smoke, quick, night or paper (default: quick)"),
    "--data": dict(
        metavar="NAME",
        default="",
        help="mnist, cifar10, cifar100, a folder of their classes, or several with commas between "
        "(default: each table's first)",
    ),
    "--hours": dict(
        type=float,
        metavar="H",
        help="refuse what is expected to take longer (default: 8 for night, and for paper without a GPU)",
    ),
    "names": dict(metavar="TABLE", nargs="*", help="A2 A4 …; none: list them"),
    "notebook": dict(nargs="?", help="its number or name: all settings of its method"),
    "a": dict(metavar="DIR_A", help="folder of a run"),
    "b": dict(metavar="DIR_B", help="folder of another"),
    "run": dict(metavar="DIR", help="folder of a run"),
    "file": dict(metavar="FILE", help="a checkpoint"),
    "out": dict(
        metavar="OUT", nargs="?", default="", help="the file to write (default: beside it)"
    ),
    "--part": dict(metavar="NAME", default="", help="which of several models in it"),
    "key": dict(metavar="KEY", help="an artifact's key, or the beginning of it"),
    "repository": dict(metavar="OWNER/NAME", help="a repository of the hub, made if missing"),
    "--public": dict(action="store_true", help="for everybody to see (default: private)"),
    "other": dict(metavar="KEY2", nargs="?", help="another, to compare it with"),
}
# Each verb's function, whose arguments are named as the options.
VERBS = {
    "run": (
        run,
        "--profile --only --grid --set --out --artifacts --jobs --scheduler --threads --hung --log --again "
        "--figure-width --font-size",
    ),
    "train": (train, "--profile --only --set --artifacts"),
    "list": (list_notebooks, "notebook"),
    "compare": (compare, "a b --out"),
    "published": (published, ""),
    "paper": (paper, "run --out --only"),
    "tables": (tables, "names --preset --data --set --out --artifacts --jobs --threads --hours"),
    "explain": (explain_artifact, "key other --artifacts"),
    "card": (card, "key --out --artifacts"),
    "push": (push, "key repository --public --out --artifacts"),
    "convert": (convert, "file out --part"),
    "verify": (verify, "--artifacts"),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="dfkd", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)
    for verb, (function, names) in VERBS.items():
        made = verbs.add_parser(verb, help=function.__doc__)
        for name in names.split():
            made.add_argument(name, **ARGUMENTS[name])
    return top


def checked(words: list[str]) -> list[str]:
    """The words of a command line; WorkbenchError with the nearest right one on an unknown verb or option."""
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        one_of("command", words[0], VERBS)
    if words and words[0] in VERBS:
        options = [name for name in VERBS[words[0]][1].split() if name.startswith("-")]
        for word in (word.partition("=")[0] for word in words if word.startswith("--")):
            if not any(option.startswith(word) for option in [*options, "--help"]):
                one_of(f"option of {words[0]}", word, options)
    return words


def _closed(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more."""
    try:
        stream.write("\n")  # what it held went with the error
        stream.flush()
    except BrokenPipeError:
        return True
    return False


def main(words: list[str] | None = None) -> int:
    """Run one verb; an error a user can fix is printed without a traceback, and the exit code is 2."""
    try:
        options = vars(parser().parse_args(checked(sys.argv[1:] if words is None else words)))
        function, _ = VERBS[options.pop("verb")]
        code = function(**options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _closed(sys.stdout):
            raise
        # As in `dfkd list | head`: whoever read has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
