"""Where Q/DQ pairs stand: from a plan and a target's rules to the tensors that are quantized, and who reads them so.

Rules, in the order in which they are applied (the decode tail, everything behind the last layers, is never touched):

1. The input of an integer layer is quantized, at the layer's own bit width; not that of an 8-bit last layer where the
   target computes those in float whatever they read, unless rule 4 says so.
2. Where the target quantizes layer outputs, a Q stands behind each 8-bit layer that is not a last one: behind the fused
   activation function where the target fuses it and nobody else reads the tensor before it, else right behind the
   layer.
3. An operator of ``int8_ops`` or ``shape_ops`` runs in 8 bit if some 8-bit layer or operator wants its output, and one
   of its inputs comes out of an 8-bit layer or operator; then its inputs and outputs are quantized too. An operator
   with a constant operand beside its data (x · 0.5) stays in float.
4. A tensor that comes out of an 8-bit layer or operator is read through its Q/DQ by everybody: a reader of the
   unquantized value would keep the runtime from fusing the Q. Graph outputs alone keep their float value.
5. Where the target asks for it, both inputs of a residual Add between 8-bit layers are quantized.
6. Tensors that an operator of ``shape_ops`` connects share their range. An 8-bit tensor that only a Concat reads takes
   the range of the Concat's output, which saves it a second rounding.

A target that has integers only takes the pairs of ``integer_flow`` instead of rules 1 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.target import Target
from qtoolkit.graph.integer_flow import integer_pairs
from qtoolkit.graph.layers import Layer, Structure
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["Placement", "QuantizedTensor", "place_qdq"]


@dataclass(frozen=True)
class QuantizedTensor:
    """One Q/DQ pair: behind ``tensor``, at ``bit_width`` 8 or 16.

    ``readers`` are the nodes (by name) that read the DQ's output; None means all of them. ``range_of`` is the tensor
    whose clipping range the pair uses: itself, or the one it shares quantization parameters with.
    """

    tensor: str
    bit_width: int
    readers: frozenset[str] | None
    range_of: str


@dataclass(frozen=True)
class Placement:
    """Every Q/DQ pair of activations by (tensor, bit width), and the layers that are integer layers, by precision."""

    tensors: Mapping[tuple[str, int], QuantizedTensor]
    layers: Mapping[str, Precision]

    def layers_reading_float(self, structure: Structure) -> frozenset[str]:
        """The integer layers whose input is on no grid: only their weights are."""
        return frozenset(
            name
            for name in self.layers
            if not any(self._reads(name, structure.layers[name].input, bits) for bits in (8, 16))
        )

    def _reads(self, layer: str, tensor: str, bits: int) -> bool:
        pair = self.tensors.get((tensor, bits))
        return pair is not None and (pair.readers is None or layer in pair.readers)


@dataclass
class _Flow:
    """What the passes below know of one network under one plan."""

    view: GraphView
    target: Target
    precisions: Mapping[str, Precision]
    layers: dict[str, Layer]
    tail: frozenset[str]
    last: frozenset[str]
    capable: set[int] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)
    made_8bit: set[str] = field(default_factory=set)
    int8_nodes: set[int] = field(default_factory=set)

    def is_int8_layer(self, index: int) -> bool:
        return self.precisions.get(node_name(self.view.nodes[index])) is Precision.INT8

    def reads_float(self, name: str) -> bool:
        """Whether an integer layer is content with an input that is not quantized."""
        return self.target.float_last_inputs and name in self.last and self.precisions[name] is Precision.INT8

    def reads_8bit(self, index: int) -> bool:
        return self.is_int8_layer(index) and not self.reads_float(node_name(self.view.nodes[index]))


def place_qdq(
    model: onnx.ModelProto,
    precisions: Mapping[str, Precision],
    target: Target,
    structure: Structure | None = None,
) -> Placement:
    """The Q/DQ pairs of ``model`` (prepared, float) with its layers at ``precisions`` on ``target``; rules above.

    A layer that is not in ``precisions`` counts as float. Nothing is changed. ``structure`` is that of ``model``, where
    it is known already.
    """
    known = structure or Structure.of(model)
    integer = {name: p for name, p in precisions.items() if name in known.layers and p.is_integer}
    flow = _Flow(known.view, target, integer, known.layers, known.tail, known.last)
    pairs: Mapping[tuple[str, int], set[str] | None] = (
        integer_pairs(known, integer, target) if target.integer_only else _pairs(flow)
    )
    tensors = {
        (tensor, bits): QuantizedTensor(tensor, bits, None if readers is None else frozenset(readers), source)
        for (tensor, bits), readers, source in _with_range_sources(flow, pairs)
    }
    return Placement(tensors, integer)


def _pairs(flow: _Flow) -> dict[tuple[str, int], set[str] | None]:
    _find_capable(flow)
    _want_8bit(flow)
    _make_8bit(flow)
    pairs = _layer_inputs(flow)
    for tensor in _operator_tensors(flow):
        _add(pairs, tensor, 8, None if tensor in flow.made_8bit else _int8_readers(flow, tensor))
    if flow.target.quantize_residual_adds:
        _residual_adds(flow, pairs)
    return pairs


def _data_inputs(view: GraphView, node: onnx.NodeProto) -> list[str]:
    """Inputs that carry activations: all of an Add, Mul or Concat, the first of everything else."""
    names = [name for name in node.input if name]
    return names if node.op_type in ("Add", "Mul", "Concat") else names[:1]


def _find_capable(flow: _Flow) -> None:
    ops = flow.target.int8_ops | flow.target.shape_ops
    for index, node in enumerate(flow.view.nodes):
        name = node_name(node)
        if node.op_type not in ops or name in flow.tail or name in flow.layers:
            continue
        data = _data_inputs(flow.view, node)
        floats = all(flow.view.elem_type(tensor) in (0, onnx.TensorProto.FLOAT) for tensor in data)
        if data and floats and not any(flow.view.is_constant(tensor) for tensor in data):
            flow.capable.add(index)


def _want_8bit(flow: _Flow) -> None:
    """Backwards: a tensor is wanted in 8 bit by an 8-bit layer, or by a capable operator whose own output is."""
    for index in range(len(flow.view.nodes) - 1, -1, -1):
        node = flow.view.nodes[index]
        if flow.reads_8bit(index):
            flow.wanted.add(flow.layers[node_name(node)].input)
        elif index in flow.capable and any(output in flow.wanted for output in node.output):
            flow.wanted.update(_data_inputs(flow.view, node))


def _make_8bit(flow: _Flow) -> None:
    """Forwards: which tensors come out of 8-bit arithmetic, and which operators are part of it."""
    if not flow.target.quantize_layer_outputs:
        return
    for index, node in enumerate(flow.view.nodes):
        name = node_name(node)
        if flow.is_int8_layer(index):
            if name not in flow.last:
                flow.made_8bit.add(_output_behind_fusion(flow, flow.layers[name].output))
        elif (
            index in flow.capable
            and any(output in flow.wanted for output in node.output)
            # Without one 8-bit input the operator is better left in float, and its output quantized once.
            and any(tensor in flow.made_8bit for tensor in _data_inputs(flow.view, node))
        ):
            flow.int8_nodes.add(index)
            flow.made_8bit.update(output for output in node.output if output)


def _output_behind_fusion(flow: _Flow, tensor: str) -> str:
    readers = flow.view.consumers(tensor)
    if len(readers) == 1 and readers[0].op_type in flow.target.fused_activations and tensor not in flow.view.outputs:
        return str(readers[0].output[0])
    return tensor


def _add(pairs: dict[tuple[str, int], set[str] | None], tensor: str, bits: int, readers: set[str] | None) -> None:
    known = pairs.get((tensor, bits), set())
    pairs[tensor, bits] = None if readers is None or known is None else known | readers


def _layer_inputs(flow: _Flow) -> dict[tuple[str, int], set[str] | None]:
    pairs: dict[tuple[str, int], set[str] | None] = {}
    for name, precision in flow.precisions.items():
        tensor = flow.layers[name].input
        # What has left 8-bit arithmetic already has its Q/DQ; a second, finer one would change nothing.
        if tensor not in flow.made_8bit and not flow.reads_float(name):
            _add(pairs, tensor, precision.activation_bits, {name})
    return pairs


def _operator_tensors(flow: _Flow) -> list[str]:
    """Tensors that 8-bit layers and operators make, and those that 8-bit operators read, in graph order."""
    tensors: dict[str, None] = {}
    for index, node in enumerate(flow.view.nodes):
        if index in flow.int8_nodes:
            tensors.update(dict.fromkeys(_data_inputs(flow.view, node)))
        tensors.update((output, None) for output in node.output if output in flow.made_8bit)
    return list(tensors)


def _int8_readers(flow: _Flow, tensor: str) -> set[str]:
    indices = flow.view.consumer_indices(tensor)
    return {node_name(flow.view.nodes[i]) for i in indices if i in flow.int8_nodes or flow.reads_8bit(i)}


def _residual_adds(flow: _Flow, pairs: dict[tuple[str, int], set[str] | None]) -> None:
    """Both inputs of an Add of two activations of one shape, if an 8-bit layer is next on either side of it."""
    view = flow.view
    for node in view.nodes:
        name = node_name(node)
        if node.op_type != "Add" or name in flow.tail or any(view.is_constant(tensor) for tensor in node.input):
            continue
        left, right = (view.shape(tensor) for tensor in node.input)
        if left == right and _near_int8_layer(flow, node):
            for tensor in node.input:
                _add(pairs, tensor, 8, {name})


def _near_int8_layer(flow: _Flow, node: onnx.NodeProto) -> bool:
    def reaches(tensors: Sequence[str], forward: bool) -> bool:
        pending, seen = list(tensors), set[str]()
        while pending:
            tensor = pending.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            producer = flow.view.producer_index(tensor)
            near = flow.view.consumer_indices(tensor) if forward else (() if producer is None else (producer,))
            for index in near:
                if flow.is_int8_layer(index):
                    return True
                neighbour = flow.view.nodes[index]
                if node_name(neighbour) not in flow.layers:
                    pending += neighbour.output if forward else [name for name in neighbour.input if name]
        return False

    return reaches(node.input, forward=False) and reaches(node.output, forward=True)


def _with_range_sources(
    flow: _Flow, pairs: Mapping[tuple[str, int], set[str] | None]
) -> Iterator[tuple[tuple[str, int], set[str] | None, str]]:
    """Each pair with its readers and the tensor whose range it uses: mostly its own, else by rule 6."""
    view = flow.view
    # The range of a chain of shape operators is that of its first tensor, quantized itself or not.
    behind_shapes = {
        str(output): str(node.input[0])
        for node in view.nodes
        if node.op_type in flow.target.shape_ops and node.input and not view.is_constant(node.input[0])
        for output in node.output
    }
    into_concat = {
        str(tensor): str(node.output[0])
        for node in view.nodes
        if node.op_type == "Concat" and (node.output[0], 8) in pairs
        for tensor in node.input
        if (tensor, 8) in pairs and len(view.consumer_indices(tensor)) == 1 and tensor not in view.outputs
    }
    # If the end of a chain is read only by a Concat, the chain's own range stands: the Concat's would coarsen the
    # others.
    for (tensor, bits), readers in pairs.items():
        sources = into_concat | behind_shapes if bits == 8 else behind_shapes
        yield (tensor, bits), readers, _root(sources, tensor)


def _root(source: Mapping[str, str], tensor: str) -> str:
    seen = {tensor}
    while (following := source.get(tensor)) is not None and following not in seen:
        tensor = following
        seen.add(tensor)
    return tensor
