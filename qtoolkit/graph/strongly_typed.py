"""Type a quantized graph strongly: fp16 tensors where the weakly typed graph has float32 ones.

TensorRT from 11 on, TensorRT-RTX, and 10.x with STRONGLY_TYPED compute each tensor in the type that the graph says.
A weakly typed graph (float32 tensors between 8-bit layers, that the FP16 flag lowers) would run those in float32 there.

Rules:

1. The opset is raised to the one asked for: 19, where Q/DQ of fp16 tensors have fp16 scales, or 23, where they keep
   float32 scales and the DQ names fp16 as its output. TensorRT-RTX warns of fp16 scales: it computes with float32 ones.
2. A layer whose weight is quantized or fp16 already, and the pairs on its input, are in fp16. A layer with a float32
   weight stays in float32: its precision plan wanted that, so a float network changes in nothing but its opset.
3. An operator that is no layer follows, if every tensor it computes with comes out of fp16.
4. The decode tail stays in float32 (pixels beyond 512 would have steps of half a pixel in fp16), and so do nodes
   named in ``keep_float`` and layers whose 8-bit input spans so much that its values come near fp16's limit.
5. Casts stand where the types meet, one a tensor and direction: behind the image, in front of the tail, around the
   float32 islands. Casts of the weakly typed graph between float types go. Scales and regions of a Resize stay float32.
6. At opset 19, a scale that fp16 cannot hold within 2⁻¹⁰ is rounded up, and its weight's integers are rounded again.
7. Inputs and outputs of the network keep their names and types, nodes their names.

So the numbers are those of the weakly typed network within fp16 rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.half import FP16_LIMIT
from qtoolkit.graph.half_types import half_nodes
from qtoolkit.graph.opset import OpsetError, raised_to
from qtoolkit.graph.read import default_opset
from qtoolkit.graph.tidy import remove_unused_, rewrite_graph_
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["FLOAT32_SCALES_OPSET", "HALF_SCALES_OPSET", "is_strongly_typed", "strongly_typed"]

HALF_SCALES_OPSET = 19
"""The first opset whose Q/DQ take fp16 tensors, with fp16 scales."""
FLOAT32_SCALES_OPSET = 23
"""The first opset whose Q/DQ take fp16 tensors with float32 scales."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_FLOAT32_INPUTS = {"Resize": (1, 2)}
_SCALE_TOLERANCE = 2.0**-10
_SMALLEST_HALF = 2.0**-24


def is_strongly_typed(model: onnx.ModelProto) -> bool:
    """Whether some DQ of ``model`` gives an fp16 tensor."""
    view = GraphView(model)
    return any(
        view.elem_type(node.input[1]) == TensorProto.FLOAT16 or attribute(node, "output_dtype") == TensorProto.FLOAT16
        for node in view.nodes
        if node.op_type == "DequantizeLinear"
    )


def strongly_typed(
    model: onnx.ModelProto, keep_float: Collection[str] = (), *, opset: int = HALF_SCALES_OPSET
) -> onnx.ModelProto:
    """A strongly typed copy of ``model``; one that is so already comes back as it is. ``opset`` is 19 to 22 or 23.

    Raises ModelFileError where the opset cannot be raised, and where the result is not valid ONNX.
    """
    if is_strongly_typed(model):
        return model
    copy = _without_float_casts(_raised(model, opset))
    view = GraphView(copy)
    half_scales = max(opset, default_opset(copy) or 0) < FLOAT32_SCALES_OPSET
    writer = _Writer(view, half_nodes(view, copy, frozenset(keep_float)), half_scales)
    for index, node in enumerate(view.nodes):
        writer.write(index, node)
    rewrite_graph_(copy, writer.nodes, writer.constants.values())
    remove_unused_(copy)
    del copy.graph.value_info[:]
    try:
        typed = onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True)
        checker.check_model(typed)
    except (onnx.shape_inference.InferenceError, checker.ValidationError) as error:
        raise ModelFileError(
            "the network cannot be typed strongly",
            expected="operators that take fp16 tensors",
            found=" ".join(str(error).split())[:240],
            do="build for --target tensorrt (weakly typed), or name the operator's layer fp32 in the plan",
        ) from error
    return typed


def _raised(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    opset = default_opset(model) or 0
    try:
        raised = onnx.shape_inference.infer_shapes(model if opset >= wanted else raised_to(model, wanted))
    except (OpsetError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelFileError(
            f"the network cannot be raised from opset {opset} to {wanted}, where Q/DQ take fp16 tensors",
            expected="operators that the ONNX version converter knows",
            found=" ".join(str(error).split())[:200],
            do=f"export the network at opset {wanted}, or build for --target tensorrt (weakly typed)",
        ) from error
    lowest = helper.find_min_ir_version_for(list(raised.opset_import), ignore_unknown=True)
    raised.ir_version = max(raised.ir_version, lowest)
    return raised


def _without_float_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose readers of a Cast between float32 and fp16 read what goes into it; rule 5 puts back what is needed.

    An output of the network that such a Cast made is given by an Identity.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    view = GraphView(copy)
    source: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in view.nodes:
        for position, tensor in enumerate(node.input):
            node.input[position] = source.get(tensor, tensor)
        if _is_float_cast(view, node):
            source[node.output[0]] = node.input[0]
            if node.output[0] in view.outputs:
                nodes.append(helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node_name(node)))
        else:
            nodes.append(node)
    rewrite_graph_(copy, nodes, [])
    return copy


def _is_float_cast(view: GraphView, node: onnx.NodeProto) -> bool:
    if node.op_type != "Cast" or view.is_constant(node.input[0]):
        return False
    return attribute(node, "to") in _FLOATS and view.elem_type(node.input[0]) in _FLOATS


class _Writer:
    """Collects the nodes of the new graph, in order, with Casts and constants as they are needed."""

    def __init__(self, view: GraphView, half: frozenset[int], half_scales: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._view = view
        self._half = half
        self._half_scales = half_scales
        self._renamed = {
            output: _typed_name(output, True)
            for index in half
            for output in view.nodes[index].output
            if output in view.outputs
        }
        self._casts: set[str] = set()

    def write(self, index: int, node: onnx.NodeProto) -> None:
        """Add ``node`` with inputs of its type, and behind it the outputs of the network that it makes."""
        half = index in self._half
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and half:
            if self._half_scales:
                self._lower_scale(node)
            elif node.op_type == "DequantizeLinear":
                node.attribute.append(helper.make_attribute("output_dtype", int(TensorProto.FLOAT16)))
        for position in self._float_positions(node):
            node.input[position] = self._typed(str(node.input[position]), half)
        made = [str(output) for output in node.output if output in self._renamed]
        for position, output in enumerate(node.output):
            node.output[position] = self._renamed.get(output, output)
        if node.op_type == "Identity" and node.output[0] in self._view.outputs and half:
            made = [str(node.output[0])]
        self.nodes.append(node)
        for output in made:
            self._add_cast(self._renamed[output], output, TensorProto.FLOAT)

    def _float_positions(self, node: onnx.NodeProto) -> list[int]:
        if node.op_type == "DequantizeLinear":
            return []
        skipped: Iterable[int] = _FLOAT32_INPUTS.get(node.op_type, ())
        if node.op_type == "QuantizeLinear":
            skipped = (1, 2)
        elif node.op_type == "Cast":
            return []  # what is left of Casts changes to or from an integer type, and takes any float
        inputs = enumerate(map(str, node.input))
        return [i for i, tensor in inputs if tensor and i not in skipped and self._is_float(tensor)]

    def _is_float(self, tensor: str) -> bool:
        return self._view.elem_type(tensor) in (*_FLOATS, TensorProto.UNDEFINED)

    def _typed(self, tensor: str, half: bool) -> str:
        """Name of ``tensor`` in fp16 or float32; a Cast, or a constant of that type, is added where it is needed."""
        value = self._view.constant(tensor)
        if value is not None:
            wanted = np.dtype(np.float16 if half else np.float32)
            if value.dtype == wanted:
                return tensor
            return self._constant(_typed_name(tensor, half), value.astype(wanted))
        producer = self._view.producer_index(tensor)
        is_half = producer in self._half
        current = self._renamed.get(tensor, tensor)
        if is_half == half:
            return current
        name = tensor if tensor in self._renamed and not half else _typed_name(tensor, half)
        if name not in self._casts and name != tensor:
            self._add_cast(current, name, TensorProto.FLOAT16 if half else TensorProto.FLOAT)
        return name

    def _add_cast(self, source: str, result: str, to: int) -> None:
        if result not in self._casts:
            self._casts.add(result)
            self.nodes.append(helper.make_node("Cast", [source], [result], name=f"{result}/Cast", to=to))

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def _lower_scale(self, node: onnx.NodeProto) -> None:
        scale = self._view.constant(node.input[1])
        if scale is None or scale.dtype == np.float16:
            return
        lowered, kept = _half_scale(scale)
        integers = self._view.constant(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if integers is not None and not bool(kept.all()):
            axis = int(attribute(node, "axis", 1))
            rounded = _rounded_again(integers, scale, lowered, axis)
            node.input[0] = self._constant(_typed_name(node.input[0], True), rounded)
        node.input[1] = self._constant(_typed_name(node.input[1], True), lowered)


def _typed_name(tensor: str, half: bool) -> str:
    return f"{tensor}/{'half' if half else 'single'}"


def _half_scale(scale: NDArray[Any]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """The scale in fp16, and where that is the same within 2⁻¹⁰; elsewhere the next fp16 number above it."""
    exact = scale.astype(np.float64)
    nearest = exact.astype(np.float16)
    kept = np.abs(nearest.astype(np.float64) - exact) <= _SCALE_TOLERANCE * exact
    above = np.where(nearest.astype(np.float64) < exact, np.nextafter(nearest, np.float16(np.inf)), nearest)
    lowered = np.where(kept, nearest, np.maximum(above, np.float16(_SMALLEST_HALF))).astype(np.float16)
    if float(np.abs(exact).max(initial=0.0)) > FP16_LIMIT:
        raise ModelFileError(
            "a scale does not fit fp16",
            expected=f"scales up to {FP16_LIMIT:.0f}",
            found=f"{float(exact.max()):.6g}",
            do="keep the layer in fp32 in the plan",
        )
    return lowered, np.asarray(kept)


def _rounded_again(
    integers: NDArray[Any], scale: NDArray[Any], lowered: NDArray[np.float16], axis: int
) -> NDArray[np.integer[Any]]:
    ratio = scale.astype(np.float64) / lowered.astype(np.float64)
    if ratio.ndim == 1 and ratio.size > 1:
        shape = [1] * integers.ndim
        shape[axis] = -1
        ratio = ratio.reshape(shape)
        kept = (np.abs(ratio - 1) <= _SCALE_TOLERANCE).reshape(shape)
        ratio = np.where(kept, 1.0, ratio)
    limits = np.iinfo(integers.dtype)
    return np.clip(np.rint(integers * ratio), limits.min, limits.max).astype(integers.dtype)
