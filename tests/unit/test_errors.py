"""One error, said in full, that survives the way between processes."""

import copy

from dfkd_lib.core import WorkbenchError
from dfkd_lib.training import DivergedError


def test_every_part_is_said():
    text = str(WorkbenchError("it broke", expected=3, got=0, where="here", fix="fix it"))
    assert text.splitlines() == [
        "it broke",
        "  expected: 3",
        "  got: 0",
        "  where: here",
        "  fix: fix it",
    ]


def test_it_crosses_a_process_border_whole():
    error = DivergedError("it broke", got=1)
    again = copy.copy(error)  # by the same __reduce__ that pickling between processes uses
    assert type(again) is DivergedError and str(again) == str(error) and again.got == 1
