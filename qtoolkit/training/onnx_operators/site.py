"""What an operator knows when it is built (its node, what is constant) and when it runs (the pass)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from torch import Tensor

from qtoolkit.graph.view import GraphView, attribute

__all__ = ["Builder", "Inputs", "Operator", "Pass", "Places", "Site", "UnsupportedNode", "elementwise", "torch_dtype"]


@dataclass(frozen=True)
class Pass:
    """One run of the network: whether batch norms use the batch (``training``), and its batch size.

    ``fixed_batch`` is the batch that constants of the graph were written for. ``statistics_momentum`` replaces the
    momentum of every batch norm's running statistics; None leaves each its own.
    """

    training: bool = False
    batch: int = 1
    fixed_batch: int = 1
    statistics_momentum: float | None = None

    def repeated(self, constant: Tensor, axis: int) -> Tensor:
        """A constant written for the fixed batch, as often along ``axis`` as the batch of this pass needs it."""
        repeats = [1] * constant.dim()
        repeats[axis] = self.batch // self.fixed_batch
        return constant.repeat(repeats)


Inputs: TypeAlias = Sequence[Tensor]
Operator: TypeAlias = Callable[[Inputs, Pass], "Tensor | tuple[Tensor, ...]"]


@dataclass(frozen=True)
class Places:
    """Where the images of a batch lie: the axis of each input of a node and of its first output, None for nowhere."""

    inputs: tuple[int | None, ...] = ()
    output: int | None = None


class UnsupportedNode(Exception):
    """A node uses its operator in a way that is not there; the message is the reason, in a few words."""


_TORCH_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
    # torch computes little in wide unsigned integers; every value of these fits the next signed type.
    onnx.TensorProto.UINT16: torch.int32,
    onnx.TensorProto.UINT32: torch.int64,
}


def torch_dtype(elem_type: int) -> torch.dtype:
    """The torch type of an ONNX element type. Raises UnsupportedNode where torch has none."""
    if elem_type not in _TORCH_DTYPES:
        raise UnsupportedNode(f"type {onnx.TensorProto.DataType.Name(elem_type).lower()}")
    return _TORCH_DTYPES[elem_type]


@dataclass(frozen=True)
class Site:
    """One node while its operator is built.

    ``opset`` is the version of the node's operator set; ``places`` tells where the batch lies. An input that the node
    leaves out is an empty tensor when the operator runs: ask ``has`` first.
    """

    node: onnx.NodeProto
    view: GraphView
    opset: int
    places: Places = field(default_factory=Places)

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of the attribute as Python value, text decoded; ``default`` where the node does not carry it."""
        value = attribute(self.node, name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, position: int) -> bool:
        """Whether the node has an input at ``position``."""
        return position < len(self.node.input) and bool(self.node.input[position])

    def constant(self, position: int) -> np.ndarray[Any, Any] | None:
        """Value of that input where it is a constant of the graph."""
        return self.view.constant(self.node.input[position]) if self.has(position) else None

    def rank(self, position: int = 0) -> int | None:
        """Number of dimensions of that input; None where it is not known."""
        shape = self.view.shape(self.node.input[position])
        return None if shape is None else len(shape)

    def integers(self, position: int) -> Callable[[Inputs], list[int]]:
        """Reader of an input that holds whole numbers: read now where it is a constant, in each pass where not."""
        known = self.constant(position)
        if known is not None:
            values = [int(value) for value in known.reshape(-1)]
            return lambda inputs: list(values)
        return lambda inputs: [int(value) for value in inputs[position].reshape(-1).tolist()]

    def numbers(self, position: int) -> Callable[[Inputs], list[float]]:
        """As ``integers``, for floating-point numbers."""
        known = self.constant(position)
        if known is not None:
            values = [float(value) for value in known.reshape(-1)]
            return lambda inputs: list(values)
        return lambda inputs: [float(value) for value in inputs[position].reshape(-1).tolist()]

    def axes(self, since: int, position: int = 1, name: str = "axes") -> Callable[[Inputs], list[int]] | None:
        """Reader of axes, an attribute below opset ``since`` and an input from it on; None where none are given."""
        if self.opset < since:
            given = self.attribute(name)
            return None if given is None else lambda inputs: list(given)
        return self.integers(position) if self.has(position) else None

    def unless(self, allowed: bool, reason: str) -> None:
        """Raise UnsupportedNode with ``reason`` unless ``allowed``."""
        if not allowed:
            raise UnsupportedNode(reason)


Builder: TypeAlias = Callable[[Site], Operator]


def elementwise(function: Callable[[Tensor], Tensor]) -> Builder:
    """Builder of an operator that applies ``function`` to its first input, whatever its attributes."""
    return lambda site: lambda inputs, run: function(inputs[0])
