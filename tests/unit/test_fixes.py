"""Every command that an error of the library advises exists; those about files are run where their errors are tested."""

import re

import pytest
from fixes import MODULES

from dfkd_lib.core import REPOSITORY

COMMAND = re.compile(r"(?:python -m (dfkd_lib[\w.]*)|\bdfkd) ([a-z][a-z-]+)((?: --[a-z-]+)*)")
ADVISED = {
    (found[1] or "dfkd_lib", found[2], found[3])
    for path in (REPOSITORY / "dfkd_lib").rglob("*.py")
    for found in COMMAND.finditer(path.read_text())
}


@pytest.mark.parametrize("module, verb, options", sorted(ADVISED))
def test_an_advised_command_exists(module, verb, options, capsys):
    with pytest.raises(SystemExit) as left:
        MODULES[module]([verb, "--help"])
    told = capsys.readouterr().out
    assert left.value.code == 0 and all(option in told for option in options.split())
