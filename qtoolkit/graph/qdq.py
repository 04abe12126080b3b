"""Write quantization into a graph: QuantizeLinear/DequantizeLinear pairs at the places that ``placement`` chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.layers import Layer, Structure, find_layers
from qtoolkit.graph.opset import OpsetError, raised_to
from qtoolkit.graph.placement import Placement, QuantizedTensor
from qtoolkit.graph.read import default_opset
from qtoolkit.graph.tidy import rewrite_graph_
from qtoolkit.graph.view import node_name
from qtoolkit.numerics.affine import IntegerGrid, QuantParams, quantize

__all__ = ["LayerWeights", "insert_qdq", "read_names"]

_INT16_OPSET = 21
_BIAS_GRID = IntegerGrid(bit_width=32, signed=True, symmetric=True)
_BIAS_LIMIT = float(2**31 - 1)
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Weight of one integer layer on its grid, and its bias.

    ``weight`` integers of the float weight's shape; ``bias`` int32 ``(Cout,)`` with ``bias_params`` where the target
    adds it in integers, else None: then it stays the float constant it was.
    """

    weight: NDArray[np.integer[Any]]
    params: QuantParams
    bias: NDArray[np.int32] | None = None
    bias_params: QuantParams | None = None

    @classmethod
    def quantized(
        cls,
        weight: NDArray[np.floating[Any]],
        params: QuantParams,
        bias: NDArray[np.floating[Any]] | None = None,
        input_scale: float | None = None,
    ) -> LayerWeights:
        """Round a weight to its grid; with ``input_scale``, a bias ``(Cout,)`` too, at scale input × weight.

        A bias that int32 cannot hold at that scale (a channel of nearly zero weights) raises that channel's weight
        scale; a channel of zeros takes the scale of its bias.
        """
        if bias is None or input_scale is None:
            return cls(quantize(weight, params), params)
        # Lower than that, the scale of the bias would underflow: float32 holds no such number.
        lowest = _SMALLEST_SCALE / input_scale
        needed = np.maximum(np.abs(bias.astype(np.float64)) / (_BIAS_LIMIT * input_scale), lowest).astype(np.float32)
        needed = (
            np.nextafter(needed, np.float32(np.inf)) if params.axis is not None else np.float32(needed.max() * 1.0001)
        )
        # The scale of a channel without weights is free: the one that its bias needs, or all of the bias would be lost.
        dead = _dead_channels(weight, params.axis) & (bias != 0)
        scale = np.where(dead, needed, np.maximum(params.scale, needed)) if params.axis is not None else needed
        if bool(np.any(scale != params.scale)):
            scale = np.asarray(np.maximum(scale, params.scale) if params.axis is None else scale, np.float32)
            params = QuantParams(scale, params.zero_point, params.grid, params.axis)
        bias_scale = np.asarray(np.float32(input_scale) * params.scale, np.float32)
        axis = None if params.axis is None else 0
        bias_params = QuantParams(bias_scale, np.zeros(bias_scale.shape, np.int32), _BIAS_GRID, axis)
        return cls(quantize(weight, params), params, quantize(bias, bias_params).astype(np.int32), bias_params)


def _dead_channels(weight: NDArray[np.floating[Any]], axis: int | None) -> NDArray[np.bool_]:
    """Which output channels have no weight but 0, ``(Cout,)``; none without an axis."""
    if axis is None:
        return np.zeros(1, np.bool_)
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    return np.asarray(~np.any(weight != 0, axis=others))


def insert_qdq(
    model: onnx.ModelProto,
    placement: Placement,
    activations: Mapping[tuple[str, int], QuantParams],
    weights: Mapping[str, LayerWeights],
    structure: Structure | None = None,
) -> onnx.ModelProto:
    """A copy of ``model`` (prepared, float) with Q/DQ pairs as ``placement`` says.

    ``activations`` gives the quantization parameters of each placed (tensor, bit width), ``weights`` those of each
    integer layer. Weights are stored as integers with a DQ behind them. 16-bit integers raise the opset to 21, where
    ONNX has them; ModelFileError where the graph cannot be raised. Layer names, inputs and outputs stay as they were.
    ``structure`` is that of ``model``, where it is known already.
    """
    needs_16bit = any(bits == 16 for _, bits in placement.tensors) or any(
        weight.params.grid.bit_width == 16 for weight in weights.values()
    )
    copy = _raised(model) if needs_16bit else onnx.ModelProto()
    if not needs_16bit:
        copy.CopyFrom(model)
    writer = _Writer(copy)
    layers = structure.layers if structure else {layer.name: layer for layer in find_layers(model)}
    readers = _reader_table(placement)
    for tensor in [value.name for value in copy.graph.input]:
        writer.pairs_behind(tensor, placement, activations)
    for node in copy.graph.node:
        name = node_name(node)
        for index, tensor in enumerate(node.input):
            if (bits := readers.get((tensor, name), readers.get((tensor, None)))) is not None:
                node.input[index] = _dequantized(tensor, bits)
        if name in placement.layers:
            writer.weights_before(node, layers[name], weights[name])
        writer.nodes.append(node)
        for tensor in node.output:
            writer.pairs_behind(tensor, placement, activations)
    writer.finish()
    return copy


def _raised(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = default_opset(model) or 0
    if opset >= _INT16_OPSET:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.shape_inference.infer_shapes(raised_to(model, _INT16_OPSET))
    except (OpsetError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelFileError(
            f"the network cannot be raised from opset {opset} to {_INT16_OPSET}, where ONNX has 16-bit integers",
            expected="operators that the ONNX version converter knows",
            found=" ".join(str(error).split())[:200],
            do="use 16-bit floats (--wide fp16), or export the network at opset 21",
        ) from error


def _reader_table(placement: Placement) -> dict[tuple[str, str | None], int]:
    """(tensor, reading node or None for all) → bit width of the DQ that is read."""
    table: dict[tuple[str, str | None], int] = {}
    for (tensor, bits), pair in placement.tensors.items():
        for reader in (None,) if pair.readers is None else pair.readers:
            table[tensor, reader] = bits
    return table


def read_names(placement: Placement, readers: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Tensor → the names under which its ``readers`` (nodes by name) read it in what ``insert_qdq`` writes."""
    table = _reader_table(placement)
    found = {}
    for tensor, nodes in readers.items():
        bits = [table.get((tensor, node), table.get((tensor, None))) for node in nodes]
        found[tensor] = tuple(dict.fromkeys(tensor if each is None else _dequantized(tensor, each) for each in bits))
    return found


def _dequantized(tensor: str, bits: int) -> str:
    return f"{tensor}/dequantized{bits}"


class _Writer:
    """Collects the new nodes and initializers of one graph, in order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.setdefault(
            name, numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        )
        return name

    def _grid_inputs(self, name: str, params: QuantParams) -> list[str]:
        scale = self._constant(f"{name}/scale", params.scale)
        return [scale, self._constant(f"{name}/zero_point", params.zero_point)]

    def pairs_behind(
        self, tensor: str, placement: Placement, activations: Mapping[tuple[str, int], QuantParams]
    ) -> None:
        for bits in (8, 16):
            pair: QuantizedTensor | None = placement.tensors.get((tensor, bits))
            if pair is None:
                continue
            name = f"{tensor}/quantized{bits}"
            grid = self._grid_inputs(name, activations[tensor, bits])
            self.nodes.append(
                helper.make_node("QuantizeLinear", [tensor, *grid], [name], name=f"{tensor}/QuantizeLinear{bits}")
            )
            self.nodes.append(
                helper.make_node(
                    "DequantizeLinear",
                    [name, *grid],
                    [_dequantized(tensor, bits)],
                    name=f"{tensor}/DequantizeLinear{bits}",
                )
            )

    def weights_before(self, node: onnx.NodeProto, layer: Layer, weights: LayerWeights) -> None:
        # Shared weights may be quantized differently in each layer that reads them, so names carry the layer's.
        position = list(node.input).index(layer.weight)
        node.input[position] = self._dequantized_constant(layer, layer.weight, weights.weight, weights.params)
        if layer.bias and weights.bias is not None and weights.bias_params is not None:
            node.input[2] = self._dequantized_constant(layer, layer.bias, weights.bias, weights.bias_params)

    def _dequantized_constant(self, layer: Layer, tensor: str, value: NDArray[Any], params: QuantParams) -> str:
        name = f"{layer.name}/{tensor}/quantized"
        inputs = [self._constant(name, value), *self._grid_inputs(name, params)]
        output = f"{layer.name}/{tensor}/dequantized"
        axis: dict[str, Any] = {} if params.axis is None else {"axis": params.axis}
        self.nodes.append(
            helper.make_node("DequantizeLinear", inputs, [output], name=f"{output}/DequantizeLinear", **axis)
        )
        return output

    def finish(self) -> None:
        rewrite_graph_(self.model, self.nodes, self.initializers.values())
