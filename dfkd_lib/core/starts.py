"""How Python starts processes: by audit events, and by a function and a server that have none."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

# Programs that a stage may start where nothing keeps files from them: compilers, and questions about the machine.
TOOLS = set(
    "ar as c++ cc cl clang clang++ cuobjdump fc-list file g++ gcc git hipcc ld ldconfig lscpu ninja nvcc nvdisasm nvidia-smi objdump "
    "ptxas rocm-smi sw_vers sysctl uname which xcrun".split()
)
# How `multiprocessing` starts the process that tidies up after others, which reads nothing.
TIDIES_UP = "from multiprocessing.resource_tracker import main"
# Audit event -> (program, words with its name first, folder or None) of what is started.
STARTS: dict[str, Callable[[tuple], tuple]] = {
    "subprocess.Popen": lambda args: args[:3],
    "os.exec": lambda args: (args[0], args[1], None),
    "os.posix_spawn": lambda args: (args[0], args[1], None),
    "os.spawn": lambda args: (args[1], args[2], None),
    "os.system": lambda args: ("sh", ["sh", args[0]], None),
}
# Of the words of a start, the program first, and its folder.
Check = Callable[[list[str], str], None]


def described(program: Any, words: Any, folder: Any) -> tuple[list[str], str]:
    """A start as Python's modules have it (text or bytes, None for no words or folder) as (words, folder)."""
    words = [words] if isinstance(words, (str, bytes)) else list(words or ())
    words = [os.fsdecode(program), *map(os.fsdecode, words[1:])] if words else []
    return words, os.fsdecode(folder or ".")


def harmless(words: list[str]) -> bool:
    """Whether it is one of `TOOLS`, or the process that tidies up after others."""
    program = Path(words[0]).stem if words else ""
    return program in TOOLS or any(word.startswith(TIDIES_UP) for word in words)


@contextmanager
def watched(check: Check, refuse: Callable[[], None] | None) -> Iterator[None]:
    """Put `check` before the starts of `multiprocessing` (spawn) and joblib, which have no audit event.

    Args:
        refuse: is called in place of a fork by multiprocessing's server, if that runs already; None lets it fork.
    """
    with ExitStack() as until_then:
        # `subprocess` has a reference of its own to the function, and an event.
        if (forks := sys.modules.get("_posixsubprocess")) is not None:
            start = _checked(forks.fork_exec, check)
            until_then.enter_context(mock.patch.object(forks, "fork_exec", start))
        server: Any = sys.modules.get("multiprocessing.forkserver")
        if refuse and server and server._forkserver._forkserver_pid is not None:
            instead = mock.patch.object(server, "connect_to_new_process", lambda *_: refuse())
            until_then.enter_context(instead)
        yield


def _checked(fork_exec: Callable, check: Check) -> Callable:
    @wraps(fork_exec)
    def checked(words: Sequence, programs: Sequence, *rest: Any) -> Any:
        check(*described(programs[0], words, rest[2]))  # after close_fds and pass_fds: the folder
        return fork_exec(words, programs, *rest)

    return checked
