"""Where Q/DQ pairs stand on a device that has integers only: every tensor in front of the decode tail lies on a grid.

Rules, applied from the last node to the first:

1. An integer layer reads its input at the layer's own bit width.
2. An operator between layers cannot change precision: where its output is wanted, it reads all its data at the width
   of its output, the wider one where readers want both. So a Concat that a 16-bit layer reads has 16-bit inputs, and a
   MaxPool passes the width on.
3. A tensor is written at each width that somebody reads it at; the decode tail reads the widest.
4. No pair stands between a layer (or an Add, a Concat …) and the activation function that the target fuses behind it,
   nor inside a SiLU (x · sigmoid(x)), which is one table look-up.

Unlike where a Q must stand behind a layer (``placement``), the output of a layer is none of its own business: its
32-bit sums are written at the width that the next one reads. In front of float layers nothing is quantized, so that a
layer tried alone bears the error of exactly those tensors whose width it decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.target import Target
from qtoolkit.graph.activations import activation_behind
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["integer_pairs"]


@dataclass
class _Wants:
    """Who reads each tensor at which width, and the width of tensors inside a fused pair of operators."""

    readers: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    inside: dict[str, int] = field(default_factory=dict)

    def add(self, tensor: str, bits: int, reader: str) -> None:
        self.readers.setdefault(tensor, {}).setdefault(bits, set()).add(reader)

    def width(self, node: onnx.NodeProto) -> int:
        """The widest that an output of ``node`` is wanted at; 0 where none is."""
        widths = [bits for tensor in node.output for bits in self.readers.get(tensor, ())]
        return max([*widths, *(self.inside.get(tensor, 0) for tensor in node.output)], default=0)


def integer_pairs(
    structure: Structure, precisions: Mapping[str, Precision], target: Target
) -> dict[tuple[str, int], set[str]]:
    """(tensor, bit width) → nodes that read it so, in graph order, for the integer layers of ``precisions``."""
    view, wants = structure.view, _Wants()
    for node in reversed(view.nodes):
        name = node_name(node)
        if name in structure.layers:
            if name in precisions:
                wants.add(structure.layers[name].input, precisions[name].activation_bits, name)
        elif name not in structure.tail and (bits := wants.width(node)):
            _want_inputs(wants, view, node, bits, target)
    _add_tail_readers(wants, structure)
    order = [*view.inputs, *(str(tensor) for node in view.nodes for tensor in node.output)]
    return {
        (tensor, bits): readers for tensor in order for bits, readers in sorted(wants.readers.get(tensor, {}).items())
    }


def _want_inputs(wants: _Wants, view: GraphView, node: onnx.NodeProto, bits: int, target: Target) -> None:
    data = [tensor for tensor in node.input if tensor and _is_activation(view, tensor)]
    if node.op_type in target.fused_activations and _stands_alone_behind(view, data[0]):
        wants.inside[data[0]] = max(bits, wants.inside.get(data[0], 0))
        return
    for tensor in data:
        producer = view.producer(tensor)
        if producer is not None and producer.op_type == "Sigmoid" and _is_silu(view, producer, data):
            wants.add(producer.input[0], bits, node_name(producer))
        else:
            wants.add(tensor, bits, node_name(node))


def _is_activation(view: GraphView, tensor: str) -> bool:
    return not view.is_constant(tensor) and view.elem_type(tensor) in (0, onnx.TensorProto.FLOAT)


def _stands_alone_behind(view: GraphView, tensor: str) -> bool:
    """Whether an operator made ``tensor`` for one reader only."""
    return view.producer(tensor) is not None and len(view.consumers(tensor)) == 1 and tensor not in view.outputs


def _is_silu(view: GraphView, sigmoid: onnx.NodeProto, factors: list[str]) -> bool:
    source = sigmoid.input[0]
    return source in factors and activation_behind(view, source) == "silu"


def _add_tail_readers(wants: _Wants, structure: Structure) -> None:
    for tensor, by_width in wants.readers.items():
        in_tail = {node_name(node) for node in structure.view.consumers(tensor)} & structure.tail
        by_width[max(by_width)] |= in_tail
