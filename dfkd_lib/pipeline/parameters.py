"""What a notebook may be given: its `parameters` cell, read without a kernel, and the settings of its method.

The cell is plain Python, one scalar a line:

    seeds = ""            # seeds of the repeats, empty: the preset's
    temperature = 4.0     # T of the distillation loss

A parameter that is a setting of the notebook's method (`metadata.dfkd.method`) has type, range and help from the method's
configuration. Any other takes values of its default's type, and its comment is its help.
"""

import ast
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dfkd_lib import presets
from dfkd_lib.core import Config, WorkbenchError, is_number, nearest, printable
from dfkd_lib.pipeline.known import Known, known
from dfkd_lib.pipeline.modules import all_code
from dfkd_lib.pipeline.values import added_models, check_values

# The pipeline sets these itself, the same for every notebook.
OWN = {"preset": "--profile", "out_dir": "--out", "artifacts_dir": "--artifacts", "interactive": ""}


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell: its name, its default and its comment."""

    name: str
    default: bool | int | float | str
    help: str = ""

    def read(self, text: str) -> object:
        """A value of the default's type from text; WorkbenchError if it is none."""
        kind = type(self.default)
        try:
            value = TypeAdapter(kind, config={"allow_inf_nan": False}).validate_strings(text)
        except ValidationError:
            value = None
        if value is None or not printable(text):
            raise WorkbenchError(
                f"the parameter '{self.name}' cannot have this value",
                expected=f"{kind.__name__}, finite and printable",
                got=repr(text),
                fix=f"{self.help or self.name}; its default is {self.default!r}",
            )
        return value


@dataclass(frozen=True)
class Declared:
    """What one notebook may be given: the parameters of its cell, and the settings of its method ("": none).

    Args:
        added: gives the models that its code adds, see `added_models`.
    """

    notebook: str
    parameters: dict[str, Parameter]
    method: str = ""
    added: Callable[[], set[str] | None] = set

    @cached_property
    def tree(self) -> Config:
        return presets.config_class(self.method)() if self.method else Config()

    @cached_property
    def known(self) -> Known:
        return known(self.method)

    def setting(self, name: str) -> str | None:
        """The dotted setting that a parameter stands for; None of one that is no setting."""
        is_setting = name not in presets.NOT_SETTINGS and self.known.names.has(name)
        return self.known.names.resolve(name) if is_setting else None

    def help(self, name: str) -> str:
        """Help and range of a parameter, from the setting that it stands for where there is one."""
        full = self.setting(name)
        if full is None:
            return self.parameters[name].help
        help, rule = (self.known.settings[full][part] for part in ("help", "rule"))
        return f"{help} [{rule}]" if rule else help

    def check_names(self, names: Iterable[str]) -> None:
        """Raise WorkbenchError on a name that is no parameter and no setting, before anything large is imported."""
        with self._named():
            for name in names:
                if name in OWN or name not in self.parameters:
                    self._resolve(name)

    def values(self, preset: str, changes: list[tuple[str, str]]) -> dict[str, object]:
        """The parameters, the pipeline's own left out: the defaults, changed by (name, text).

        Settings that are no parameter join `overrides`. The configuration is made once, which checks all of it; so are models,
        data sets and files that values name.

        Raises:
            WorkbenchError: on an unknown name, a wrong type or an impossible value.
        """
        found = {name: p.default for name, p in self.parameters.items() if name not in OWN}
        stands = {self.setting(name): name for name in found}
        with self._named():
            for name, text in changes:
                if name not in found:
                    full = self._resolve(name)
                    name = stands.get(full, full)
                if name not in found:
                    found["overrides"] += f" {shlex.quote(f'{name}={text}')}"
                elif (full := self.setting(name)) is None:
                    found[name] = self.parameters[name].read(text)
                elif isinstance(found[name], str):
                    found[name] = text
                else:
                    found[name] = self.tree.override({full: text}).flat()[full]
            if self.method:
                config = presets.of_parameters(self.method, {"preset": preset, **found})
                check_values(self.method, config, self.added())
        return found

    def _resolve(self, name: str) -> str:
        """The dotted setting of that name; WorkbenchError with the nearest right name if there is none."""
        if name in OWN:
            raise WorkbenchError(
                f"'{name}' is set by the pipeline, the same for every notebook",
                got=name,
                fix=f"use {OWN[name]}" if OWN[name] else "leave it out",
            )
        try:
            return self.known.names.resolve(name)
        except WorkbenchError as error:
            near = nearest(name, [*self.parameters, *self.known.settings])
            raise WorkbenchError(
                f"there is no parameter or setting '{name}'",
                got=name,
                expected=f"one of {', '.join(self.parameters)}, or a setting: {error.expected}",
                fix=f"did you mean '{near}'?" if near else f"see dfkd list {self.notebook[:2]}",
            ) from None

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors raised inside name the notebook."""
        try:
            yield
        except WorkbenchError as error:
            parts = {name: getattr(error, name) for name in ("expected", "got", "where", "fix")}
            raise WorkbenchError(f"notebook {self.notebook}: {error.what}", **parts) from None


def parse_cell(source: str, notebook: str) -> dict[str, Parameter]:
    """The parameters that the source of a `parameters` cell declares, in order.

    Raises:
        WorkbenchError: if a line is not `name = scalar`.
    """
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise WorkbenchError(
            "a parameters cell is not Python",
            where=notebook,
            got=error,
            expected="`name = value`, one a line",
            fix="correct the cell in the notebook",
        ) from None
    found, lines = {}, re.split(r"\r\n?|\n", source)
    for statement in statements:
        try:
            (target,) = statement.targets
            name, default = target.id, ast.literal_eval(statement.value)
        except (AttributeError, ValueError, TypeError, RecursionError, MemoryError):
            name, default = lines[statement.lineno - 1], None
        if not (isinstance(default, bool | str) or is_number(default)):
            raise WorkbenchError(
                "a parameters cell holds something else than `name = scalar`",
                got=name,
                where=notebook,
                expected="int, float, str or bool; lists as comma-separated strings",
                fix="write one `name = value` a line, and nothing else",
            )
        rest = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
        found[name] = Parameter(name, default, rest.partition("#")[2].strip("# "))
    return found


def read_notebook(path: Path) -> Declared:
    """What the notebook at `path` may be given, from its one cell tagged `parameters` and the method it names.

    Raises:
        WorkbenchError: if it cannot be read, or lacks a parameter that the pipeline sets.
    """
    try:
        content = json.loads(path.read_bytes())  # nbformat would take seconds to import
        cells = [c for c in content["cells"] if "parameters" in c["metadata"].get("tags", [])]
        (source,) = ["".join(cell["source"]) for cell in cells]
        method = content["metadata"].get("dfkd", {}).get("method", "")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WorkbenchError(
            "a notebook cannot be read",
            where=path,
            got=error,
            expected="a notebook of format 4 with one cell tagged 'parameters'",
            fix="restore the file from the repository",
        ) from None
    parameters = parse_cell(source, path.stem)
    missing = {*OWN, *(["overrides"] if method else [])} - set(parameters)
    if missing:
        raise WorkbenchError(
            f"notebook {path.stem} has no parameter '{min(missing)}'",
            expected=", ".join(sorted(missing)),
            where=path,
            fix="declare it in the parameters cell, as the other notebooks do",
        )
    code = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    return Declared(
        path.stem, parameters, method, lambda: added_models(all_code(code, path.parent))
    )


def find_notebook(word: str, names: list[str]) -> str:
    """The notebook that a word such as `10` or `10_attention` begins; WorkbenchError if none or several."""
    found = [name for name in names if word and name.startswith(word)]
    if word in names or len(found) == 1:
        return word if word in names else found[0]
    ends = {name.partition("_")[2]: name for name in names}
    near = nearest(word, [*names, *ends])
    raise WorkbenchError(
        f"notebook '{word}' is {'not clear' if found else 'unknown'}",
        got=word,
        expected="one of " + ", ".join(found or names),
        fix=f"did you mean {ends.get(near, near)}?" if near else "its number is enough, as in 10",
    )


def parse_setting(text: str, names: list[str]) -> tuple[str, str, str]:
    """(notebook, name, text of the value) of `notebook.name=value`; WorkbenchError if it is not of that form."""
    target, equals, value = text.partition("=")
    word, dot, name = target.strip().partition(".")
    if not (equals and dot):
        raise WorkbenchError(
            "--set could not be read",
            expected="notebook.parameter=value, as in 10.seed=1",
            got=text,
            fix="put quotes around a value with spaces"
            if dot or not equals
            else f"name the notebook too, as in 30.{text.strip()}",
        )
    return find_notebook(word, names), name, value
