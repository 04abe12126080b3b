"""One opened network on one runtime, with three verbs: open, infer, close.

The base class makes every check; a backend writes only ``_open``, ``_infer``, ``_close`` and ``conditions``.
A runner is a context manager::

    with OnnxRuntimeCpu("model.onnx", threads=2) as runner:
        outputs = runner.infer({"images": images})
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError

if TYPE_CHECKING:
    # typing.Self needs Python 3.11.
    from typing_extensions import Self

__all__ = ["Condition", "Runner", "Signature", "TensorSpec"]

Condition = str | int | float | bool | None


@dataclass(frozen=True)
class TensorSpec:
    """Shape (None where a dimension is free) and dtype of one input or output."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} ({sizes})"

    def accepts(self, array: NDArray[Any]) -> bool:
        """Whether ``array`` has this dtype, this rank and every size that is not free."""
        if array.dtype != self.dtype or array.ndim != len(self.shape):
            return False
        return all(size is None or size == found for size, found in zip(self.shape, array.shape, strict=True))


@dataclass(frozen=True)
class Signature:
    """The inputs a network takes and the outputs it gives, by name, in the order of the network."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", MappingProxyType(dict(self.inputs)))
        object.__setattr__(self, "outputs", MappingProxyType(dict(self.outputs)))


class Runner(ABC):
    """Base of all backends. Raises UsageError for every wrong call before the runtime sees it."""

    name: ClassVar[str]
    """Name of the backend in :mod:`qtoolkit.backends.table`, such as ``ort-cpu``."""

    def __init__(self) -> None:
        self._opened: Signature | None = None

    @abstractmethod
    def _open(self) -> Signature:
        """Load the network into the runtime and say what goes in and comes out. Called only while closed."""

    @abstractmethod
    def _infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Sequence[NDArray[Any]]:
        """Arrays of ``outputs``, in that order. ``feeds`` and ``outputs`` have been checked."""

    @abstractmethod
    def _close(self) -> None:
        """Free what ``_open`` took; also called where ``_open`` failed half way."""

    @abstractmethod
    def conditions(self) -> dict[str, Condition]:
        """What a figure measured here depends on: at least runtime, version, provider and threads."""

    def open(self) -> Self:
        """Load the network. An open runner stays as it is. Raises ModelFileError where the runtime refuses it."""
        if self._opened is None:
            try:
                self._opened = self._open()
            except BaseException:
                self._close()
                raise
        return self

    def close(self) -> None:
        """Free the runtime's memory and threads. A closed runner stays as it is and can be opened again."""
        if self._opened is not None:
            self._opened = None
            self._close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether ``infer`` may be called."""
        return self._opened is not None

    @property
    def signature(self) -> Signature:
        """Inputs and outputs with shape and dtype. Raises UsageError while closed."""
        if self._opened is None:
            raise UsageError(
                f"the {self.name} runner is not open",
                expected="an open runner",
                found="infer or a property was used before open() or after close()",
                do="use it inside `with runner:`",
            )
        return self._opened

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the network's order."""
        return tuple(self.signature.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the network's order."""
        return tuple(self.signature.outputs)

    @property
    def input_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shape of each input, None where a dimension is free."""
        return {name: spec.shape for name, spec in self.signature.inputs.items()}

    @property
    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shape of each output, None where a dimension is free."""
        return {name: spec.shape for name, spec in self.signature.outputs.items()}

    def infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the network once on one array per input; returns one array per name in ``outputs`` (all if None).

        Raises UsageError for a closed runner, missing or unknown names, wrong shapes or dtypes, and ModelFileError
        where the runtime fails on a network it had accepted.
        """
        signature = self.signature
        _check_feeds(feeds, signature.inputs)
        names = list(signature.outputs) if outputs is None else _checked_outputs(outputs, signature.outputs)
        return dict(zip(names, self._infer(feeds, names), strict=True))


def _check_feeds(feeds: Mapping[str, NDArray[Any]], inputs: Mapping[str, TensorSpec]) -> None:
    if feeds.keys() != inputs.keys():
        raise UsageError(
            "the feeds do not name the network's inputs",
            expected=_listed(inputs),
            found=_listed(feeds),
            do="give one array for each input name, and no other",
        )
    for name, spec in inputs.items():
        array = feeds[name]
        if not isinstance(array, np.ndarray) or not spec.accepts(array):
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise UsageError(
                f"input {name!r} does not fit the network",
                expected=f"a numpy array, {spec}",
                found=found,
                do="convert the array, or export the network for this size",
            )


def _checked_outputs(outputs: Sequence[str], known: Mapping[str, TensorSpec]) -> list[str]:
    names = [outputs] if isinstance(outputs, str) else list(outputs)
    if not names or len(set(names)) != len(names) or any(name not in known for name in names):
        raise UsageError(
            "the asked outputs are not outputs of the network",
            expected=f"some of {_listed(known)}, each once",
            found=_listed(names),
            do="ask for outputs by their names in the ONNX graph",
        )
    return names


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
