"""The targets: what each can do is a row here, not an ``if`` elsewhere. ``artifacts.target`` explains the fields."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.target import GridSpec, Target
from qtoolkit.errors import UsageError

__all__ = ["TARGETS", "find_target"]

_SHAPE_OPS = frozenset(
    {"MaxPool", "Split", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Resize"}
)
_SIGNED_8 = GridSpec(bit_width=8, signed=True, symmetric=True)
_WEIGHT_8 = GridSpec(bit_width=8, signed=True, symmetric=True, narrow_range=True)
_WEIGHT_16 = GridSpec(bit_width=16, signed=True, symmetric=True, narrow_range=True)
_SIGNED_16 = GridSpec(bit_width=16, signed=True, symmetric=True)

_ORT_CPU = Target(
    name="ort-cpu",
    backend="ort-cpu",
    description="ONNX Runtime on a processor: the embedded default and the edge PC",
    activation_8bit=GridSpec(bit_width=8, signed=False, symmetric=False),
    activation_16bit=GridSpec(bit_width=16, signed=False, symmetric=False),
    weight_8bit=_WEIGHT_8,
    weight_16bit=_WEIGHT_16,
    per_channel_weights=True,
    # No integer ConvTranspose there.
    int8_layers=frozenset({"Conv", "Gemm", "MatMul"}),
    wide_kinds=(Precision.FP16, Precision.INT16, Precision.INT16W16),
    quantize_layer_outputs=True,
    fused_activations=frozenset({"Relu", "Clip"}),
    int8_ops=frozenset({"Add", "Mul", "Sigmoid", "LeakyRelu", "Concat", "AveragePool", "GlobalAveragePool"}),
    shape_ops=_SHAPE_OPS,
    float_last_inputs=True,
    slow_softmax=True,
    slow_upsampling=True,
    slow_broadcasts=True,
    channel_multiple=4,
    wide_is_slower_note=(
        "ONNX Runtime has no 16-bit convolution on x86: fp16 layers cost float time there, int16 layers more"
    ),
)

_OPENVINO_CPU = Target(
    name="openvino-cpu",
    backend="openvino-cpu",
    description="OpenVINO on Intel and AMD processors",
    activation_8bit=GridSpec(bit_width=8, signed=False, symmetric=False),
    activation_16bit=GridSpec(bit_width=16, signed=False, symmetric=False),
    weight_8bit=_WEIGHT_8,
    weight_16bit=_WEIGHT_16,
    per_channel_weights=True,
    int8_layers=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    # OpenVINO has no 16-bit integer convolution.
    wide_kinds=(Precision.FP16,),
    # It fuses a convolution, what follows it (SiLU too) and the Q in front of the next one into one int8 kernel.
    quantize_layer_outputs=False,
    shape_ops=_SHAPE_OPS,
    wide_is_slower_note=(
        "OpenVINO computes fp16 layers in bf16 where the processor has bf16 arithmetic, else in float32 at float time"
    ),
)

_TENSORRT = Target(
    name="tensorrt",
    backend="tensorrt",
    description="NVIDIA TensorRT 8.5 to 10.x, Q/DQ with fp32 scales (weakly typed)",
    activation_8bit=_SIGNED_8,
    activation_16bit=_SIGNED_16,
    weight_8bit=_WEIGHT_8,
    weight_16bit=_WEIGHT_16,
    per_channel_weights=True,
    int8_layers=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    # TensorRT has no int16.
    wide_kinds=(Precision.FP16,),
    quantize_layer_outputs=False,
    shape_ops=_SHAPE_OPS,
    quantize_residual_adds=True,
    needs_engine=True,
    opsets=(13, 17),
)

_TENSORRT_STRONG = _TENSORRT.model_copy(
    update={
        "name": "tensorrt-strong",
        "description": "NVIDIA TensorRT 10.x and 11, strongly typed: fp16 tensors, Q/DQ with fp16 scales",
        "strongly_typed": True,
        "half_scales": True,
        # What TensorRT 10.0 reads of the opsets that have fp16 scales.
        "opsets": (19, 20),
    }
)

_TENSORRT_RTX = _TENSORRT_STRONG.model_copy(
    update={
        "name": "tensorrt-rtx",
        "backend": "tensorrt-rtx",
        "description": "NVIDIA TensorRT-RTX for GeForce and RTX cards, strongly typed, engines built ahead of time",
        # It computes with float32 scales, which Q/DQ of fp16 tensors have from opset 23 on, and warns of others.
        "half_scales": False,
        "opsets": (23, 23),
    }
)

_TIDL = Target(
    name="tidl",
    backend="tidl",
    description="Texas Instruments TIDL (TDA4, AM6xA), its symmetric number format",
    activation_8bit=_SIGNED_8.model_copy(update={"power_of_two": True}),
    activation_16bit=_SIGNED_16.model_copy(update={"power_of_two": True}),
    # TIDL's default, quantization_scale_type 0: scales of weights are free, those of feature maps powers of two.
    weight_8bit=_WEIGHT_8,
    weight_16bit=_WEIGHT_16,
    per_channel_weights=False,
    int8_layers=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    wide_kinds=(Precision.INT16W16, Precision.INT16),
    quantize_layer_outputs=True,
    fused_activations=frozenset({"Relu", "Clip"}),
    int8_ops=frozenset({"Add", "Mul", "Sigmoid", "LeakyRelu", "Concat", "AveragePool", "GlobalAveragePool"}),
    shape_ops=_SHAPE_OPS,
    integer_only=True,
    unsigned_where_nonnegative=True,
    # Biases as TIDL's own calibration does by default (accuracy_level 1); with one scale a weight, equal rows are most.
    corrections=("equalize", "bias"),
    concat_forces_inputs=True,
)

TARGETS: Mapping[str, Target] = MappingProxyType(
    {row.name: row for row in (_ORT_CPU, _OPENVINO_CPU, _TENSORRT, _TENSORRT_STRONG, _TENSORRT_RTX, _TIDL)}
)
"""Name → target; the first is the default."""


def find_target(name: str) -> Target:
    """The target of that name. Raises UsageError for an unknown one."""
    if name not in TARGETS:
        raise UsageError(
            "the target is not known",
            expected=f"one of {', '.join(TARGETS)}",
            found=repr(name),
            do="choose a target with --target",
        )
    return TARGETS[name]
