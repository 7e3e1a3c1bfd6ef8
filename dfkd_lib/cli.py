"""`python -m dfkd_lib`: run the notebooks, list them and their parameters, explain and verify artifacts."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from dfkd_lib.core import Store, WorkbenchError, resolve


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m dfkd_lib", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run notebooks into HTML reports")
    run.add_argument(
        "--profile", default="quick", help="smoke, quick, night or paper (default: quick)"
    )
    run.add_argument("--only", metavar="10,20", help="these notebooks only")
    run.add_argument(
        "--grid",
        metavar="FILE",
        help="run an ablation: a YAML file of rows and seeds, through notebook 35",
    )
    run.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="notebook.parameter=value",
        help="change one parameter; may be given again",
    )
    run.add_argument(
        "--out",
        metavar="DIR",
        help="where reports go (default: reports/<profile>, of a grid reports/grid_<its file>)",
    )
    run.add_argument(
        "--artifacts", metavar="DIR", default="data/artifacts", help="where trained things are kept"
    )
    run.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="notebooks, or students of an ablation, at a time, in "
        "processes of their own (default: 1; of a grid: as many as cores)",
    )
    run.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on a Dask cluster: its scheduler's address or file",
    )
    run.add_argument(
        "--threads", type=int, metavar="T", help="threads of each task (default: an equal share)"
    )
    run.add_argument(
        "--hung",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="end a kernel that for so long used no "
        "processor time and printed nothing (default: 30; 0: never)",
    )
    train = verbs.add_parser(
        "train", help="train what notebooks train, without reports; for accelerate launch, torchrun"
    )
    train.add_argument(
        "--profile", default="quick", help="smoke, quick, night or paper (default: quick)"
    )
    train.add_argument("--only", metavar="30,40", help="these notebooks only")
    train.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="notebook.parameter=value",
        help="change one parameter; may be given again",
    )
    train.add_argument(
        "--artifacts", metavar="DIR", default="data/artifacts", help="where trained things are kept"
    )
    listed = verbs.add_parser("list", help="notebooks and their parameters; of one, every setting")
    listed.add_argument(
        "notebook", nargs="?", help="its number or name: all settings of its method"
    )
    compare = verbs.add_parser("compare", help="one page of what differs between two runs")
    compare.add_argument("a", metavar="DIR_A", help="folder of a run")
    compare.add_argument("b", metavar="DIR_B", help="folder of another")
    compare.add_argument("--out", metavar="DIR", help="where compare.html goes (default: DIR_B)")
    verbs.add_parser("published", help="write reports/published/README.md from its results files")
    explain = verbs.add_parser(
        "explain", help="what an artifact was made from, or what differs between two"
    )
    explain.add_argument("key", metavar="KEY", help="its key, or the beginning of it")
    explain.add_argument("other", metavar="KEY2", nargs="?", help="another, to compare it with")
    explain.add_argument("--artifacts", metavar="DIR", default="data/artifacts")
    verify = verbs.add_parser("verify", help="check the checksums of every trained thing")
    verify.add_argument("--artifacts", metavar="DIR", default="data/artifacts")
    return top


def run(options) -> int:
    from dfkd_lib import pipeline
    from dfkd_lib.core import processes

    if processes.count() > 1:
        raise WorkbenchError(
            "notebooks run in kernels of their own, each in one process",
            got=f"{processes.count()} processes",
            expected="1",
            fix="give several processes the verb train; then run, started "
            "alone, finds what they trained and writes the reports",
        )
    plan = pipeline.make_plan(
        options.profile,
        options.only,
        options.settings,
        options.out,
        options.jobs,
        options.artifacts,
        scheduler=options.scheduler,
        grid=options.grid,
        hung=options.hung,
        threads=options.threads,
    )
    results = pipeline.run(plan)
    print(os.path.relpath(plan.out / "index.html"))
    return pipeline.exit_code(results)


def train(options) -> int:
    from dfkd_lib import pipeline

    pipeline.train(
        pipeline.make_plan(
            options.profile, options.only, options.settings, artifacts=options.artifacts
        )
    )
    return 0


def list_notebooks(options) -> int:
    """Print each notebook's parameters and the settings of its method: default, each preset's value, range and help."""
    from dfkd_lib import pipeline, presets
    from dfkd_lib.reporting.notebooks import read_notebook as about

    files = pipeline.notebook_files()
    wanted = (
        [pipeline.find_notebook(options.notebook, list(files))] if options.notebook else list(files)
    )
    for name in wanted:
        declared, method = pipeline.read_notebook(files[name]), about(files[name]).method
        print(f"{name}" + (f" ({method})" if method else ""))
        for parameter in declared.values():
            print(f"  {f'{parameter.name} = {parameter.default!r}':<40} {parameter.help}")
        if not method or not options.notebook:
            continue
        trees = {preset: presets.of_preset(method, preset).settings() for preset in presets.PRESETS}
        print(
            "  settings, as --set or in overrides: paper (and what other presets have), range, help"
        )
        for full, setting in trees["paper"].items():
            others = [
                f"{preset} {tree[full].default!r}"
                for preset, tree in trees.items()
                if tree[full].default != setting.default
            ]
            value = f"{full} = {setting.default!r}" + (f" ({', '.join(others)})" if others else "")
            rule = f" [{setting.rule}]" if setting.rule else ""
            print(f"    {value:<60} {setting.help}{rule}")
    return 0


def compare(options) -> int:
    from dfkd_lib.pipeline.compare import write_comparison

    words = ["python", "-m", "dfkd_lib", "compare", options.a, options.b]
    words += ["--out", options.out] if options.out else []
    page = write_comparison(options.a, options.b, options.out, shlex.join(words))
    print(os.path.relpath(page))
    return 0


def published(options) -> int:
    from dfkd_lib.reporting.published import write_published

    print(os.path.relpath(write_published()))
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


def explain_artifact(options) -> int:
    from dfkd_lib.core import explain

    root = existing(options.artifacts)
    other = options.other
    print(
        explain.compare(root, options.key, other) if other else explain.explain(root, options.key)
    )
    return 0


def verify(options) -> int:
    store = Store(existing(options.artifacts))
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


def main(words: list[str] | None = None) -> int:
    """Run one verb; an error a user can fix is printed without a traceback, and the exit code is 2."""
    options = parser().parse_args(words)
    verbs = {
        "run": run,
        "train": train,
        "list": list_notebooks,
        "compare": compare,
        "published": published,
        "explain": explain_artifact,
        "verify": verify,
    }
    try:
        return verbs[options.verb](options)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
