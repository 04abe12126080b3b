"""Every error qtoolkit raises on purpose, and the exit code each one gives.

::

    QtoolError                     exit 1
    ├── GateFailed                 exit 1   a gate or a check failed
    ├── UsageError                 exit 2   wrong use: an option, a value, a folder that cannot be written
    ├── InputFileError             exit 3   a file the user gave cannot be used
    │   ├── ModelFileError         exit 3   an ONNX network
    │   │   └── HeadError          exit 3   the network's outputs fit no known pose head
    │   ├── CheckpointError        exit 3   weights, or the state of a training
    │   ├── DataSetError           exit 3   images, annotations, dataset.yaml
    │   ├── PlanFileError          exit 3   a precision plan
    │   └── RecipeError            exit 3   a recipe
    └── UnavailableError           exit 4   an optional dependency or a device is missing

Each message says what is wrong and, where it can be said, what was expected, what was found and what to do.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CheckpointError",
    "DataSetError",
    "GateFailed",
    "HeadError",
    "InputFileError",
    "ModelFileError",
    "PlanFileError",
    "QtoolError",
    "RecipeError",
    "UnavailableError",
    "UsageError",
]


class QtoolError(Exception):
    """Base of the tree. ``what`` is one sentence; the parts that follow it are optional, one line each."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self, what: str, *, expected: str | None = None, found: str | None = None, do: str | None = None
    ) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        self.do = do
        parts = [what]
        labelled = (("expected", expected), ("found", found), ("do", do))
        parts += [f"  {label}: {text}" for label, text in labelled if text]
        super().__init__("\n".join(parts))


class GateFailed(QtoolError):
    """A gate or a check failed."""


class UsageError(QtoolError):
    """An option, a value or an output folder cannot be used."""

    exit_code = 2


class InputFileError(QtoolError):
    """A file the user gave cannot be used."""

    exit_code = 3


class ModelFileError(InputFileError):
    """An ONNX network cannot be used."""


class HeadError(ModelFileError):
    """The outputs of a network fit no known pose head, or not the one that was asked for."""


class CheckpointError(InputFileError):
    """A file of weights, or the state of a training, cannot be used."""


class DataSetError(InputFileError):
    """Images, annotations or a dataset.yaml cannot be used."""


class PlanFileError(InputFileError):
    """A precision plan cannot be used."""


class RecipeError(InputFileError):
    """A recipe cannot be used."""


class UnavailableError(QtoolError):
    """An optional dependency or a device is missing."""

    exit_code = 4
