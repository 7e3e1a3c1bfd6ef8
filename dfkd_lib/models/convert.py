"""Checkpoints of others, pickled by torch.save, as safetensors: their tensors are read, their code never runs."""

import shlex
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor

from dfkd_lib.core import WorkbenchError, load_tensors, resolve
from dfkd_lib.core.files import replacing

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")


def command(file: Path, *more: object) -> str:
    """The command line that converts a file."""
    return shlex.join(["python", "-m", "dfkd_lib", "convert", str(file), *map(str, more)])


def pickled(file: Path, *out: Path) -> WorkbenchError:
    """The error on a checkpoint that is no safetensors file, with the command that makes it one."""
    return WorkbenchError(
        "checkpoints are read as safetensors only, since others may run code",
        got=file,
        expected="a .safetensors file",
        fix=f"{command(file, *out)} writes its state_dict as one, and runs none of its code",
    )


class _Settings:
    """Makes a plain dict of whatever object of settings a pickle holds: the restricted reader fills no other kind."""

    def __new__(cls, *_, **__):
        return OrderedDict()


class _Number:
    """Stands for numpy's arrays and numbers, and for partial functions, which are filled otherwise."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


def convert(file: str | Path, out: str | Path = "", part: str = "") -> Path:
    """Write a checkpoint's weights as safetensors, with torch's restricted reader and nothing of the file's own code.

    Args:
        file: what torch.save wrote: a state dict, or a dict with one in it; or safetensors.
        out: the file to write; by default beside `file`, with the ending .safetensors.
        part: which of several state dicts, as "model" or "teacher.backbone".

    Returns:
        The file written.

    Raises:
        WorkbenchError: if it cannot be read so, holds no weights or several models and no `part`, or `out` is there.
    """
    from safetensors.torch import save_file

    file = resolve(file)
    out = resolve(out) if out else file.with_suffix(".safetensors")
    content = load_tensors(file) if file.suffix == ".safetensors" else _unpickled(file)
    found = dict(_state_dicts(content))
    if part and "" in found:  # of a file without dicts in it, the beginnings of names
        inside = {k: v for k, v in found[""].items() if k.startswith(f"{part}.")}
        others = {k.partition(".")[0]: {} for k in found[""]}
        found = {**others, part: {k.removeprefix(f"{part}."): v for k, v in inside.items()}}
    names = [name for name in found if name != part]
    if part or len(found) > 1:
        found = {name: tensors for name, tensors in found.items() if name == part and tensors}
    if not found:
        several = f"{command(file, '--part', names[0])} takes one of them" if names else None
        raise WorkbenchError(
            "a checkpoint holds several models" if names else "a checkpoint holds no weights",
            expected="one of their names as part" if names else "tensors by name",
            got=", ".join(names) or type(content).__name__,
            where=file,
            fix=several or "save the model's state_dict() where it was trained",
        )
    if out.exists():
        raise WorkbenchError(
            "the file to write is there already",
            where=out,
            fix=f"remove it, or name another: {command(file, 'OUT')}",
        )
    (tensors,) = found.values()
    # Tied weights share memory, which safetensors refuses.
    tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})  # transformers asks for it
    return out


def _unpickled(file: Path) -> object:
    """What a pickle holds, with stand-ins for all that torch's restricted reader would refuse."""
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    try:
        others = get_unsafe_globals_in_checkpoint(file) if is_zipfile(file) else []
        filled = ("numpy.", "functools.")
        stands = [(_Number if name.startswith(filled) else _Settings, name) for name in others]
        with safe_globals(stands):
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WorkbenchError(
            "a checkpoint is missing", where=file, expected="a file", fix="check the path"
        ) from None
    except Exception as error:  # whatever a file's bytes may make a reader of pickles raise
        text = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
        raise WorkbenchError(
            "a checkpoint cannot be read without running its code",
            where=file,
            got=f"{type(error).__name__}: {text.splitlines()[0][:200] if text else ''}",
            expected="what torch.save writes of a state dict",
            fix="fetch it again, or save its state_dict() with safetensors where it was trained",
        ) from None


def _state_dicts(content: object, name: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(dotted name, tensors by name) of each state dict that is not an optimizer's, the outermost ones."""
    if not isinstance(content, dict):
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if any(value.ndim for value in tensors.values()):
        yield name, tensors
        return
    for key, value in content.items():
        if "optim" not in str(key):
            yield from _state_dicts(value, f"{name}.{key}" if name else str(key))
