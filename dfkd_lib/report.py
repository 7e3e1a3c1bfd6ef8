"""What a notebook leaves behind: figures (SVG, PDF), tables (CSV, LaTeX), metrics, and the artifacts it used."""

import math
import re
import time
from pathlib import Path

from dfkd_lib.artifacts import Artifact, resolve, save_json
from dfkd_lib.errors import WorkbenchError

# The papers' own numbers, to stand beside ours: METHODS.md A, B and C. Shares of 1, but for distances.
PAPER = {
    "A Table 2": {("mnist", "vanilla"): 27.0, ("mnist", "augmented"): 23.0, ("cifar10", "vanilla"): 76.94,
                  ("cifar10", "augmented"): 70.37, ("cifar100", "vanilla"): 83.27, ("cifar100", "augmented"): 77.16},
    "A Table 4": {("mnist", "teacher", "real"): 0.9875, ("mnist", "student", "real"): 0.9775,
                  ("mnist", "teacher", "synthetic"): 0.9732, ("mnist", "student", "synthetic"): 0.9673},
    "A Table 5": {("cifar10", "teacher", "real"): 0.8951, ("cifar10", "student", "real"): 0.8777,
                  ("cifar10", "teacher", "synthetic"): 0.8432, ("cifar10", "student", "synthetic"): 0.8237},
}


class Report:
    """Collects a notebook's results and writes them below `out_dir`.

    Args:
        notebook: its name, "20_gan_fid". out_dir: folder of the report; relative to the repository root.
        profile: the profile it ran under.

    Raises:
        WorkbenchError: if the folder cannot be made.
    """

    def __init__(self, notebook: str, out_dir: str | Path, profile: str = "quick"):
        self.notebook, self.profile, self.out = notebook, profile, resolve(out_dir)
        self.start = time.perf_counter()
        self.data = {"metrics": {}, "figures": [], "tables": [], "artifacts": []}
        try:
            for part in ("figures", "tables", "metrics"):
                (self.out / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkbenchError("the report folder cannot be written to", got=error, where=self.out,
                                 mend="choose another out_dir") from None

    def figure(self, figure, name: str, caption: str, paper: str = "") -> None:
        """Show a figure and keep it as figures/<name>.svg and .pdf; `paper` names the figure it stands beside."""
        for kind in ("svg", "pdf"):
            figure.savefig(self.out / "figures" / f"{_safe(name)}.{kind}", bbox_inches="tight", metadata={"Creator": None})
        self.data["figures"].append({"name": _safe(name), "caption": caption, "paper": paper})
        _show(figure)
        _say(caption, paper)

    def table(self, table, name: str, caption: str, paper: str = "", digits: int = 4) -> None:
        """Show a pandas table and keep it as tables/<name>.csv and .tex, floats with `digits` significant digits."""
        base = self.out / "tables" / _safe(name)
        table.to_csv(base.with_suffix(".csv"), index=False)
        shown = table.map(lambda v: f"{v:.{digits}g}" if isinstance(v, float) and math.isfinite(v) else
                          "–" if isinstance(v, float) or v is None else v)
        base.with_suffix(".tex").write_text(shown.to_latex(index=False, escape=True, caption=caption, label=f"tab:{name}"))
        self.data["tables"].append({"name": _safe(name), "caption": caption, "paper": paper})
        _show(shown.style.hide(axis="index"))
        _say(caption, paper)

    def metric(self, name: str, value) -> None:
        """Keep one number, string, or list of them for results.json; NaN and infinity are kept as None."""
        self.data["metrics"][name] = _plain(value)

    def artifact(self, *artifacts: Artifact) -> None:
        """Note artifacts that the notebook made or found, with what they read."""
        for a in artifacts:
            if a.key not in [known["key"] for known in self.data["artifacts"]]:
                self.data["artifacts"].append({"key": a.key, "stage": a.stage, "seconds": a.seconds, "cached": a.cached,
                                               "ledger": a.ledger, "settings": a.settings, "parents": a.parents})

    def save(self) -> Path:
        """Write metrics/<notebook>.json and return its path."""
        path = self.out / "metrics" / f"{self.notebook}.json"
        save_json(path, {"notebook": self.notebook, "profile": self.profile, **self.data,
                         "peak_memory_mb": _peak_memory_mb(), "seconds": round(time.perf_counter() - self.start, 2)})
        return path


def _safe(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise WorkbenchError("a figure or table has a name that is no file name", got=name, expected="letters, digits, _ . -")
    return name


def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(thing) -> None:
    from IPython.display import display

    display(thing)


def _say(caption: str, paper: str) -> None:
    from IPython.display import Markdown, display

    display(Markdown(f"*{caption}*" + (f" (beside {paper})" if paper else "")))


def _peak_memory_mb() -> float:
    import sys

    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return round(psutil.Process().memory_info().peak_wset / 1e6, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)
