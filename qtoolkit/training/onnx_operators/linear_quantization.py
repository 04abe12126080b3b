"""QuantizeLinear and DequantizeLinear with a gradient.

::

    q = clip(round(x / scale) + zero_point, qmin, qmax)      round half to even
    y = (q − zero_point) · scale

The integers travel as floats so that a gradient can pass: 1 through the rounding (straight-through estimator), 0 where
the value is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx
import torch
from torch import Tensor

from qtoolkit.training.onnx_operators.site import Builder, Inputs, Operator, Pass, Site, UnsupportedNode

__all__ = ["OPERATORS", "is_quantized"]

_INTEGERS: dict[int, tuple[int, int]] = {
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT16: (-32768, 32767),
    onnx.TensorProto.UINT16: (0, 65535),
}


def is_quantized(node: onnx.NodeProto) -> bool:
    """Whether the output of ``node`` holds integers that travel as floats."""
    return str(node.op_type) == "QuantizeLinear"


def _spread(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """One value, or one for each entry along ``axis`` of ``like``, in a shape that broadcasts."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _quantize(site: Site) -> Operator:
    site.unless(not site.attribute("block_size", 0), "blocks")
    axis = site.attribute("axis", 1)
    given = site.view.elem_type(site.node.input[2]) if site.has(2) else site.attribute("output_dtype", 0)
    kind = int(given or onnx.TensorProto.UINT8)
    limits = _INTEGERS.get(kind)
    if limits is None:
        raise UnsupportedNode(f"type {onnx.TensorProto.DataType.Name(kind).lower()}")
    low, high = limits
    has_zero_point = site.has(2)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, scale = inputs[0], _spread(inputs[1], axis, inputs[0])
        steps = x / scale
        rounded = steps + (steps.round() - steps).detach()
        if has_zero_point:
            rounded = rounded + _spread(inputs[2], axis, x).to(x.dtype)
        return rounded.clamp(low, high)

    return run


def _dequantize(site: Site) -> Operator:
    site.unless(not site.attribute("block_size", 0), "blocks")
    axis, has_zero_point = site.attribute("axis", 1), site.has(2)

    def run(inputs: Inputs, _: Pass) -> Tensor:
        x, scale = inputs[0], _spread(inputs[1], axis, inputs[0])
        if has_zero_point:
            zero_point = _spread(inputs[2], axis, x)
            # Integers of 32 bit, which biases are, do not all fit into a float32: subtract before the conversion.
            x = x - zero_point.to(x.dtype) if x.is_floating_point() else x.to(torch.int64) - zero_point.to(torch.int64)
        return x.to(scale.dtype) * scale

    return run


OPERATORS: Mapping[str, Builder] = MappingProxyType({"QuantizeLinear": _quantize, "DequantizeLinear": _dequantize})
"""Operator → builder."""
