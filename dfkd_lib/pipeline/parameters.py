"""What a notebook may be told: its `parameters` cell, read and checked without starting a kernel.

The cell is plain Python, one scalar a line, the default first and what may be given in the comment:

    epochs = 3            # passes over the training images; 1..1000
    lr = 7.5e-4           # learning rate of AdamW; 0..1
    teacher = "shipped"   # where the teacher comes from; one of shipped|train
    seeds = "0,1,2"       # seeds of the repeats; list of 0..1000000
    features = "lenet"    # the network that gives the features

The comment is `# help text; rule`, and the rule is what follows the last semicolon:

    a..b            a number from a to b, both included; either end may be left out (`1..` or `..0.5`)
    one of x|y|z    one of these words or numbers
    list of RULE    comma-separated values, each of which obeys RULE (at least one)

No rule means any value of the default's type. The type is the default's: int, float (an int will do), str or bool.
"""

import ast
import difflib
import io
import math
import re
import shlex
import tokenize
from dataclasses import dataclass
from pathlib import Path

from dfkd_lib import presets
from dfkd_lib.core import WorkbenchError, is_number, printable
from dfkd_lib.profiles import PROFILES

NUMBER = r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[-+]?\d+)?"
RANGE = re.compile(rf"^({NUMBER})?\s*\.\.\s*({NUMBER})?$", re.IGNORECASE)
# The pipeline sets these itself, the same for every notebook.
OWN = {
    "profile": "--profile",
    "preset": "--profile",
    "out_dir": "--out",
    "artifacts_dir": "--artifacts",
    "interactive": None,
}


@dataclass(frozen=True)
class Rule:
    """The values a parameter may take: a range, a choice, or a comma-separated list of either."""

    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    many: bool = False

    @classmethod
    def parse(cls, text: str) -> "Rule | None":
        """The rule written as `a..b`, `one of x|y` or `list of ...`; None if the text is none of these."""
        text = text.strip()
        if text.startswith("list of "):
            inner = (
                None
                if text.startswith("list of list of ")
                else cls.parse(text.removeprefix("list of "))
            )
            return None if inner is None else cls(inner.low, inner.high, inner.choices, many=True)
        if text.startswith("one of "):
            return cls(
                choices=tuple(word.strip() for word in text.removeprefix("one of ").split("|"))
            )
        if "|" in text and "list" not in text:
            return cls(choices=tuple(word.strip() for word in text.split("|")))
        match = RANGE.match(text)
        if not match or match.group(0).strip() == "..":
            return None
        return cls(*(None if end is None else float(end) for end in match.groups()))

    def __str__(self) -> str:
        if self.choices:
            text = "one of " + " | ".join(self.choices)
        else:
            text = "..".join(
                "" if end is None else f"{int(end)}" if end.is_integer() else f"{end:g}"
                for end in (self.low, self.high)
            )
        return f"a comma-separated list of {text}" if self.many else text

    def allows(self, value: object) -> bool:
        """Whether a value of the right type obeys the rule."""
        if self.many:
            one = Rule(self.low, self.high, self.choices)
            return all(one.allows(word) for word in split_list(value))
        if self.choices:
            return str(value) in self.choices
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return False
        return is_number(
            number,
            -math.inf if self.low is None else self.low,
            math.inf if self.high is None else self.high,
        )


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell: name, default, help text and the rule its values obey."""

    notebook: str
    name: str
    default: object
    help: str = ""
    rule: Rule | None = None

    @property
    def kind(self) -> str:
        return type(self.default).__name__

    @property
    def expected(self) -> str:
        return f"{self.kind}, {self.rule}" if self.rule else self.kind

    def read(self, text: str) -> object:
        """The value that a command-line word stands for, checked."""
        value: object = text
        if isinstance(self.default, bool):
            value = {"true": True, "false": False}.get(text.strip().lower(), text)
        elif isinstance(self.default, (int, float)):
            for number in (int, float):
                try:
                    value = number(text)
                    break
                except ValueError:
                    continue
        return self.check(value)

    def check(self, value: object) -> object:
        """The value as the notebook will get it; WorkbenchError if its type is wrong or the rule forbids it."""
        if isinstance(self.default, float) and type(value) is int and is_number(value):
            value = float(value)
        if type(value) is not type(self.default):
            self._refuse("has the wrong type", value)
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse("must be a finite number", value)
        if isinstance(value, str) and not printable(value):
            self._refuse("holds a control character", value)
        if self.rule and not self.rule.allows(value):
            self._refuse("cannot have this value", value)
        if self.rule and self.rule.many and all(map(is_whole, split_list(self.default))):
            if not all(map(is_whole, split_list(value))):
                self._refuse("lists whole numbers", value)
        return value

    def _refuse(self, what: str, value: object) -> None:
        near = nearest(str(value), self.rule.choices) if self.rule and self.rule.choices else None
        fix = (
            f"did you mean '{near}'?"
            if near
            else f"{self.help or self.name}; its default is {self.default!r}"
        )
        raise WorkbenchError(
            f"parameter '{self.name}' of notebook {self.notebook} {what}",
            expected=self.expected,
            got=f"{value!r} ({type(value).__name__})",
            fix=fix,
        )


def split_list(value: object) -> list[str]:
    """The words of a comma-separated list."""
    return [word.strip() for word in str(value).split(",")]


def is_whole(word: str) -> bool:
    """Whether a word is a whole number."""
    return re.fullmatch(r"[-+]?\d+", word) is not None


def nearest(name: str, names) -> str | None:
    """The most similar of the right names, or None if none is close."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)), None)


def parse_cell(source: str, notebook: str) -> dict[str, Parameter]:
    """The parameters that the source of a `parameters` cell declares, in order.

    Raises:
        WorkbenchError: if a line is not `name = scalar`.
    """
    try:
        comments = {
            token.start[0]: token.string.lstrip("# ").strip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        statements = ast.parse(source).body
    except (
        SyntaxError,
        tokenize.TokenError,
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:  # of Python's parser
        raise WorkbenchError(
            "a parameters cell is not Python",
            where=notebook,
            got=error,
            expected="`name = value`, one a line",
            fix="correct the cell in the notebook",
        ) from None
    found = {}
    for statement in statements:
        try:
            (target,) = statement.targets
            name, default = target.id, ast.literal_eval(statement.value)
        except (AttributeError, ValueError, TypeError, RecursionError, MemoryError):
            name, default = source.splitlines()[statement.lineno - 1], None
        if (
            not isinstance(default, (bool, int, float, str))
            or isinstance(default, float)
            and not is_number(default)
        ):
            raise WorkbenchError(
                "a parameters cell holds something else than `name = scalar`",
                got=name,
                where=notebook,
                expected="int, float, str or bool; lists as comma-separated strings",
                fix="write one `name = value` a line, and nothing else",
            )
        comment = comments.get(statement.lineno, "")
        text, semicolon, tail = comment.rpartition(";")
        rule = Rule.parse(tail) if semicolon else None
        if rule is None:
            text = comment
        found[name] = Parameter(notebook, name, default, text.strip(), rule)
    return found


def read_notebook(path: Path) -> dict[str, Parameter]:
    """The parameters of the notebook at `path`, from its one cell tagged `parameters`; {} if it has none."""
    import nbformat

    try:
        cells = nbformat.read(path, as_version=4).cells
        (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
        return parse_cell(cell.source, path.stem)
    except ValueError as error:
        if isinstance(error, WorkbenchError):
            raise
        raise WorkbenchError(
            "a notebook cannot be read",
            where=path,
            got=error,
            expected="a notebook of format 4 with one cell tagged 'parameters'",
            fix="restore the file from the repository",
        ) from None


def find_notebook(word: str, names: list[str]) -> str:
    """The notebook that a word such as `10` or `10_attention` begins; WorkbenchError if none or several."""
    found = [name for name in names if name == word] or [
        name for name in names if word and name.startswith(word)
    ]
    if len(found) == 1:
        return found[0]
    near = nearest(word, names) or nearest(word, [name.partition("_")[2] for name in names])
    near = next((name for name in names if near and name.endswith(near)), None)
    raise WorkbenchError(
        f"notebook '{word}' is {'not clear' if found else 'unknown'}",
        got=word,
        expected="one of " + ", ".join(found or names),
        fix=f"did you mean {near}?" if near else "its first letters or its number are enough",
    )


def find_parameter(word: str, known: dict[str, Parameter], notebook: str) -> Parameter:
    """The parameter of that name; WorkbenchError with the nearest right name if there is none."""
    if word not in known:
        near = nearest(word, known)
        raise WorkbenchError(
            f"notebook {notebook} has no parameter '{word}'",
            got=word,
            expected="one of " + ", ".join(known),
            fix=f"did you mean '{near}'?" if near else "python -m dfkd_lib list shows all of them",
        )
    return known[word]


def notebook_of(setting: str, names: list[str]) -> str:
    """The notebook that `notebook.parameter=value` is about; WorkbenchError if it is not of that form, or none is."""
    target, equals, _ = setting.partition("=")
    word, dot, _ = target.strip().partition(".")
    if not (equals and dot):
        raise WorkbenchError(
            "--set could not be read",
            expected="notebook.parameter=value, as in 10.seed=1",
            got=setting,
            fix="put quotes around a value with spaces"
            if dot or not equals
            else f"say of which notebook, as in 30.{setting.strip()}",
        )
    return find_notebook(word, names)


def resolve(
    known: dict[str, dict[str, Parameter]],
    methods: dict[str, str],
    preset: str,
    settings: list[str],
) -> dict[str, dict]:
    """Every notebook's parameters: its own defaults, changed by `notebook.name=value`; settings it has no parameter for join
    its `overrides`. Each notebook's configuration is made once, which checks all of it.

    Args:
        known: each notebook's declared parameters. methods: the method of each that has one.

    Raises:
        WorkbenchError: on the first unknown notebook or name, wrong type or impossible value.
    """
    values = {
        notebook: {name: p.default for name, p in declared.items() if name not in OWN}
        for notebook, declared in known.items()
    }
    for notebook, changed in PROFILES.get(preset, {}).items():
        for name, value in changed.items() if notebook in known else ():
            values[notebook][name] = find_parameter(name, known[notebook], notebook).check(value)
    for setting in settings:
        notebook, (target, _, text) = notebook_of(setting, list(known)), setting.partition("=")
        name, declared = target.strip().partition(".")[2], known[notebook]
        if name in OWN:
            raise WorkbenchError(
                f"'{name}' is set by the pipeline, the same for every notebook",
                got=setting,
                fix=f"use {OWN[name]}" if OWN[name] else "leave it out",
            )
        if notebook in methods and name != "overrides":
            name = _declared_as(name, declared, methods[notebook], notebook)
        if name in declared:
            values[notebook][name] = declared[name].read(text)
        elif notebook in methods:
            values[notebook]["overrides"] += f" {shlex.quote(f'{name}={text}')}"
        else:
            find_parameter(name, declared, notebook)
    for notebook, method in methods.items():
        _configured(notebook, method, {"preset": preset, **values[notebook]})
    return values


def _declared_as(name: str, declared: dict[str, Parameter], method: str, notebook: str) -> str:
    """The declared parameter that stands for a setting, else the setting's dotted name; WorkbenchError if it is neither."""
    if name in declared:
        return name
    tree = presets.config_class(method)()
    try:
        full = tree.resolve(name)
    except WorkbenchError as error:
        words = [*declared, *tree.settings()]
        near = nearest(name, declared) or presets.nearest(name, words)
        raise WorkbenchError(
            f"notebook {notebook} has no parameter or setting '{name}'",
            got=name,
            expected=f"one of {', '.join(declared)}, or a setting: {error.expected}",
            fix=f"did you mean '{near}'?"
            if near
            else f"dfkd list {notebook[:2]} shows all of them",
        ) from None
    same = [
        word
        for word in declared
        if word not in OWN and tree.has(word) and tree.resolve(word) == full
    ]
    return same[0] if same else full


def _configured(notebook: str, method: str, values: dict) -> None:
    try:
        presets.of_parameters(method, values)
    except WorkbenchError as error:
        raise WorkbenchError(
            f"notebook {notebook}: {error.what}",
            expected=error.expected,
            got=error.got,
            where=error.where,
            fix=error.fix,
        ) from None
