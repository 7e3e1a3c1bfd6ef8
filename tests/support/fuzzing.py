"""What the fuzz tests share: inputs counted, a watchdog, damage done to bytes and to JSON, and what a clear refusal is.

`DFKD_FUZZ=20` tries twenty times as many inputs as the default, from a seed that is printed (`DFKD_FUZZ_SEED=N` repeats it);
the default run takes the same inputs every time.
"""

import copy
import os
import random
import signal
import unicodedata
from collections import Counter
from contextlib import contextmanager

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from dfkd_lib.core import WorkbenchError

TIMES = float(os.environ.get("DFKD_FUZZ", "1"))
SEED = int(os.environ.get("DFKD_FUZZ_SEED", random.SystemRandom().randrange(2**32)))
SECONDS = 60  # an input that takes longer hangs; the first imports what it needs
TRIED: Counter = Counter()  # {name of a test: inputs it has tried}


def fuzz(examples: int):
    """A test on so many drawn inputs (times DFKD_FUZZ), the same ones every time unless there are more than usual."""
    settings = hypothesis.settings(
        max_examples=max(1, round(examples * TIMES)),
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    return settings if TIMES == 1 else lambda test: hypothesis.seed(SEED)(settings(test))


class Hang(BaseException):
    """An input took longer than SECONDS."""


@contextmanager
def watched():
    """Raise `Hang` out of what runs longer than SECONDS."""

    def ring(*_):
        raise Hang(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(test: str, call, *words, **settings):
    """(what the call gave, None), or (None, its clear refusal); any other error is the test's failure.

    `test` counts the input; it is "" where the same input is tried at a second door.
    """
    TRIED[test] += test != ""
    try:
        with watched():
            return call(*words, **settings), None
    except WorkbenchError as error:
        check_clear(error)
        return None, error


def check_clear(error: WorkbenchError) -> None:
    """A refusal says what happened, where or what was found, and the fix, in text that any terminal can show."""
    text = str(error)
    assert error.what and error.what[0] not in " \n", text
    assert any(part is not None for part in (error.where, error.got, error.expected)), text
    assert error.fix, f"no fix: {text}"
    check_printable(text)
    assert len(text) < 60_000, f"{len(text)} characters"


def check_printable(text: str) -> None:
    """No control characters but line ends, nothing that UTF-8 cannot hold."""
    text.encode()
    assert not [c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\t"], ascii(text)


# ---- damage

numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**32, 2**63, 10**30, -(10**30), 10**400]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), 0.5]),
)
NASTY = (
    ". .. ../x ../../../../etc/passwd /etc/passwd a/../../b ~/x C:\\x ..\\..\\x <script>alert(1)</script> مرحبا con -rf "
    "{{7*7}} NaN null 1e999 ०१"
).split()
NASTY += ["", "a\0b", "x" * 5000, "\ud800", "\x1b]0;owned\x07", "\u202egnp.x", "$(touch x)"]
names = st.one_of(st.text(max_size=12), st.sampled_from([*NASTY, "'; DROP TABLE x; --"]))
scalars = st.one_of(st.none(), st.booleans(), numbers, names)
junk = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
LENGTHS = [
    b"\xff" * 4,
    b"\0" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\0\0\0",
    b"\0\0\0\x80",
]


@st.composite
def damaged_bytes(draw, whole: bytes, head: int = 200):
    """`whole` with one to four of: bits flipped, bytes replaced, cut off, cut out, put in, a length made a lie."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        # Headers are where formats break: half of the damage goes there.
        end = min(head, len(data)) if draw(st.booleans()) else len(data)
        at = draw(st.integers(0, end - 1))
        how = draw(st.sampled_from(["flip", "replace", "cut", "drop", "insert", "length", "digit"]))
        if how == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "replace":
            part = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(part)] = part
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif how == "length":
            data[at : at + 4] = draw(st.sampled_from(LENGTHS))
        else:
            places = [i for i in range(min(len(data), 4000)) if 48 <= data[i] <= 57]
            if places:
                data[places[draw(st.integers(0, len(places) - 1))]] = 48 + draw(st.integers(0, 9))
    return bytes(data)


@st.composite
def damaged_json(draw, whole, most: int = 3, values=junk):
    """A copy of `whole` with one to `most` entries replaced by junk, removed, or put in twice, at any depth."""
    content = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, most))):
        at, stops = content, 0
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = keys[draw(st.integers(0, len(keys) - 1))]
            if isinstance(at[key], (dict, list)) and at[key] and draw(st.integers(0, 3 + stops)):
                at, stops = at[key], stops + 1
                continue
            how = draw(st.sampled_from(["junk", "junk", "junk", "remove", "twice", "rename"]))
            if how == "junk":
                at[key] = draw(values)
            elif how == "remove":
                del at[key]
            elif how == "twice" and isinstance(at, list):
                at.insert(draw(st.integers(0, len(at))), copy.deepcopy(at[key]))
            elif how == "rename" and isinstance(at, dict):
                at[draw(names)] = at.pop(key)
            break
    return content
