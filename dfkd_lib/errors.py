"""The one error a user is meant to read: what happened, what was expected, what was found, where, and the mend."""


class WorkbenchError(ValueError):
    """A problem that the user can mend, said in full.

    Args:
        what: one sentence, what went wrong.
        expected, got: what was needed and what was found, in the same units.
        where: file, notebook, parameter or training step.
        mend: what to do about it.
    """

    def __init__(self, what: str, *, expected: object = None, got: object = None, where: object = None,
                 mend: str | None = None):
        self.what, self.expected, self.got, self.where, self.mend = what, expected, got, where, mend
        parts = [("expected", expected), ("got", got), ("where", where), ("mend", mend)]
        super().__init__("\n  ".join([what, *(f"{name}: {value}" for name, value in parts if value is not None)]))

    def __reduce__(self):
        # Errors cross process borders (papermill kernels, worker pools): keep the named parts.
        return (_rebuild, (type(self), self.what, self.expected, self.got, self.where, self.mend))


def _rebuild(cls, what, expected, got, where, mend):
    return cls(what, expected=expected, got=got, where=where, mend=mend)
