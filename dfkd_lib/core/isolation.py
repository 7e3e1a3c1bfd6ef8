"""Work apart from files that it may not read, kept so by the kernel (Linux's landlock, without any privilege).

The restriction is for good, and one of a thread: work is done in a thread of its own, which ends with it. Readers in C++
and processes that it starts are held to it too. What is in memory, or open, already is not taken away.
"""

import ctypes
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from dfkd_lib.core import processes

# <linux/landlock.h>, the same numbers on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION, PATH_BENEATH, NO_NEW_PRIVS = 1, 1, 38
# Reading files; and moving them from folder to folder, which is forbidden wherever it is not granted.
READ_FILE, REFER = 1 << 2, 1 << 13
MOST_ENTRIES = 4096  # of a folder on the way to hidden files: each of its others takes a rule


class Unavailable(Exception):
    """The system refused; nothing has been run."""


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def apart_from(places: dict[str, bool]) -> Callable[[Callable[[], Any]], Any] | None:
    """What runs a function in a thread to which the kernel shows no hidden file; None where that cannot be.

    It cannot without landlock (other systems, Linux before 5.19), in one of several processes, or where hidden files lie in
    the folder of temporary files: of the folders above them nothing is shown that is made later.

    Args:
        places: real paths → whether they may be read; the innermost decides, elsewhere all may.

    Returns:
        A function that calls what it is given, returns what that returns, and raises what that raises; an exception that
        interrupts the waiting thread interrupts it too.
    """
    places = {path: may for path, may in places.items() if os.path.exists(path)}
    temporary = os.path.realpath(tempfile.gettempdir())
    inside = any(not may and f"{path}/".startswith(f"{temporary}/") for path, may in places.items())
    if processes.count() > 1 or inside or all(places.values()) or _version() < 2:
        return None
    try:
        rules = _ruleset(list(_allowed("/", True, places)))
    except OSError:
        return None

    def apart(function: Callable[[], Any]) -> Any:
        return _in_thread(rules, function)

    return apart


def open_files() -> Iterator[str]:
    """The paths of files that this process has open or mapped; none on systems without /proc."""
    found = set()
    with suppress(OSError):
        for descriptor in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        with open("/proc/self/maps") as maps:
            found |= {line.rstrip("\n").partition("/")[2] for line in maps if "/" in line}
    yield from (path if path.startswith("/") else f"/{path}" for path in found)


def _syscall(number: int, *arguments: Any) -> int:
    """The result of a system call; OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _version() -> int:
    """The version of the kernel's landlock, 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    with suppress(OSError):
        return _syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION))
    return 0


def _allowed(path: str, may: bool, places: dict[str, bool]) -> Iterator[str]:
    """The largest files and folders, from `path` down, that hold nothing hidden."""
    may = places.get(path, may)
    below = [place for place in places if place.startswith(f"{path.rstrip('/')}/")]
    if all(places[place] == may for place in below):
        if may:
            yield path
        return
    with os.scandir(path) as entries:
        for count, entry in enumerate(entries):
            if count == MOST_ENTRIES:
                raise OSError(f"{path} has too many entries")
            # A link leads to what has a rule of its own, or none.
            if not entry.is_symlink():
                yield from _allowed(entry.path, may, places)


def _ruleset(allowed: list[str]) -> int:
    """An open set of rules: no file is read but these and those below them."""
    handled = ctypes.c_uint64(READ_FILE | REFER)
    size, flags = ctypes.c_size_t(ctypes.sizeof(handled)), ctypes.c_uint32(0)
    rules = _syscall(CREATE_RULESET, ctypes.byref(handled), size, flags)
    for path in allowed:
        # Without its rule a file that cannot be opened stays hidden.
        with suppress(OSError):
            place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                folder = stat.S_ISDIR(os.fstat(place).st_mode)
                rule = _PathBeneath(READ_FILE | REFER if folder else READ_FILE, place)
                what = ctypes.c_int(rules), ctypes.c_int(PATH_BENEATH), ctypes.byref(rule)
                _syscall(ADD_RULE, *what, flags)
            finally:
                os.close(place)
    return rules


def _restrict(rules: int) -> None:
    """From now on hold this thread, and what it starts, to a set of rules."""
    try:
        ctypes.CDLL(None).prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
        _syscall(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    except OSError as error:
        raise Unavailable(str(error)) from None
    finally:
        os.close(rules)


def _in_thread(rules: int, function: Callable[[], Any]) -> Any:
    """`function()` in a thread of its own under these rules, with the context variables of this one."""
    outcome: dict[str, Any] = {}
    context, done = copy_context(), threading.Event()

    def work() -> None:
        try:
            _restrict(rules)
            outcome["value"] = context.run(function)
        except BaseException as error:
            outcome["error"] = error
        finally:
            done.set()

    thread = threading.Thread(target=work, name="stage", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # for want of memory
        os.close(rules)
        raise Unavailable(str(error)) from None
    while not done.is_set():
        try:
            done.wait(0.2)  # what another thread raises in this one comes between waits
        except BaseException as error:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(type(error))
            )
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
