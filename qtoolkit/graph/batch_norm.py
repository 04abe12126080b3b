"""Batch-norm folding: scale and shift of a batch norm move into the weights before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from qtoolkit.graph.constants import store_constant_
from qtoolkit.graph.view import GraphView, attribute

__all__ = ["fold_batch_norms_"]

Array = np.ndarray[Any, Any]
_EPSILON = 1e-5


def fold_batch_norms_(model: onnx.ModelProto) -> int:
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it; in place. Returns how many went.

    With s = scale / √(variance + ε): W′ = W·s along the output channels, b′ = (b − mean)·s + shift, in float64 and
    rounded once to the type of the weight. For a Gemm, α·A·B + β·C, the same holds with b = β·C and then β = 1.

    Rules:

    - the batch norm is in inference form and its four parameters are constants;
    - weight and bias of the layer are constants (a bias may be absent: it is made);
    - nothing but the batch norm reads the output of the layer, and it is no graph output;
    - a weight or bias that another node reads too is copied first, so that the other node keeps its values;
    - the layer keeps its name and makes the tensor that the batch norm made;
    - every other batch norm (behind an activation, an Add, an input) stays.
    """
    view = GraphView(model)
    folded = [index for index, node in enumerate(view.nodes) if _fold_(view, node)]
    for index in reversed(folded):
        del model.graph.node[index]
    return len(folded)


def _fold_(view: GraphView, norm: onnx.NodeProto) -> bool:
    parameters = _scale_and_shift(view, norm)
    layer = view.producer(norm.input[0]) if parameters else None
    if parameters is None or layer is None or layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    if norm.input[0] in view.outputs or len(view.consumers(norm.input[0])) != 1:
        return False
    weight = view.constant(layer.input[1])
    bias = _bias(view, layer, parameters[0].size)
    if weight is None or bias is None:
        return False
    scale, shift = parameters
    scaled = _scale_weight(layer, weight.astype(np.float64), scale)
    if scaled is None:
        return False
    store_constant_(view, layer, 1, scaled.astype(weight.dtype))
    store_constant_(view, layer, 2, (bias * scale + shift).astype(weight.dtype))
    if layer.op_type == "Gemm":
        _set_attribute_(layer, "beta", 1.0)
    layer.output[0] = norm.output[0]
    return True


def _scale_and_shift(view: GraphView, norm: onnx.NodeProto) -> tuple[Array, Array] | None:
    """Batch norm as y = x·scale + shift, both (C,) float64; None where the node is no such thing."""
    if norm.op_type != "BatchNormalization" or norm.domain not in ("", "ai.onnx"):
        return None
    if attribute(norm, "training_mode", 0) or any(norm.output[1:]):
        return None
    arrays = [view.constant(name) for name in norm.input[1:5]]
    if any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (array.astype(np.float64) for array in arrays if array is not None)
    scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", _EPSILON))
    return scale, beta - mean * scale


def _bias(view: GraphView, layer: onnx.NodeProto, channels: int) -> Array | None:
    """What the layer adds per output channel, (C,) float64; None where it is not a constant of that form."""
    if len(layer.input) < 3 or not layer.input[2]:
        return np.zeros(channels)
    bias = view.constant(layer.input[2])
    if bias is None or bias.size not in (1, channels) or (bias.ndim and bias.shape[-1] != bias.size):
        return None
    factor = attribute(layer, "beta", 1.0) if layer.op_type == "Gemm" else 1.0
    return np.broadcast_to(bias.reshape(-1), channels).astype(np.float64) * factor


def _scale_weight(layer: onnx.NodeProto, weight: Array, scale: Array) -> Array | None:
    """Weight times scale along the output channels; None where their numbers differ."""
    if layer.op_type == "ConvTranspose":
        # (Cin, Cout/group, kh, kw): output channels of one group stand beside the input channels of that group.
        groups = int(attribute(layer, "group", 1))
        if weight.shape[1] * groups != scale.size:
            return None
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        kernel = (1,) * (weight.ndim - 2)
        scaled: Array = (grouped * scale.reshape(groups, 1, -1, *kernel)).reshape(weight.shape)
        return scaled
    axis = 1 if layer.op_type == "Gemm" and not attribute(layer, "transB", 0) else 0
    if weight.shape[axis] != scale.size:
        return None
    return weight * scale.reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])


def _set_attribute_(node: onnx.NodeProto, name: str, value: float) -> None:
    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name == name:
            del node.attribute[index]
    node.attribute.append(helper.make_attribute(name, value))
