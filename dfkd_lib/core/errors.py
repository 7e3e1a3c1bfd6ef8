"""The one error a user is meant to read: what happened, what was expected, what was found, where, and the fix."""

import math
import unicodedata

LONGEST = 8000  # characters of one part of a message: what was found may be a whole book


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value is a finite int or float (no bool) from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    # Also of whole numbers that no float can hold.
    return low <= value <= high and abs(value) <= 1.7e308


def printable(text: str) -> bool:
    """Whether a text has no control character (they steer terminals) and nothing that UTF-8 cannot hold."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def plain(value: object) -> str:
    """A value as text that any terminal and any file can show: control characters escaped, the end cut where it is long."""
    try:
        text = str(value)
    except ValueError:  # a whole number of more digits than Python writes
        return f"a {type(value).__name__} too long to show"
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
    return "".join(c if c in "\n\t" or printable(c) else ascii(c)[1:-1] for c in text)


class WorkbenchError(ValueError):
    """A problem that the user can fix, in full.

    Args:
        what: one sentence, what went wrong.
        expected, got: what was needed and what was found, in the same units.
        where: file, notebook, parameter or training step.
        fix: what to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        got: object = None,
        where: object = None,
        fix: str | None = None,
    ):
        self.what, self.expected, self.got, self.where, self.fix = what, expected, got, where, fix
        parts = [("expected", expected), ("got", got), ("where", where), ("fix", fix)]
        lines = [f"{name}: {plain(value)}" for name, value in parts if value is not None]
        super().__init__("\n  ".join([plain(what), *lines]))

    def __reduce__(self):
        # Errors cross process borders (papermill kernels, worker pools): keep the named parts.
        return (_rebuild, (type(self), self.what, self.expected, self.got, self.where, self.fix))


def _rebuild(cls, what, expected, got, where, fix):
    return cls(what, expected=expected, got=got, where=where, fix=fix)
