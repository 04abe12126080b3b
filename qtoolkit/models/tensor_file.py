"""Files of named tensors: reading them without running what is in them, and comparing them with a network."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qtoolkit.errors import CheckpointError

__all__ = ["check_tensors", "read_safetensors", "read_state_dict"]

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_SHOWN = 3
# Where released checkpoints keep their tensors, best first.
_INNER = ("ema", "model", "state_dict")


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the entries of the header. Raises CheckpointError where it is no safetensors file."""
    try:
        with safe_open(file, framework="pt") as stream:
            names = list(stream.keys())
            return {name: stream.get_tensor(name) for name in names}, dict(stream.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"the weights {file} cannot be read",
            expected="a safetensors file",
            found=_what_it_is(file, error),
            do="give a file that `qtool train` wrote, or TI's released weights with --architecture",
        ) from error


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Tensors by name of a safetensors file, or of what ``torch.save`` wrote of a state dict.

    Of a dictionary that holds a state dict as ``ema``, ``model`` or ``state_dict`` that one is taken. Nothing but
    tensors and plain values is ever loaded: raises CheckpointError where the file holds objects of a program.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error
    if not start.startswith((_ZIP, _PICKLE)):
        return read_safetensors(file)[0]
    try:
        with warnings.catch_warnings():
            # About pickles of an unusual kind, just before they are refused.
            warnings.simplefilter("ignore")
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError) as error:
        if "weights_only" in str(error).lower() or isinstance(error, pickle.UnpicklingError):
            found = "a pickle of whole Python objects, which may run code when it is opened and is not"
            do = "where the file is trusted, write its tensors with its own program: torch.save(model.state_dict(), …)"
            raise _unreadable(file, found, do) from error
        raise _unreadable(file, " ".join(str(error).split())[:200]) from error
    for key in _INNER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise _unreadable(file, f"a {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) != len(content):
        other = next(str(name) for name, value in content.items() if not isinstance(value, Tensor))
        raise _unreadable(file, f"a dictionary whose entry {other!r} is no tensor")
    return tensors


def check_tensors(file: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], network: str) -> None:
    """Raise CheckpointError unless ``found`` has the names and shapes of ``wanted`` and finite values only.

    ``network`` says in the message what the tensors should be of.
    """
    faults = [f"without {name}" for name in wanted if name not in found]
    faults += [f"with {name}, which it does not have" for name in found if name not in wanted]
    faults += [
        f"with {name} of shape {tuple(found[name].shape)} where {tuple(tensor.shape)} belongs"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if not faults:
        faults = [f"with NaN or infinity in {name}" for name, tensor in found.items() if not tensor.isfinite().all()]
    if faults:
        more = f" and {len(faults) - _SHOWN} more faults" if len(faults) > _SHOWN else ""
        raise CheckpointError(
            f"the weights {file} do not fit the network",
            expected=f"{len(wanted)} tensors of {network}",
            found=f"{len(found)} tensors, {'; '.join(faults[:_SHOWN])}{more}",
            do="give the weights of this network, or the architecture of these weights",
        )


def _unreadable(file: Path, found: str, do: str = "give a safetensors file or a saved state dict") -> CheckpointError:
    expected = "tensors by name: a safetensors file, or a state dict written by torch.save"
    return CheckpointError(f"the weights {file} cannot be read", expected=expected, found=found, do=do)


def _what_it_is(file: Path, error: Exception) -> str:
    if not file.exists():
        return "no such file"
    if file.is_dir():
        return "a folder"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with file.open("rb") as stream:
        start = stream.read(4)
    if start.startswith((_ZIP, _PICKLE)):
        return "a pickle (torch.save), which may run code when it is opened and is not"
    return f"something else ({' '.join(str(error).split())[:120]})"
