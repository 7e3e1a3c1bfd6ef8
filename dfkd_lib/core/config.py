"""The base of every configuration: typed, frozen, validated; names, ranges and help read from it by every door.

A configuration is a pydantic class beside the method it configures. Its fields carry the range (`ge=`, `le=`, `Literal`),
the help (`description=`) and the label; nested configurations make a tree whose leaves have dotted names
(`student.epochs`). Presets, notebooks, the command line, grids and widgets read that tree and nothing else.
"""

import difflib
import shlex
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic_core import PydanticUndefined

from dfkd_lib.core.errors import WorkbenchError, is_number, plain, printable

SHOWN = 12  # right names that a refusal lists
SETTING = "the setting '"  # how a refusal of one begins
OPEN = {"low": ">", "high": "<"}  # ends of a range that are no values themselves


def parse_list(value: object) -> object:
    """The parts of "0,1,2", 3 or [0, 1] as a tuple; anything else as it is, for pydantic to refuse."""
    if isinstance(value, str):
        return tuple(read(int, part.strip()) for part in value.split(","))
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    """The values, none of which may be repeated: equal seeds give equal runs, which are no independent evidence."""
    if not values or len(set(values)) < len(values):
        raise ValueError(
            "different whole numbers, at least one: equal seeds are no independent runs"
        )
    return values


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(parse_list), AfterValidator(distinct)]
Side = Annotated[int, Field(ge=0, le=4096)]  # in pixels
Sides = Annotated[tuple[Side, ...], BeforeValidator(parse_list)]


@dataclass(frozen=True)
class Setting:
    """One leaf of a configuration, as widgets, tables and `dfkd list` show it.

    Args:
        name: dotted, from the root. kind: int, float, bool, str or tuple. default: its value in the tree at hand.
        help: one phrase. low, high: the range, None where open. choices: the words allowed, () for any.
        label: for axes and tables; the last part of the name where no other is given. also: another name it goes by.
        optional: whether it may be None. open: "low", "high", the ends that are no values themselves.
    """

    name: str
    kind: type
    default: object
    help: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple = ()
    label: str = ""
    also: str = ""
    optional: bool = False
    open: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        """The values allowed, in words: `1..1000`, `>0..1`, `one of a|b`, `comma-separated numbers`."""
        if self.choices:
            return "one of " + "|".join(map(str, self.choices))
        if self.low is not None or self.high is not None:
            limits = {"low": self.low, "high": self.high}
            ends = [
                "" if limit is None else f"{OPEN[end] if end in self.open else ''}{limit:g}"
                for end, limit in limits.items()
            ]
            return ("comma-separated " if self.kind is tuple else "") + "..".join(ends)
        if self.kind is not tuple:
            return ""
        whole = all(isinstance(value, int) for value in typing.cast(tuple, self.default))
        return f"comma-separated {'whole ' * whole}numbers"


@dataclass(frozen=True)
class Names:
    """The names of a configuration's settings, without their types.

    Args:
        known: the dotted ones. also: {another name: dotted}. mains: {nested configuration: the setting it stands for}.
        where: the configuration's class, for errors.
    """

    known: list[str]
    also: dict[str, str]
    mains: dict[str, str]
    where: str

    def resolve(self, name: str) -> str:
        """The dotted name of the setting that a word stands for; WorkbenchError if none or several."""
        if name in self.mains or name in self.known:
            return self.mains.get(name, name)
        if name in self.also:
            return self.also[name]
        ends = [full for full in self.known if full.endswith(f".{name}")]
        ends = ends or [full for full in self.known if full.replace(".", "_") == name]
        if not ends:
            raise _unknown(name, self.known, self.where, self.also)
        if len(ends) > 1:
            raise WorkbenchError(
                f"the setting '{name}' is not clear",
                expected="one of " + ", ".join(ends),
                got=name,
                where=self.where,
                fix="write the part before the dot too",
            )
        return ends[0]

    def has(self, name: str) -> bool:
        """Whether a word stands for a setting."""
        with suppress(WorkbenchError):
            return bool(self.resolve(name))
        return False


class Config(BaseModel):
    """The base class: frozen, unknown names refused with the nearest right one, finite numbers, printable text.

    Text is read as the field's type wherever it comes from (`"3"`, `"false"`, `"0,1,2"`); a value that would have to be
    changed to fit (2.9 epochs, True images) is refused.

    Raises:
        WorkbenchError: naming the setting, what was expected, what was found and the nearest right name.
    """

    main: ClassVar[str] = ""  # the field that is meant where a nested one is set by its own name
    # {field: another name it goes by}, beside those of the base classes.
    also: ClassVar[dict[str, str]] = {}

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explained(type(self), error) from None

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: object, info: Any) -> object:
        return read(cls.model_fields[info.field_name].annotation, value)

    @field_validator("*", mode="after")
    @classmethod
    def _printable(cls, value: object) -> object:
        if isinstance(value, str) and not printable(value):
            raise ValueError("text in one line, without control characters")
        return value

    def keys(self) -> Iterable[str]:
        """The names of the fields, so that `Maker(**config)` works."""
        return type(self).model_fields.keys()

    def __getitem__(self, name: str) -> object:
        return getattr(self, name)

    def replace(self, **changes: object) -> Self:
        """A copy with these fields changed, validated anew."""
        return type(self)(**{**dict(self), **changes})

    def override(self, changes: str | Mapping[str, object]) -> Self:
        """A copy with settings changed by name: `"student.epochs=10 gan.lam=0"`, or a mapping of such names.

        A name is the dotted one, its last part where only one setting ends so, or the dotted one written with
        underscores (`student_epochs`).

        Raises:
            WorkbenchError: on a name that none or several settings have, and on impossible values.
        """
        pairs = dict(changes) if isinstance(changes, Mapping) else parse_overrides(changes)
        if not pairs:
            return self
        tree: dict = {}
        names = self.names()
        for name, value in pairs.items():
            *parents, leaf = names.resolve(name).split(".")
            place = tree
            for part in parents:
                place = place.setdefault(part, {})
            place[leaf] = value
        return self._changed(tree)

    def _changed(self, tree: dict) -> Self:
        changes = dict(tree)
        for name, value in tree.items():
            nested = getattr(self, name)
            if isinstance(nested, Config) and isinstance(value, dict):
                try:
                    changes[name] = nested._changed(value)
                except WorkbenchError as error:  # names its setting from the root
                    if not error.what.startswith(SETTING):
                        raise
                    what = error.what.replace(SETTING, f"{SETTING}{name}.", 1)
                    raise type(error)(**{**vars(error), "what": what}) from None
        return self.replace(**changes) if changes else self

    def names(self) -> "Names":
        """What a word may stand for."""
        known = self.settings()
        also = {setting.also: full for full, setting in reversed(known.items()) if setting.also}
        mains = {
            name: f"{name}.{nested.main}"
            for name, nested in self
            if isinstance(nested, Config) and nested.main
        }
        return Names(list(known), also, mains, type(self).__name__)

    def resolve(self, name: str) -> str:
        """The dotted name of the setting that a word stands for; WorkbenchError if none or several."""
        return self.names().resolve(name)

    def has(self, name: str) -> bool:
        """Whether a word stands for a setting."""
        return self.names().has(name)

    def settings(self) -> dict[str, Setting]:
        """Every leaf of the tree by its dotted name, with its value here as the default."""
        found: dict[str, Setting] = {}
        kinds = reversed(type(self).__mro__)
        also = {k: other for kind in kinds for k, other in vars(kind).get("also", {}).items()}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Config):
                for inner in value.settings().values():
                    if inner.name == "seed" and "seed" in type(self).model_fields:
                        continue  # one seed for the tree: whoever uses a part of it sets the part's own
                    dotted = f"{name}.{inner.name}"
                    found[dotted] = replace(inner, name=dotted)
            else:
                found[name] = _setting(name, field, value, also.get(name, ""))
        return found

    def flat(self) -> dict[str, object]:
        """{dotted name: value} of every leaf."""
        return {name: setting.default for name, setting in self.settings().items()}

    def as_dict(self) -> dict:
        """The tree as JSON-able values, for keys and manifests."""
        return self.model_dump(mode="json")

    def differences(self, other: "Config") -> dict[str, tuple[object, object]]:
        """{dotted name: (value here, value there)} where two configurations of one class differ."""
        there = other.flat()
        return {k: (v, there.get(k)) for k, v in self.flat().items() if v != there.get(k)}


class NoSuchNames(ValueError):
    """What a validator raises of names that are none of the right ones.

    Args:
        what: such as "makers". unknown: the wrong names. names: the right ones.
    """

    def __init__(self, what: str, unknown: Iterable[str], names: Iterable[str]):
        self.unknown, self.names = list(unknown), list(names)
        super().__init__(f"{what} out of {', '.join(self.names)}")


def parse_overrides(text: str) -> dict[str, str]:
    """{name: text of the value} of `"student.epochs=10 gan.lam=0"`; quotes keep spaces inside a value.

    Raises:
        WorkbenchError: on a word that is not name=value, and on a name given twice.
    """
    try:
        words = shlex.split(text) if isinstance(text, str) else [str(text)]
    except ValueError as error:
        raise WorkbenchError(
            "overrides could not be read",
            got=text,
            expected="name=value name=value",
            fix=f"close the quotes ({error})",
        ) from None
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or name in pairs:
            raise WorkbenchError(
                "overrides could not be read",
                expected="name=value name=value, each name once",
                got=word,
                fix="write them as in student.epochs=10, without spaces round the =",
            )
        pairs[name] = value
    return pairs


def _unknown(name: str, names: list[str], where: str, also: Iterable[str] = ()) -> WorkbenchError:
    near = nearest(name, [*names, *also])
    close = difflib.get_close_matches(name, names, n=SHOWN, cutoff=0.3)
    more = "" if len(names) <= SHOWN else f", … ({len(names)} settings)"
    return WorkbenchError(
        f"there is no setting '{name}'",
        got=name,
        where=where,
        expected="one of " + ", ".join(close if more else names) + more,
        fix=f"did you mean '{near}'?" if near else "dfkd list shows all of them",
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of the right names, compared as a whole and by their last part; None if none is close."""
    ends: dict[str, str] = {}
    for full in names:
        for shape in (full, full.replace(".", "_"), full.rpartition(".")[2]):
            ends.setdefault(shape, full)
    close = difflib.get_close_matches(name, list(ends), n=1, cutoff=0.5)
    return ends[close[0]] if close else None


def one_of(what: str, name: str, names: Iterable[str], expected: str = "") -> str:
    """The name, which must be one of these; WorkbenchError with the nearest, and with all unless `expected` says it shorter."""
    if name not in names:
        near = nearest(str(name), filter(None, names))
        raise WorkbenchError(
            f"there is no {what} '{name}'",
            expected=expected or "one of " + ", ".join(filter(None, names)),
            got=name,
            fix=f"did you mean '{near}'?" if near else "choose one of them",
        )
    return name


@cache
def _reader(annotation: Any) -> TypeAdapter:
    return TypeAdapter(annotation)


def read(annotation: Any, value: object) -> object:
    """Text as the type that an annotation asks for, a list (JSON, YAML) or one number as a tuple, a list of words as text with
    commas; whatever cannot be read so, as it is."""
    kind = _parts(annotation)[0]
    if typing.get_origin(kind) is tuple and (isinstance(value, list) or is_number(value)):
        return tuple(value) if isinstance(value, list) else (value,)
    if kind is str and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ",".join(value)
    if not isinstance(value, str):
        return value
    if type(None) in _parts(annotation) and value.strip().lower() in ("none", ""):
        return None
    with suppress(ValidationError):
        return _reader(annotation).validate_strings(value)
    with suppress(ValidationError):  # of a tuple: comma-separated, in brackets or not
        parts = value.strip("()[] ").removesuffix(",").split(",")
        return _reader(annotation).validate_python([part.strip() for part in parts])
    return value


def _parts(annotation: Any) -> tuple:
    """The members of a union; of anything else itself."""
    found = typing.get_args(annotation) if type(None) in typing.get_args(annotation) else ()
    return found or (annotation,)


def _setting(name: str, field: Any, value: object, also: str = "") -> Setting:
    limits, left_out = dict[str, float](), list[str]()
    for constraint in field.metadata:
        for bound, end in (("ge", "low"), ("gt", "low"), ("le", "high"), ("lt", "high")):
            if getattr(constraint, bound, None) is not None:
                limits[end] = getattr(constraint, bound)
                if bound in ("gt", "lt"):
                    left_out.append(end)
    kind = _parts(field.annotation)[0]
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    kind = type(choices[0]) if choices else typing.get_origin(kind) or kind
    return Setting(
        name,
        kind if value is None else type(value),
        value,
        field.description or "",
        limits.get("low"),
        limits.get("high"),
        choices=choices,
        label=field.title or name,
        also=also,
        optional=type(None) in typing.get_args(field.annotation),
        open=tuple(left_out),
    )


def _explained(kind: type[Config], error: ValidationError) -> WorkbenchError:
    """The first fault that pydantic found, as the workbench's own error."""
    fault = error.errors(include_url=False)[0]
    fault_of = fault.get("ctx", {}).get("error")
    if isinstance(fault_of, WorkbenchError):
        return fault_of
    path = [part for part in fault["loc"] if isinstance(part, str)]
    name, got = ".".join(path) or kind.__name__, fault["input"]
    if fault["type"] == "extra_forbidden":
        return _unknown(path[-1], list(kind.model_fields), kind.__name__)
    field = kind.model_fields.get(path[0]) if path else None
    default = None if field is None or field.default is PydanticUndefined else field.default
    setting = _setting(path[0], field, default) if field is not None else None
    expected = fault["msg"].removeprefix("Value error, ")
    if setting is not None and not isinstance(default, Config):
        words = " ".join(w for w in (setting.kind.__name__, setting.rule) if w)
        expected = f"{words} ({expected})"
    choices = [str(word) for word in setting.choices] if setting else []
    if isinstance(fault_of, NoSuchNames):
        got, choices = ", ".join(fault_of.unknown), fault_of.names
    near = nearest(str(got), choices)
    about = (
        f"{setting.help or name}; its default is {default!r}" if setting else "correct the value"
    )
    return WorkbenchError(
        f"{SETTING}{name}' is impossible" if path else "these settings do not go together",
        expected=expected,
        got=f"{got!r} ({type(got).__name__})" if path else _differing(kind, got),
        where=kind.__name__,
        fix=f"did you mean '{near}'?" if near else about,
    )


def _differing(kind: type[Config], given: object) -> str:
    """The values that differ from their defaults, of those that were given together."""
    if not isinstance(given, Mapping):
        return plain(given)[:300]
    fields = kind.model_fields
    own = {k: v for k, v in given.items() if k not in fields or v != fields[k].default}
    return plain(", ".join(f"{name}={value!r}" for name, value in own.items()))[:300]
