"""An index over one ONNX graph: who makes a tensor, who reads it, what is known about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["GraphView", "attribute", "captured_names", "node_name"]


def node_name(node: onnx.NodeProto) -> str:
    """The node's own name, or the name of its first output where it has none."""
    return str(node.name) or next((str(output) for output in node.output if output), "")


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Value of the attribute ``name`` as Python or protobuf value; ``default`` where the node does not carry it."""
    for candidate in node.attribute:
        if candidate.name == name:
            return helper.get_attribute_value(candidate)
    return default


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for candidate in node.attribute:
        if candidate.type == onnx.AttributeProto.GRAPH:
            yield candidate.g
        elif candidate.type == onnx.AttributeProto.GRAPHS:
            yield from candidate.graphs


def captured_names(node: onnx.NodeProto) -> tuple[str, ...]:
    """Outer tensors that the bodies of ``node`` (If, Loop, Scan) read without listing them as inputs."""
    captured: dict[str, None] = {}
    for body in _subgraphs(node):
        inner = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        inner |= {output for child in body.node for output in child.output}
        read = [name for child in body.node for name in (*child.input, *captured_names(child))]
        read += [value.name for value in body.output]
        captured.update((name, None) for name in read if name and name not in inner)
    return tuple(captured)


def _constant_node_value(node: onnx.NodeProto) -> np.ndarray[Any, Any] | None:
    for candidate in node.attribute:
        value = helper.get_attribute_value(candidate)
        if candidate.name == "value":
            return numpy_helper.to_array(value)
        if candidate.name in ("value_float", "value_floats"):
            return np.array(value, dtype=np.float32)
        if candidate.name in ("value_int", "value_ints"):
            return np.array(value, dtype=np.int64)
    return None


def _static_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    return tuple(int(dim.dim_value) for dim in dims)


class GraphView:
    """A snapshot of ``model.graph`` with O(1) look-ups; build a new one after the graph has been changed.

    ``nodes`` keeps the order of the file, ``inputs`` are the graph inputs that are not initializers and ``outputs``
    the graph outputs. Node indices are positions in ``nodes``. A tensor read only inside the body of an If, Loop or
    Scan counts as read by that node.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.nodes: tuple[onnx.NodeProto, ...] = tuple(graph.node)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs: tuple[str, ...] = tuple(v.name for v in graph.input if v.name not in self._initializers)
        self.outputs: tuple[str, ...] = tuple(value.name for value in graph.output)
        self._values = {v.name: v for values in (graph.value_info, graph.input, graph.output) for v in values}
        self._reads: list[tuple[str, ...]] = []
        self._producers: dict[str, int] = {}
        self._consumers: dict[str, list[int]] = {}
        self._arrays: dict[str, np.ndarray[Any, Any] | None] = {}
        for index, node in enumerate(self.nodes):
            reads = tuple(dict.fromkeys(name for name in (*node.input, *captured_names(node)) if name))
            self._reads.append(reads)
            for name in reads:
                self._consumers.setdefault(name, []).append(index)
            self._producers.update((name, index) for name in node.output if name)

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes ``tensor``; None for graph inputs, initializers and unknown names."""
        index = self._producers.get(tensor)
        return None if index is None else self.nodes[index]

    def producer_index(self, tensor: str) -> int | None:
        """Index of the node that makes ``tensor``, or None."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that read ``tensor``, each once, in graph order."""
        return [self.nodes[index] for index in self._consumers.get(tensor, ())]

    def consumer_indices(self, tensor: str) -> tuple[int, ...]:
        """Indices of the nodes that read ``tensor``, in graph order."""
        return tuple(self._consumers.get(tensor, ()))

    def reads(self, index: int) -> tuple[str, ...]:
        """Every tensor that node ``index`` reads, each once, those of its bodies included."""
        return self._reads[index]

    def is_constant(self, tensor: str) -> bool:
        """Whether ``tensor`` is an initializer or the output of a Constant node."""
        if tensor in self._initializers:
            return True
        producer = self.producer(tensor)
        return producer is not None and producer.op_type == "Constant"

    def constant(self, tensor: str) -> np.ndarray[Any, Any] | None:
        """Read-only value of an initializer or of a Constant node's output; None for every other tensor."""
        if tensor not in self._arrays:
            self._arrays[tensor] = self._decode(tensor)
        return self._arrays[tensor]

    def initializer(self, tensor: str) -> onnx.TensorProto | None:
        """The initializer of that name as it stands in the model (not a copy), or None."""
        return self._initializers.get(tensor)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Static shape of ``tensor``; None where it is unknown or one of its dimensions is."""
        if tensor in self._initializers:
            return tuple(int(dim) for dim in self._initializers[tensor].dims)
        if tensor in self._values and (shape := _static_shape(self._values[tensor])) is not None:
            return shape
        array = self.constant(tensor)
        return None if array is None else array.shape

    def elem_type(self, tensor: str) -> int:
        """Element type of ``tensor`` as in ``onnx.TensorProto.DataType``; UNDEFINED (0) where it is unknown."""
        if tensor in self._initializers:
            return int(self._initializers[tensor].data_type)
        value = self._values.get(tensor)
        if value is not None and value.type.HasField("tensor_type"):
            return int(value.type.tensor_type.elem_type)
        array = self.constant(tensor)
        return 0 if array is None else int(helper.np_dtype_to_tensor_dtype(array.dtype))

    def dtype(self, tensor: str) -> np.dtype[Any] | None:
        """numpy type of ``tensor``; None where it is unknown."""
        elem_type = self.elem_type(tensor)
        return None if elem_type == onnx.TensorProto.UNDEFINED else helper.tensor_dtype_to_np_dtype(elem_type)

    def descendants(self, tensors: Iterable[str]) -> frozenset[int]:
        """Indices of the nodes that read one of ``tensors``, directly or through other nodes."""
        pending = [index for tensor in tensors for index in self._consumers.get(tensor, ())]
        seen: set[int] = set()
        while pending:
            index = pending.pop()
            if index not in seen:
                seen.add(index)
                pending += [user for name in self.nodes[index].output for user in self._consumers.get(name, ())]
        return frozenset(seen)

    def ancestors(self, tensors: Iterable[str], stop_at: Sequence[str] = ()) -> frozenset[int]:
        """Indices of the nodes that ``tensors`` depend on, not looking behind the tensors in ``stop_at``."""
        barrier = set(stop_at)
        pending = [tensor for tensor in tensors if tensor not in barrier]
        seen: set[int] = set()
        while pending:
            index = self._producers.get(pending.pop())
            if index is not None and index not in seen:
                seen.add(index)
                pending += [name for name in self._reads[index] if name not in barrier]
        return frozenset(seen)

    def _decode(self, tensor: str) -> np.ndarray[Any, Any] | None:
        if tensor in self._initializers:
            array: np.ndarray[Any, Any] | None = numpy_helper.to_array(self._initializers[tensor])
        else:
            producer = self.producer(tensor)
            array = _constant_node_value(producer) if producer and producer.op_type == "Constant" else None
        if array is not None:
            array.flags.writeable = False
        return array
