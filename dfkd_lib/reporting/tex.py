"""LaTeX that any class compiles: tables of booktabs with every character escaped, and a folder of figures for a paper."""

import functools
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dfkd_lib.core import WorkbenchError, one_of, resolve

HEAD = r"""\documentclass{article}
\usepackage{amssymb,booktabs,graphicx,textcomp}
% A table that is wider than the text is made as wide.
\let\plaintabular\tabular \let\endplaintabular\endtabular
\newsavebox{\fitted}
\renewenvironment{tabular}[1]%
  {\begin{lrbox}{\fitted}\plaintabular{#1}}%
  {\endplaintabular\end{lrbox}%
   \ifdim\wd\fitted>\linewidth \resizebox{\linewidth}{!}{\usebox{\fitted}}\else \usebox{\fitted}\fi}
\begin{document}
"""


@functools.cache
def _encoder():
    from pylatexenc.latexencode import UnicodeToLatexEncoder

    return UnicodeToLatexEncoder(
        unknown_char_policy="replace",
        unknown_char_warning=False,
        replacement_latex_protection="braces",
    )


def escaped(text: object) -> str:
    """Text as LaTeX that shows it; a character that LaTeX has no name for is a question mark."""
    return _encoder().unicode_to_latex(" ".join(str(text).split()))


def cells(table: pd.DataFrame, digits: int) -> pd.DataFrame:
    """The table as text: the floats of a column with one number of decimals, what is no number a dash.

    Args:
        digits: significant digits of the largest number of a column; numbers so small that they would be 0 have their own.
    """
    return table.apply(lambda column: _column(column, digits))


def _column(column: pd.Series, digits: int) -> pd.Series:
    finite = [abs(v) for v in column if isinstance(v, float) and math.isfinite(v) and v]
    size = math.floor(math.log10(max(finite))) if finite else 0
    decimals = max(0, digits - 1 - size)
    wide = bool(finite) and (decimals > 6 or min(finite) < 0.5 * 10**-decimals)

    def shown(value: object) -> object:
        if isinstance(value, float):
            if not math.isfinite(value):
                return "–"
            return f"{value:.{digits}g}" if wide else f"{value:.{decimals}f}"
        return "–" if value is None else value

    return column.map(shown)


def best_cells(table: pd.DataFrame, best: dict[str, str]) -> dict[str, list[int]]:
    """{column: places of its best number} for columns whose "max" or "min" is best.

    Raises:
        WorkbenchError: on a column that is not there, or another word.
    """
    found = {}
    for name, which in best.items():
        one_of("column to mark the best of", name, list(table))
        one_of("best of a column", which, ("max", "min"))
        values = pd.to_numeric(table[name], errors="coerce")
        # Of one number, or of numbers all alike, none is the best.
        several = values.nunique() > 1
        found[name] = [i for i, v in enumerate(values) if several and v == getattr(values, which)()]
    return found


def tabular(table: pd.DataFrame, shown: pd.DataFrame, caption: str, label: str, best: dict) -> str:
    """A table environment of booktabs: numbers to the right, the best in bold.

    Args:
        table: with its numbers. shown: the same as text, of `cells`.
        best: of `best_cells`.
    """
    sides = ["r" if pd.api.types.is_numeric_dtype(table[name]) else "l" for name in table]
    written = shown.map(escaped).set_axis(map(escaped, table), axis=1).reset_index(drop=True)
    style = written.style.hide(axis="index")
    for name, rows in best.items():
        style = style.set_properties(subset=(rows, [escaped(name)]), textbf="--rwrap")
    return style.to_latex(
        column_format="".join(sides),
        caption=escaped(caption),
        label=f"tab:{label}",
        position_float="centering",
        hrules=True,
    )


def collect(run: str | Path, out: str | Path, only: Sequence[str] = ()) -> Path:
    """Copy a run's figures (PDF) and tables (LaTeX) under the papers' numbers, with a README.tex that includes them all.

    Args:
        run: folder of a run, reports/quick. out: folder to make.
        only: names of figures and tables; all by default.

    Returns:
        The README.tex.

    Raises:
        WorkbenchError: if the folder holds no run, or a name is none of its.
    """
    run, out = resolve(run), resolve(out)
    pages = [json.loads(path.read_text()) for path in sorted(run.glob("metrics/*.json"))]
    entries = [(kind, entry) for page in pages for kind in KINDS for entry in page[kind]]
    if not entries:
        raise WorkbenchError(
            "there is no run in this folder",
            expected="metrics/<notebook>.json of dfkd run",
            where=run,
            fix="name the folder that a run wrote, reports/quick",
        )
    for name in only:
        one_of("figure or table in this run", name, [entry["name"] for _, entry in entries])
    out.mkdir(parents=True, exist_ok=True)
    parts, taken = [], set()
    for kind, entry in sorted(entries, key=lambda pair: (not pair[1]["paper"], pair[1]["paper"])):
        if only and entry["name"] not in only:
            continue
        suffix = KINDS[kind]
        source = run / kind / f"{entry['name']}{suffix}"
        name = file_name(entry, taken)
        shutil.copyfile(source, out / f"{name}{suffix}")
        parts.append(_included(kind, name, entry))
    readme = out / "README.tex"
    # A page each: LaTeX holds no more than some tens of floats back.
    readme.write_text(HEAD + "\n\\clearpage\n".join(parts) + "\n\\end{document}\n")
    return readme


KINDS = {"figures": ".pdf", "tables": ".tex"}


def file_name(entry: dict, taken: set[str]) -> str:
    """The paper's number of a figure or table as a file name, its own name where it has none; new among `taken`."""
    number = re.sub(r"[^A-Za-z0-9]+", "_", entry["paper"]).strip("_")
    name = f"{number}_{entry['name']}" if number in taken else number or entry["name"]
    taken.add(name)
    return name


def _included(kind: str, name: str, entry: dict) -> str:
    if kind == "tables":
        return rf"\input{{{name}}}"
    beside = f" (beside {entry['paper']})" if entry["paper"] else ""
    return "\n".join(
        [
            r"\begin{figure}",
            r"\centering",
            rf"\includegraphics[width=\linewidth]{{{name}.pdf}}",
            rf"\caption{{{escaped(entry['caption'] + beside)}}}",
            rf"\label{{fig:{entry['name']}}}",
            r"\end{figure}",
        ]
    )
