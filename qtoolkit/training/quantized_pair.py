"""The float network and its quantized form: the first teaches the second, whose grids and weights are trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.graph.layers import Layer, find_layers
from qtoolkit.graph.placement import Placement
from qtoolkit.graph.qdq import LayerWeights, insert_qdq
from qtoolkit.graph.view import node_name
from qtoolkit.numerics.affine import QuantParams
from qtoolkit.training.distill import Distillation, head_outputs, score_channels
from qtoolkit.training.fake_quantizer import FakeQuantizer, round_bias
from qtoolkit.training.onnx_module import OnnxModule
from qtoolkit.training.onnx_parameters import write_constants_

__all__ = ["GRID_RATE_SHARE", "QuantizedPair"]

GRID_RATE_SHARE = 200.0
"""Learning rate of the logarithms of scales, as a multiple of that of weights."""

_LEARNED_BITS = 8
_HUBER_LIMIT = 1.0


@dataclass(frozen=True, eq=False)
class QuantizedPair:
    """``teacher``, the float network, and ``student``, the same with a fake quantizer at every Q/DQ pair and weight.

    Both give the outputs of the last layers, which ``loss`` compares. ``activations`` (by placed tensor and bit width)
    and ``weights`` (by layer) are the fake quantizers. Layers at fp16 are trained in float32.
    """

    model: onnx.ModelProto
    teacher: OnnxModule
    student: OnnxModule
    loss: Distillation
    activations: Mapping[tuple[str, int], FakeQuantizer]
    weights: Mapping[str, FakeQuantizer]
    layers: Mapping[str, Layer]

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        head: Head | None,
        placement: Placement,
        activations: Mapping[tuple[str, int], QuantParams],
        weights: Mapping[str, LayerWeights],
    ) -> QuantizedPair:
        """The pair of ``model`` (prepared, float), its grids those that PTQ chose.

        8-bit grids are learned. 16-bit ones, whose steps are fine enough, and that of the network's own input, which
        devices fill with bytes, stay. Raises ModelFileError for a network that torch cannot run.
        """
        layers = {layer.name: layer for layer in find_layers(model)}
        outputs = head_outputs(model)
        biased = [name for name, each in weights.items() if each.bias is not None]
        graph = _training_graph(model, placement, activations, [layers[name] for name in biased])
        teacher = OnnxModule(model, outputs=outputs, channels_last=True).eval().requires_grad_(False)
        student = OnnxModule(graph, outputs=outputs, channels_last=True).eval()
        on_activations = _quantize_activations_(student, placement, activations)
        on_weights = {
            name: FakeQuantizer(each.params, each.params.grid.bit_width == _LEARNED_BITS, batched=False)
            for name, each in weights.items()
            if name in student.layer_names
        }
        for name, quantizer in on_weights.items():
            student.set_weight_transform(name, quantizer)
        for name in biased:
            if name in on_weights:
                on_input = on_activations[layers[name].input, placement.layers[name].activation_bits]
                student.set_node_function(_bias_node(name), _bias_rounding(on_input, on_weights[name]))
        loss = Distillation(outputs, score_channels(model, head), _HUBER_LIMIT)
        return cls(model, teacher, student, loss, on_activations, on_weights, layers)

    def to_(self, device: torch.device) -> None:
        """Move both networks, and with the student its grids; the loss goes where their outputs are."""
        self.teacher.to(device)
        self.student.to(device)

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained: constants of the network by name, and logarithms of scales."""
        return self.student.parameters_by_name() | self._ratios()

    def rate_share(self, name: str) -> float:
        """Learning rate of a trained parameter, as a multiple of that of weights."""
        return GRID_RATE_SHARE if name in self._ratios() else 1.0

    def tensors(self) -> dict[str, Tensor]:
        """The values of ``trained``, under the names that a state keeps them by."""
        return {f"model.{name}": parameter for name, parameter in self.trained().items()}

    @torch.no_grad()
    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the student to what ``tensors`` gave."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def exchange_(self, constants: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
        """Give the student these values of the constants that it trains, and return those it had; others stay."""
        trained, before = self.student.parameters_by_name(), dict[str, Tensor]()
        for name, value in constants.items():
            if name in trained:
                before[name] = trained[name].detach().clone()
                trained[name].copy_(torch.from_numpy(value))
        return before

    def network(self) -> onnx.ModelProto:
        """The float network with the student's constants: nothing is rounded in it."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        write_constants_(model, self.student.parameters_by_name())
        return model

    def activation_params(self) -> dict[tuple[str, int], QuantParams]:
        """Quantization parameters of now of each (tensor, bit width) that the student runs."""
        return {key: quantizer.params() for key, quantizer in self.activations.items()}

    def weight_params(self) -> dict[str, QuantParams]:
        """Quantization parameters of now of the weight of each layer that the student runs."""
        return {name: quantizer.params() for name, quantizer in self.weights.items()}

    def _ratios(self) -> dict[str, nn.Parameter]:
        named = {f"grid of {tensor} at {bits} bit": each for (tensor, bits), each in self.activations.items()}
        named |= {f"grid of the weight of {layer}": each for layer, each in self.weights.items()}
        # Tensors that share their grid share the parameter.
        unique = {id(each): (name, each.log2_ratio) for name, each in reversed(named.items())}
        return {name: ratio for name, ratio in reversed(unique.values()) if isinstance(ratio, nn.Parameter)}


def _training_graph(
    model: onnx.ModelProto,
    placement: Placement,
    activations: Mapping[tuple[str, int], QuantParams],
    biased: Collection[Layer],
) -> onnx.ModelProto:
    """``model`` with the pairs of its activations, float weights, and a node between each bias of ``biased`` and its
    layer, where the bias can be rounded."""
    graph = insert_qdq(model, Placement(placement.tensors, {}), activations, {})
    biases = {layer.name: layer.bias for layer in biased}
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.graph.node]
    del graph.graph.node[:]
    for node in nodes:
        if (bias := biases.get(node_name(node))) is not None:
            place = _bias_node(node_name(node))
            graph.graph.node.append(helper.make_node("Identity", [bias], [place], name=place))
            node.input[2] = place
        graph.graph.node.append(node)
    return graph


def _bias_node(layer: str) -> str:
    return f"{layer}/bias/rounded"


def _quantize_activations_(
    student: OnnxModule, placement: Placement, activations: Mapping[tuple[str, int], QuantParams]
) -> dict[tuple[str, int], FakeQuantizer]:
    """Put fake quantizers in the place of the pairs that ``student`` runs, one for tensors that share their grid."""
    shared: dict[tuple[str, int], FakeQuantizer] = {}
    found: dict[tuple[str, int], FakeQuantizer] = {}
    run = set(student.node_names)
    for (tensor, bits), pair in placement.tensors.items():
        names = (f"{tensor}/QuantizeLinear{bits}", f"{tensor}/DequantizeLinear{bits}")
        if not run.issuperset(names):
            continue
        key = (pair.range_of, bits)
        if key not in shared:
            learned = bits == _LEARNED_BITS and pair.range_of not in student.inputs
            shared[key] = FakeQuantizer(activations[tensor, bits], learned)
        found[tensor, bits] = shared[key]
        student.set_node_function(names[0], shared[key])
        student.set_node_function(names[1], _handed_on)
    return found


def _handed_on(x: Tensor, *_: Tensor) -> Tensor:
    return x


def _bias_rounding(on_input: FakeQuantizer, on_weight: FakeQuantizer) -> Callable[[Tensor], Tensor]:
    return lambda bias: round_bias(bias, on_input.scale, on_weight.scale)
