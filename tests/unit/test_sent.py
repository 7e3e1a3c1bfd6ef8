"""Code of a notebook's own in another process: it does there what it does here, under the same key, or is refused."""

import json
import os
import subprocess
import sys

import pytest
from cells import run_cell

from dfkd_lib.core import OtherCode, WorkbenchError, as_sent, fingerprint, received
from dfkd_lib.core import sent as sending

CELL = """
import functools, math
from dataclasses import dataclass
from enum import Enum
import torch
from torch import nn
from dfkd_lib.losses import kd_loss

factor = 3

def double(x):
    return 2 * x

class Kind(Enum):
    SOFT = 1

@dataclass(frozen=True)
class Weights:
    kd: float = 2.0
    kind: Kind = Kind.SOFT

class Base:
    def times(self, x):
        return double(x) * self.by

class Scale(Base):
    def __init__(self, by): self.by = by
    def __call__(self, x): return self.times(x)
    @staticmethod
    def of(x): return x
    @property
    def twice(self): return self.of(self.by)

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
    def forward(self, x): return x

def doubled(f):
    @functools.wraps(f)
    def inner(x): return 2 * f(x)
    return inner

def closed(weights, by=factor):
    one = torch.ones(1)
    def step(x, scale=Scale(2)): return math.floor(weights.kd) * by * scale.twice * x * int(one)
    return step

def distilled(x):
    return round(float(kd_loss(torch.ones(1, 2), torch.zeros(1, 2), 2.0)) + Head()(x))

THINGS = {
    "function": double,
    "lambda": lambda x: factor * double(x),
    "partial": functools.partial(math.fmod, 7),
    "bound method": Scale(5).times,
    "callable object": Scale(5),
    "closure": closed(Weights(kd=2.5)),
    "wrapped": doubled(double),
    "no_grad": torch.no_grad()(double),
    "library's loss": distilled,
}
"""
THERE = """
import json, sys
from dfkd_lib.core import received
print(json.dumps({name: received(one)(4) for name, one in json.load(sys.stdin).items()}))
"""


def defined(text: str, name: str):
    return run_cell(text, {"__name__": "__main__"})[name]


def there(sent: dict) -> dict:
    """What received things make of 4, by name, in a process that knows none of them."""
    command = [sys.executable, "-c", THERE]
    done = subprocess.run(command, input=json.dumps(sent), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_code_of_a_notebook_has_its_key_in_another_process():
    things = defined(CELL, "THINGS")
    sent = {name: as_sent(thing) for name, thing in things.items()}
    assert {name: one["digest"] for name, one in sent.items()} == {
        name: fingerprint(thing).digest for name, thing in things.items()
    }
    assert there(sent) == {name: thing(4) for name, thing in things.items()}


def test_a_step_without_source_or_from_a_script_goes_too(tmp_path):
    """Typed into `python -c` it counts by its bytecode; a script's file need not be there."""
    text = "import json\nfrom dfkd_lib.core import as_sent\ndef step(x): return 3 * x\nprint(json.dumps(as_sent(step)))\n"
    (tmp_path / "script.py").write_text(text)
    sent = {}
    for name, words in {"typed": ["-c", text], "script": [str(tmp_path / "script.py")]}.items():
        command = [sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        sent[name] = json.loads(done.stdout)
    (tmp_path / "script.py").unlink()
    assert there(sent) == {"typed": 12, "script": 12}
    assert not sent["typed"]["sources"] and sent["script"]["sources"]


@pytest.mark.parametrize(
    "most, what", [(10_000_000, "cannot be sent"), (10, "too much to be sent")]
)
def test_what_cannot_be_sent_is_refused_with_a_fix(most, what, monkeypatch):
    monkeypatch.setattr(sending, "MOST_BYTES", most)
    text = "class Held:\n    def __reduce__(self): raise OSError\nheld = Held()\ndef step(x): return held"
    step = defined(text if most > 10 else CELL, "step" if most > 10 else "double")
    with pytest.raises(WorkbenchError, match=f"(?s){what}.*inside the function.*jobs=1"):
        as_sent(step)


def test_what_arrives_as_something_else_is_refused():
    sent = as_sent(defined(CELL, "double"))
    for other in (
        {"digest": "0" * 16},
        {"pickled": as_sent(defined(CELL, "THINGS")["lambda"])["pickled"]},
        {"pickled": "gA=="},
    ):
        with pytest.raises(OtherCode, match="PYTHONPATH"):
            received({**sent, **other})
