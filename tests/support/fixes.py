"""The command that an error advises, run as a user would run it, but in this process."""

import re
import shlex

from dfkd_lib import cli
from dfkd_lib.core import WorkbenchError
from dfkd_lib.datasets import __main__ as datasets
from dfkd_lib.detection import __main__ as detection
from dfkd_lib.training import __main__ as training

MODULES = {
    "dfkd_lib": cli.main,
    "dfkd_lib.datasets": datasets.main,
    "dfkd_lib.detection": detection.main,
    "dfkd_lib.training": training.main,
}


def run_fix(error: WorkbenchError, **words: str) -> None:
    """Run the command in an error's fix, some of its words replaced; it must succeed."""
    found = re.search(r"python -m (\S+) (.*?)(?= (?:writes|takes|shows|makes)\b|[;,]|$)", error.fix)
    assert found, f"no command in: {error.fix}"
    given = " ".join(words.get(word, shlex.quote(word)) for word in shlex.split(found[2]))
    assert MODULES[found[1]](shlex.split(given)) == 0, error.fix
