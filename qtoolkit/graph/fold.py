"""Constant folding: what does not depend on the image is computed once, when the network is read."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qtoolkit.graph.view import GraphView, attribute, captured_names

__all__ = ["fold_constants_"]

_SIZE_LIMIT_BYTES = 4 << 20
_RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)
_QUANTIZE_OPS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_NEVER_FOLDED = _RANDOM_OPS | _QUANTIZE_OPS
# What a reference operator may raise for an input it does not cover; its node then stays as it is.
_EVALUATION_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)

Array = np.ndarray[Any, Any]


def fold_constants_(model: onnx.ModelProto, size_limit_bytes: int = _SIZE_LIMIT_BYTES) -> int:
    """Replace nodes whose results are known by initializers; in place. Returns how many nodes went.

    Rules:

    - a Constant node becomes an initializer;
    - Shape and Size of a tensor with a fixed shape are known, whatever the tensor holds;
    - a node whose inputs are all constants is computed by the ONNX reference evaluator;
    - random operators, Dropout, QuantizeLinear and DequantizeLinear, operators with bodies and operators of other
      domains stay;
    - a result above ``size_limit_bytes`` that is larger than the node's inputs together stays a node, so that an
      Expand does not blow up the file; a Cast is folded all the same, for weights that are stored as fp16;
    - a node that makes a graph output stays.

    Shapes come from the graph's shape records: infer them before, and again after, since folding makes more known.
    """
    view = GraphView(model)
    found: dict[str, onnx.TensorProto] = {}
    values: dict[str, Array] = {}
    kept: list[onnx.NodeProto] = []
    for node in view.nodes:
        tensors = _known_tensors(view, node, values, size_limit_bytes)
        if tensors is None:
            kept.append(node)
            continue
        for tensor in tensors:
            found[tensor.name] = tensor
            values[tensor.name] = numpy_helper.to_array(tensor)
    folded = len(view.nodes) - len(kept)
    if folded:
        read = {name for node in kept for name in (*node.input, *captured_names(node))}
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(tensor for name, tensor in found.items() if name in read)
    return folded


def _known_tensors(
    view: GraphView, node: onnx.NodeProto, values: dict[str, Array], size_limit_bytes: int
) -> list[onnx.TensorProto] | None:
    """The outputs of ``node`` as tensors, or None where it has to stay."""
    if not _may_fold(view, node):
        return None
    if node.op_type == "Constant":
        return _constant_tensor(view, node)
    if node.op_type in ("Shape", "Size") and (shape := view.shape(node.input[0])) is not None:
        start, end = attribute(node, "start", 0), attribute(node, "end", None)
        result = np.array(shape[start:end] if node.op_type == "Shape" else np.prod(shape), dtype=np.int64)
        return [numpy_helper.from_array(result, node.output[0])]
    feeds = _constant_inputs(view, node, values)
    results = None if feeds is None else _evaluate(view.model, node, feeds)
    if feeds is None or results is None:
        return None
    grown = 0 if node.op_type == "Cast" else sum(array.nbytes for array in results.values())
    if grown > size_limit_bytes and grown > sum(array.nbytes for array in feeds.values()):
        return None
    return [numpy_helper.from_array(array, name) for name, array in results.items()]


def _may_fold(view: GraphView, node: onnx.NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _NEVER_FOLDED or set(node.output) & set(view.outputs):
        return False
    return all(a.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)


def _constant_inputs(view: GraphView, node: onnx.NodeProto, values: dict[str, Array]) -> dict[str, Array] | None:
    """The inputs of ``node`` where all of them are constants of a type that numpy has, else None."""
    feeds: dict[str, Array] = {}
    for name in filter(None, node.input):
        array = values[name] if name in values else view.constant(name)
        if array is None or array.dtype.kind not in "biuf":
            return None
        feeds[name] = array
    return feeds


def _constant_tensor(view: GraphView, node: onnx.NodeProto) -> list[onnx.TensorProto] | None:
    tensor = onnx.TensorProto()
    value = attribute(node, "value")
    if value is not None:
        tensor.CopyFrom(value)
    else:
        array = view.constant(node.output[0])
        if array is None:
            return None
        tensor.CopyFrom(numpy_helper.from_array(array))
    tensor.name = node.output[0]
    return [tensor]


def _evaluate(model: onnx.ModelProto, node: onnx.NodeProto, feeds: dict[str, Array]) -> dict[str, Array] | None:
    outputs = [name for name in node.output if name]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    graph = helper.make_graph([node], "fold", inputs, [onnx.ValueInfoProto(name=name) for name in outputs])
    single = helper.make_model(graph, opset_imports=list(model.opset_import))
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = ReferenceEvaluator(single).run(None, feeds)
    except _EVALUATION_ERRORS:
        return None
    arrays = [np.asarray(result) for result in results]
    if any(array.dtype.kind not in "biuf" for array in arrays):
        return None
    return dict(zip(outputs, arrays, strict=True))
