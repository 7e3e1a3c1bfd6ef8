"""What a notebook leaves behind: figures (SVG, PDF), tables (CSV, LaTeX), metrics, and the artifacts it used."""

import html
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pandas as pd
from matplotlib import rc_context

from dfkd_lib import presets
from dfkd_lib.core import Artifact, Config, WorkbenchError, resolve, save_json
from dfkd_lib.core.files import unusable
from dfkd_lib.distill.scores import SCORES, gigaflops, scores
from dfkd_lib.losses import loss_titles
from dfkd_lib.metrics.intervals import (
    FEWEST,
    accuracy_interval,
    interval_text,
    paired_difference,
    percent_interval,
    shown_interval,
)
from dfkd_lib.models import display_name
from dfkd_lib.plots import STYLE
from dfkd_lib.reporting import tex
from dfkd_lib.reporting.notebooks import read_notebooks
from dfkd_lib.reporting.papers import paper_number
from dfkd_lib.reporting.results import is_file_name
from dfkd_lib.training import test_logits

LAB = "reports/lab"  # of what is done by hand, a folder a day
BATCH = "DFKD_BATCH"  # set in the kernels of `dfkd run`
ARTIFACT = ("key", "stage", "seconds", "cached", "ledger", "guard", "settings", "parents")


class Report:
    """Collects a notebook's results and writes them below `out_dir`.

    Args:
        notebook: its name, "20_gan_fid".
        out_dir: folder of the report, relative to the repository root; "": reports/lab/<today>, with the parameters beside it.
        profile: the preset it ran under.
        config: the typed configuration in use; the page shows what differs from the notebook's method under that preset.

    Raises:
        WorkbenchError: if the folder cannot be made, or holds a batch run and this is none.
    """

    def __init__(
        self,
        notebook: str,
        out_dir: str | Path = "",
        profile: str = "quick",
        config: Config | None = None,
    ):
        self.notebook, self.profile, self.lab = notebook, profile, not str(out_dir)
        self.out = resolve(out_dir if str(out_dir) else f"{LAB}/{date.today()}")
        self.overrides = ""  # what differs from the preset
        if (self.out / "results.json").exists() and BATCH not in os.environ:
            raise WorkbenchError(
                "this folder holds the results of dfkd run",
                got="a notebook that was run by hand",
                where=self.out,
                fix="leave out_dir empty (then it is reports/lab/<today>) or name another folder",
            )
        self.start = time.perf_counter()
        self.data = {"metrics": {}, "settings": {}, "figures": [], "tables": [], "artifacts": []}
        try:
            for part in ("figures", "tables", "metrics"):
                (self.out / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable("the report folder", error, self.out, "choose another out_dir") from None
        if config is not None:
            self._note_settings(config)

    def _note_settings(self, config: Config) -> None:
        known = read_notebooks().get(self.notebook)
        usual = before = type(config)()
        if known and known.method:
            data = str(config.flat().get("data.name", ""))
            usual = presets.of_preset(known.method, self.profile)
            before = presets.of_preset(known.method, self.profile, data)
        # Who loads the overrides again starts from the preset alone; the page says what differs from the images' own.
        changed = {name: here for name, (here, _) in config.differences(usual).items()}
        self.overrides, before = presets.overrides_text(changed), before.flat()
        for name, setting in config.settings().items():
            entry = [setting.default, before[name], setting.help, setting.also]
            self.data["settings"][name] = _plain(entry)

    @property
    def places(self) -> list[Path]:
        """Where other notebooks' reports are to be read: here; in the lab then of earlier days, and of the batch run."""
        days = sorted(resolve(LAB).glob("[0-9]*"), reverse=True)
        more = [*days, resolve(f"reports/{self.profile}")] if self.lab else []
        return [self.out, *(place for place in more if place != self.out)]

    def figure(self, figure, name: str, caption: str, paper: str = "", artifacts=None) -> None:
        """Show a figure and save it as figures/<name>.svg and .pdf.

        Args:
            name: of the files.
            caption: one phrase, with sizes and seeds.
            paper: the paper's figure it stands beside, "A Figure 10".
            artifacts: those it shows; by default all that were reported before it.
        """
        for kind in ("svg", "pdf"):
            path = self.out / "figures" / f"{_safe(name)}.{kind}"
            # Fonts are chosen when a file is written: TrueType ones, which submission systems take, and text as text.
            with rc_context(STYLE):
                figure.savefig(path, bbox_inches="tight", metadata={"Creator": None})
        self._show(figure, "figures", name, caption, paper, artifacts)

    def table(
        self,
        table,
        name: str,
        caption: str,
        paper: str = "",
        digits: int = 4,
        artifacts=None,
        best: dict[str, str] | None = None,
    ) -> None:
        """Show a pandas table and save it as tables/<name>.csv and .tex.

        Args:
            name, caption, paper, artifacts: as for `figure`.
            digits: significant digits of the largest number of a column, whose floats all have as many decimals.
            best: {column: "max" or "min"}: what is best in it stands in bold.
        """
        base = self.out / "tables" / _safe(name)
        write_csv(table, base.with_suffix(".csv"))
        shown, bold = tex.cells(table, digits), tex.best_cells(table, best or {})
        base.with_suffix(".tex").write_text(tex.tabular(table, shown, caption, name, bold))
        # A Styler escapes nothing by itself, and class names come from folders that anyone may have named.
        styled = shown.style.hide(axis="index").format(escape="html")
        styled = styled.format_index(escape="html", axis="columns")
        for column, rows in bold.items():
            styled = styled.set_properties(subset=(rows, [column]), **{"font-weight": "bold"})
        self._show(styled, "tables", name, caption, paper, artifacts)

    def _show(self, thing, kind: str, name: str, caption: str, paper: str, artifacts) -> None:
        """Note and display a figure or table; its metadata lets the page give it a number, a caption and its keys."""
        from IPython.display import Markdown, display

        keys = [known["key"] for known in self.data["artifacts"]]
        if artifacts is not None:
            keys = [artifact.key for artifact in artifacts]
        entry = {"name": name, "caption": caption, "paper": paper, "keys": keys}
        self.data[kind].append(entry)
        display(thing, metadata={"dfkd": {"kind": kind, **entry}})
        beside = f" (beside {paper})" if paper else ""
        display(Markdown(f"*{caption}*{beside}"), metadata={"dfkd": {"kind": "caption"}})

    def metric(self, name: str, value) -> None:
        """Note one number, string, or list of them for results.json; NaN and infinity become None."""
        self.data["metrics"][name] = _plain(value)

    def fallback(self, *missing: str) -> None:
        """Say in red, here and on every page of these results, what was asked for and is not shown; "" says nothing."""
        from IPython.display import Markdown, display

        if text := "; ".join(filter(None, missing)):
            self.metric("fallback", text)
            shown = Markdown(f'<b style="color: #b00020">{html.escape(text)}</b>')
            display(shown, metadata={"dfkd": {"kind": "caption"}})

    def artifact(self, *artifacts: Artifact) -> None:
        """Note artifacts that the notebook made or found, with what they read."""
        for a in artifacts:
            if a.key not in [known["key"] for known in self.data["artifacts"]]:
                record = {name: getattr(a, name) for name in ARTIFACT}
                self.data["artifacts"].append({**record, "code": a.manifest.get("code", {})})

    def save(self) -> Path:
        """Write metrics/<notebook>.json and return its path; in the lab its parameters too, for papermill's -f."""
        path = self.out / "metrics" / f"{self.notebook}.json"
        ended = {
            "peak_memory_mb": _peak_memory(),
            "seconds": round(time.perf_counter() - self.start, 2),
        }
        save_json(path, {"notebook": self.notebook, "profile": self.profile, **self.data, **ended})
        if self.lab:  # JSON is YAML
            parameters = {"preset": self.profile, "overrides": self.overrides}
            save_json(self.out / f"{self.notebook}.yaml", parameters)
        return path


def frechet_table(variants: dict[str, list[float]], data: str, features: str, images: int):
    """A Table 2: Fréchet distance of each variant, mean and 95 % interval over seeds, the paper's FID beside it.

    Args:
        variants: {"vanilla": [one distance a seed], "augmented": [...]}.
        features: what space the distances are in.
        images: generated images behind each distance.
    """
    rows = []
    for name, values in variants.items():
        mean, half = shown_interval(values)
        rows.append(
            {
                "generator": name,
                "data": data,
                "Fréchet distance": mean,
                "± 95 %": half,
                "seeds": len(values),
                "images": images,
                "features": features,
                "paper's FID (Inception)": paper_number(data, f"frechet_{name}")[0],
            }
        )
    return pd.DataFrame(rows)


def accuracy_table(rows: list[tuple[str, str, list[Artifact]]], data: str):
    """A Tables 4, 5: accuracy of teacher and student by what they were trained on, the paper's beside it.

    Args:
        rows: ("teacher" or "student", "real" or "synthetic", one artifact a seed); a single one has the interval of its
            test sample instead of that over seeds.
    """
    table = []
    for who, source, artifacts in rows:
        first = artifacts[0]
        values = [100 * artifact.metrics["accuracy"] for artifact in artifacts]
        accuracy = interval_text(values)
        if len(values) == 1:
            total = len(test_logits(first)[1])
            low, high = accuracy_interval(round(values[0] * total / 100), total)
            accuracy += f" [{100 * low:.2f}, {100 * high:.2f}]"
        paper, _ = paper_number(data, f"{who}_{source}_accuracy")
        table.append(
            {
                "model": f"{who} ({display_name(first.settings['model'])})",
                "trained on": source,
                "test accuracy (%)": accuracy,
                "paper (%)": paper and 100 * paper,
                "seeds": len(values),
                "images": first.metrics["train_images"] or "not recorded",
                "epochs": first.settings["config"].get("epochs") or "not recorded",
                "parameters": first.metrics["parameters"],
            }
        )
    return pd.DataFrame(table)


def scores_table(rows: list[tuple[str, str, list[Artifact]]]):
    """Top-1, top-5, macro precision, recall and F1 (%) as mean ± 95 % interval over seeds, and what the model costs.

    Args:
        rows: as for `accuracy_table`.
    """
    table = []
    for who, source, artifacts in rows:
        each = [scores(artifact) for artifact in artifacts]
        texts = {
            shown: interval_text([100 * one[key] for one in each]) for key, shown in SCORES.items()
        }
        cost = {"GFLOPs": gigaflops(artifacts[0]), "parameters": artifacts[0].metrics["parameters"]}
        table.append({"model": who, "trained on": source, **texts, **cost})
    return pd.DataFrame(table)


def mean_and_band(values: dict[str, list[list[float]]], percent: bool = False) -> tuple[dict, dict]:
    """({variant: means}, {variant: band}) of [place][seed] values, as `plots.curves` takes them.

    A band is the 95 % interval, {"low", "high"}; of two seeds their values, {"seeds": [seed][place]}; of one there is none.
    `percent`: ends stay between 0 and 100.
    """
    means, bands = {}, {}
    for name, rows in values.items():
        pairs = [shown_interval(row) for row in rows]
        means[name] = [mean for mean, _ in pairs]
        if all(math.isfinite(half) for _, half in pairs):
            ends = [percent_interval(m, h) if percent else (m - h, m + h) for m, h in pairs]
            bands[name] = {"low": [low for low, _ in ends], "high": [high for _, high in ends]}
        elif min(map(len, rows)) > 1:
            bands[name] = {"seeds": [list(seed) for seed in zip(*rows, strict=True)]}
    return means, bands


def accuracies_by(table, name: str, value: str) -> dict[str, dict]:
    """{group: {"seeds", "low", "high"}} of a column of percent of a table with one line a run, as `plots.accuracies` takes it."""
    found = {}
    for group, values in table.groupby(name, sort=False)[value]:
        low, high = percent_interval(*shown_interval(values.tolist()))
        found[group] = {"seeds": values.tolist(), "low": low, "high": high}
    return found


def accuracy_by_share(runs: dict[str, list[list[list[Artifact]]]], shares: list[float], pool: int):
    """B's figure: ({variant: mean accuracy (%) a share}, {variant: band}, the table with paired differences).

    Args:
        runs: {variant: [share][seed] → stages, the last being the result}; the second variant is the baseline.
        shares: of the pool, 0..1. pool: images.
    """
    values = {
        name: [[100 * stages[-1].metrics["accuracy"] for stages in share] for share in rows]
        for name, rows in runs.items()
    }
    means, bands = mean_and_band(values, percent=True)
    (first, a), (second, b) = values.items()
    table = []
    for i, share in enumerate(shares):
        gap = paired_difference(b[i], a[i])
        few, low, high = gap["pairs"] < FEWEST, gap["low"], gap["high"]
        better = first if low > 0 else second if high < 0 else ""
        result = f"n = {gap['pairs']}" if few else f"{better} better" if better else "no difference"
        table.append(
            {
                "share (%)": 100 * share,
                "images": round(share * pool),
                f"{first} (%)": means[first][i],
                f"{second} (%)": means[second][i],
                "difference": gap["difference"],
                "low": math.nan if few else low,
                "high": math.nan if few else high,
                "seeds": gap["pairs"],
                "result": result,
            }
        )
    return means, bands, pd.DataFrame(table)


def over_seeds(
    histories: dict[str, list[list[dict]]], key: str, times: float = 1.0
) -> tuple[dict, dict]:
    """({variant: mean over seeds per epoch}, {variant: its band}) of one entry of histories, times a factor: 100 for percent."""
    values = {
        name: [[times * row[key] for row in rows] for rows in zip(*runs, strict=True)]
        for name, runs in histories.items()
    }
    return mean_and_band(values, percent=times == 100)


def over(seeds: Sequence[int]) -> str:
    """Seeds in a caption: `mean and 95 % interval over seeds 0,1,2`, of fewer than three the mean alone."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    what = "mean and 95 % interval" if len(seeds) >= FEWEST else "mean"
    return f"{what} over seeds {','.join(map(str, seeds))}"


def loss_names(histories: dict[str, list[list[dict]]]) -> dict[str, str]:
    """{key in a history: title} of every loss that histories hold, for `plots.loss_components`; a loss of the user's own
    has its name for a title."""
    titles = loss_titles()
    other = {"epoch", "lr", "seconds", "images_per_second", "loss", "test_accuracy"}
    keys = (key for runs in histories.values() for rows in runs for row in rows for key in row)
    return {key: titles.get(key, key) for key in dict.fromkeys(keys) if key not in other}


def confusion_counts(logits, labels):
    """(K, K) counts, rows true, columns predicted, from logits (N, K) and labels (N,)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels.numpy(), logits.argmax(1).numpy(), labels=range(logits.shape[1]))


def verdict(difference: dict, what: str, lower_is_better: bool = True) -> str:
    """One honest sentence about a paired difference b − a: its sign, its interval, and whether that excludes 0."""
    low, high, mean = difference["low"], difference["high"], difference["difference"]
    if difference["pairs"] < FEWEST:
        return f"{what}: difference {mean:+.3g}, n = {difference['pairs']}: too few seeds to conclude anything."
    span = (
        f"{mean:+.3g}, 95 % interval {low:+.3g} to {high:+.3g}, {difference['pairs']} seeds, "
        f"p = {difference['p']:.2g}"
    )
    if low <= 0 <= high:
        return f"{what}: no significant difference ({span})."
    better = (mean < 0) == lower_is_better
    return f"{what}: {'better' if better else 'worse'} ({span})."


def _peak_memory() -> float:
    """The most memory that this process has used so far, in MB."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return round(psutil.Process().memory_info().peak_wset / 1e6, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def _safe(name: str) -> str:
    if not is_file_name(name):
        raise WorkbenchError(
            "a figure or table has a name that is no file name",
            got=name,
            expected="letters, digits, _ . -",
            fix="rename it",
        )
    return name


def write_csv(table, path: Path) -> None:
    """Write a pandas table as CSV whose cells no spreadsheet takes for formulas."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.rename(columns=_not_a_formula).map(_not_a_formula).to_csv(path, index=False)


def _not_a_formula(cell):
    """A cell, with an apostrophe before what a spreadsheet would compute: names of classes come from anyone's folders."""
    formula = isinstance(cell, str) and re.match(r"[=@\t\r]|[+-].*[(|!]", cell, re.DOTALL)
    return f"'{cell}" if formula else cell


def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
