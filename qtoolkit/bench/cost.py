"""What a network costs on any device: multiply-adds, bit operations, parameters, bytes. Counted, not measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx
from pydantic import BaseModel, ConfigDict

from qtoolkit.errors import UsageError
from qtoolkit.graph.layers import Layer
from qtoolkit.graph.macs import bops, count_macs

__all__ = ["FLOAT_BITS", "Cost", "network_cost", "parameter_names", "plan_bops"]

FLOAT_BITS = (32, 32)
"""Weight and activation bits of a layer that no plan mentions."""

# Operator → positions of its trained operands; a quantized or transposed one is looked for behind these.
_TRAINED_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
}
_TRANSPARENT_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape"})
_BITS_BY_TYPE: Mapping[int, int] = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.UINT32: 32,
    onnx.TensorProto.INT64: 64,
    onnx.TensorProto.UINT64: 64,
}


class Cost(BaseModel):
    """Cost of one inference at the stated input shape. 1 MAC is one multiply and one add: FLOPs = 2 × MACs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_shapes: dict[str, tuple[int, ...]]
    gmacs: float
    """10⁹ multiply-adds, as :mod:`qtoolkit.graph.macs` counts them."""
    params_m: float
    """10⁶ weights, biases and normalization parameters; a scale, a zero point and an anchor are none."""
    weights_bytes: int
    """Bytes those parameters take in the file, in the type they are stored in."""
    size_mb: float
    """10⁶ bytes of the whole ONNX file, without external data."""


def network_cost(model: onnx.ModelProto) -> Cost:
    """Cost of a network, float or quantized, whose input shapes are fixed.

    Raises UsageError where an input has a free dimension, ModelFileError where a shape cannot be inferred.
    """
    shapes = _fixed_input_shapes(model)
    parameters = [each for each in model.graph.initializer if each.name in parameter_names(model)]
    return Cost(
        input_shapes=shapes,
        gmacs=count_macs(onnx.shape_inference.infer_shapes(model)).total / 1e9,
        params_m=sum(math.prod(each.dims) for each in parameters) / 1e6,
        weights_bytes=sum(math.ceil(math.prod(each.dims) * _BITS_BY_TYPE[each.data_type] / 8) for each in parameters),
        size_mb=model.ByteSize() / 1e6,
    )


def parameter_names(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the initializers that hold trained numbers: weights, biases, normalization parameters.

    An operand is followed back through Q, DQ, Cast, Identity, Transpose and Reshape to the initializer behind it.
    """
    initializers = {each.name for each in model.graph.initializer if each.data_type in _BITS_BY_TYPE}
    producers = {tensor: node for node in model.graph.node for tensor in node.output}
    found: set[str] = set()
    for node in model.graph.node:
        for position in _TRAINED_OPERANDS.get(node.op_type, ()):
            tensor = node.input[position] if position < len(node.input) else ""
            while tensor in producers and producers[tensor].op_type in _TRANSPARENT_OPS:
                tensor = producers[tensor].input[0]
            if tensor in initializers:
                found.add(tensor)
    return frozenset(found)


def plan_bops(
    layers: Iterable[Layer],
    plan_bits: Mapping[str, tuple[int, int]],
    *,
    default_bits: tuple[int, int] = FLOAT_BITS,
) -> float:
    """Bit operations of one inference in units of 10⁹: Σ MACs × weight bits × activation bits over ``layers``.

    ``plan_bits``: layer name → (weight bits, activation bits); a layer it leaves out has ``default_bits``. Raises
    UsageError where it names a layer that is not among ``layers``.
    """
    known = {layer.name: layer.macs for layer in layers}
    unknown = sorted(set(plan_bits) - set(known))
    if unknown:
        raise UsageError(
            "the plan names layers the network does not have",
            expected=f"names of the {len(known)} layers of the network",
            found=", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
            do="make the plan from this network",
        )
    return sum(bops(macs, *plan_bits.get(name, default_bits)) for name, macs in known.items()) / 1e9


def _fixed_input_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    initializers = {each.name for each in model.graph.initializer}
    shapes: dict[str, tuple[int, ...]] = {}
    for each in model.graph.input:
        if each.name in initializers:
            continue
        dims = each.type.tensor_type.shape.dim
        shapes[each.name] = tuple(dim.dim_value for dim in dims)
        if not all(shapes[each.name]):
            raise UsageError(
                f"the cost of a network without a fixed input size cannot be counted (input {each.name!r})",
                expected="fixed input shapes",
                found=", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims),
                do="fix the size with --input-size",
            )
    return shapes
