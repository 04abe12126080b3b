"""Split a convolution of a quantized network by groups of its output channels, so that each has a scale of its own.

For targets with one scale a weight tensor. Exact in float: the parts together compute the same channels, in another
order. Rules:

- the layer is a Conv without groups, its weight and bias are constants; behind a last layer, where nothing is on a grid
  any more, a Gather brings the channels back into order;
- elsewhere the new order is taken up by the weights of all convolutions that read the channels, behind operators that
  treat each channel alike (activation functions, pooling, Resize) and Concats of channels; where anything else reads
  them (an Add, a Split, a grouped convolution, the decode tail) the layer is not split;
- a fused activation function and the Q/DQ pair behind the layer stand in each part too, on the grid of the whole, since
  such a device has every input of a Concat on a grid; the second rounding to the same grid changes nothing;
- the parts are called ``LAYER/part0``, ``LAYER/part1`` …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qtoolkit.graph.activations import activation_behind
from qtoolkit.graph.layers import Layer, Structure
from qtoolkit.graph.tidy import rewrite_graph_
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["RowSplit", "order_readers", "split_rows"]

_CHANNELWISE = frozenset(
    {"Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSwish", "Mish", "Gelu", "Tanh", "MaxPool", "AveragePool", "Resize"}
)
_CHANNELS = 1


@dataclass(frozen=True, eq=False)
class RowSplit:
    """``groups``: output channels of each part, together all of them. ``readers``: (layer, first input channel) that
    read the channels in a row; None where a Gather restores their order."""

    groups: tuple[NDArray[np.intp], ...]
    readers: tuple[tuple[str, int], ...] | None

    @property
    def order(self) -> NDArray[np.intp]:
        """Old channel at each new place, (Cout,)."""
        return np.concatenate(self.groups)


def order_readers(structure: Structure, layer: Layer) -> tuple[tuple[str, int], ...] | None:
    """The layers that read the output channels of ``layer``, with the input channel where these begin; None where
    their order cannot be changed."""
    view, found, seen = structure.view, dict[tuple[str, int], None](), set[tuple[str, int]]()
    pending = [(layer.output, 0)]
    while pending:
        tensor, first = pending.pop()
        if (tensor, first) in seen:
            continue
        seen.add((tensor, first))
        silu = activation_behind(view, tensor) == "silu"
        for node in view.consumers(tensor):
            name = node_name(node)
            reader = structure.layers.get(name)
            if reader is not None and reader.op_type == "Conv" and reader.group == 1 and reader.input == tensor:
                found[name, first] = None
            elif silu and node.op_type in ("Sigmoid", "Mul"):
                pending += [(str(node.output[0]), first)] if node.op_type == "Mul" else []
            elif (moved := _first_channel_behind(structure, node, tensor, first)) is not None:
                pending.append((str(node.output[0]), moved))
            else:
                return None
        if tensor in view.outputs:
            return None
    return tuple(found)


def _first_channel_behind(structure: Structure, node: onnx.NodeProto, tensor: str, first: int) -> int | None:
    view = structure.view
    shapes = [view.shape(name) for name in (*node.input, *node.output) if name and not view.is_constant(name)]
    if node_name(node) in structure.tail or any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    before, behind = view.shape(tensor) or (), view.shape(node.output[0]) or ()
    if node.op_type in _CHANNELWISE and len(node.output) == 1 and before[_CHANNELS] == behind[_CHANNELS]:
        return first
    if node.op_type != "Concat" or attribute(node, "axis") not in (_CHANNELS, _CHANNELS - 4):
        return None
    names = list(node.input)
    if names.count(tensor) != 1:
        return None
    return first + sum((view.shape(name) or (0, 0))[_CHANNELS] for name in names[: names.index(tensor)])


def split_rows(
    model: onnx.ModelProto,
    layers: Mapping[str, Layer],
    splits: Mapping[str, RowSplit],
    fused_activations: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """A copy of ``model``, a network with Q/DQ in it, with the layers named in ``splits`` in parts; rules above.

    Weights of these layers have a scale for each output channel, the same one within a group.
    """
    writer = _Splitter(model, fused_activations)
    # First all, since weights that are reordered may belong to a layer that is divided itself.
    for split in splits.values():
        writer.reorder(split)
    for name, split in splits.items():
        writer.divide(layers[name], split)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = writer.nodes()
    # Weights that were reordered and then divided are read no more.
    read = {name for node in nodes for name in node.input}
    rewrite_graph_(copy, nodes, [tensor for name, tensor in writer.initializers.items() if name in read])
    return copy


class _Splitter:
    """New nodes and constants of one graph; constants that were replaced are read from here, not from the graph."""

    def __init__(self, model: onnx.ModelProto, fused_activations: frozenset[str]) -> None:
        self._view, self._fused = GraphView(model), fused_activations
        self._by_name = {node_name(node): node for node in self._view.nodes}
        self._replaced: dict[str, list[onnx.NodeProto]] = {}
        self._inputs: dict[tuple[str, int], str] = {}
        self.initializers: dict[str, onnx.TensorProto] = {}

    def nodes(self) -> list[onnx.NodeProto]:
        """All nodes of the new graph, in order."""
        result = []
        for node in self._view.nodes:
            name = node_name(node)
            if name in self._replaced:
                result += self._replaced[name]
                continue
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            for position, _ in enumerate(node.input):
                copy.input[position] = self._inputs.get((name, position), node.input[position])
            result.append(copy)
        return result

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def _value(self, tensor: str) -> NDArray[np.generic]:
        if tensor in self.initializers:
            return numpy_helper.to_array(self.initializers[tensor])
        value = self._view.constant(tensor)
        return np.zeros(0) if value is None else value

    def _stored(self, node: onnx.NodeProto, position: int) -> tuple[onnx.NodeProto, int, str]:
        """Where a constant that ``node`` reads is stored: itself, or the DequantizeLinear in front of it."""
        producer = self._view.producer(node.input[position])
        is_integer = producer is not None and producer.op_type == "DequantizeLinear"
        holder, place = (producer, 0) if producer is not None and is_integer else (node, position)
        return holder, place, self._inputs.get((node_name(holder), place), holder.input[place])

    def reorder(self, split: RowSplit) -> None:
        """The weights of all readers, for channels that come in the new order."""
        for reader, first in split.readers or ():
            holder, place, tensor = self._stored(self._by_name[reader], 1)
            weight = np.array(self._value(tensor))
            weight[:, first : first + len(split.order)] = weight[:, first + split.order]
            name = tensor if tensor.endswith("/reordered") else f"{reader}/{tensor}/reordered"
            self._inputs[node_name(holder), place] = self._constant(name, weight)

    def divide(self, layer: Layer, split: RowSplit) -> None:
        """The parts of one layer in its place."""
        node = self._by_name[layer.name]
        end, activation = self._end(layer)
        pairs = [reader for reader in self._view.consumers(end) if reader.op_type == "QuantizeLinear"]
        nodes: list[onnx.NodeProto] = []
        joined = []
        for index, rows in enumerate(split.groups):
            part = f"{layer.name}/part{index}"
            inputs = [node.input[0]]
            for position in range(1, len(node.input)):
                inputs.append(self._rows_of(node, position, rows, part, nodes))
            nodes.append(_like(node, inputs, f"{part}/output", part))
            if activation is not None:
                behind = [f"{part}/output", *activation.input[1:]]
                nodes.append(_like(activation, behind, f"{part}/activation", f"{part}/{activation.op_type}"))
            joined.append(self._on_grid(nodes[-1].output[0], part, pairs, nodes))
        whole = end if split.readers is not None else f"{layer.name}/grouped"
        nodes.append(helper.make_node("Concat", joined, [whole], name=f"{layer.name}/Concat", axis=_CHANNELS))
        if split.readers is None:
            order = self._constant(f"{layer.name}/order", np.argsort(split.order).astype(np.int64))
            nodes.append(helper.make_node("Gather", [whole, order], [end], name=f"{layer.name}/Gather", axis=_CHANNELS))
        self._replaced[layer.name] = nodes
        if activation is not None:
            self._replaced[node_name(activation)] = []

    def _end(self, layer: Layer) -> tuple[str, onnx.NodeProto | None]:
        readers = self._view.consumers(layer.output)
        fused = len(readers) == 1 and readers[0].op_type in self._fused and layer.output not in self._view.outputs
        return (str(readers[0].output[0]), readers[0]) if fused else (layer.output, None)

    def _rows_of(
        self, node: onnx.NodeProto, position: int, rows: NDArray[np.intp], part: str, nodes: list[onnx.NodeProto]
    ) -> str:
        holder, _, tensor = self._stored(node, position)
        name = f"{part}/{node.input[position]}"
        stored = self._constant(name, self._value(tensor)[rows])
        if holder is node:
            return stored
        # The DequantizeLinear of the whole weight, which only this layer read.
        self._replaced[node_name(holder)] = []
        grid = [self._constant(f"{name}/{i}", self._scalar(holder.input[i], rows)) for i in range(1, len(holder.input))]
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [stored, *grid], [f"{name}/dequantized"], name=f"{name}/DequantizeLinear"
            )
        )
        return f"{name}/dequantized"

    def _scalar(self, tensor: str, rows: NDArray[np.intp]) -> NDArray[np.generic]:
        value = self._value(tensor)
        return np.asarray(value if value.ndim == 0 else value[rows[0]])

    def _on_grid(self, tensor: str, part: str, pairs: Sequence[onnx.NodeProto], nodes: list[onnx.NodeProto]) -> str:
        # At two widths at once nothing is gained before the Concat.
        if len(pairs) != 1:
            return tensor
        quantized, dequantized = f"{part}/quantized", f"{part}/dequantized"
        grid = list(pairs[0].input[1:])
        nodes.append(helper.make_node("QuantizeLinear", [tensor, *grid], [quantized], name=f"{part}/QuantizeLinear"))
        nodes.append(
            helper.make_node("DequantizeLinear", [quantized, *grid], [dequantized], name=f"{part}/DequantizeLinear")
        )
        return dequantized


def _like(node: onnx.NodeProto, inputs: Sequence[str], output: str, name: str) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.append(output)
    copy.name = name
    return copy
