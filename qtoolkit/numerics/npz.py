"""Named arrays in an npz file: written through a rename, read without running anything, damage told as one error."""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.artifacts.files import atomic_path
from qtoolkit.errors import InputFileError

__all__ = ["read_npz", "write_npz"]

# What numpy and zipfile raise for a file that is cut off, has wrong bytes somewhere, or is something else; a lone array
# has no files: AttributeError.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write ``arrays`` compressed, through a temporary file and a rename."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def read_npz(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """All arrays of an npz file. Raises InputFileError for a missing, damaged or other file; pickles are refused."""
    try:
        with open(path, "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            return {name: loaded[name] for name in loaded.files}
    except _UNREADABLE as error:
        raise InputFileError(
            f"the file {path} cannot be read",
            expected="an npz file that qtool wrote",
            found=" ".join(str(error).split())[:200] or type(error).__name__,
            do="delete it and run the same command again",
        ) from error
