"""Which constants of an ONNX graph are trained, and writing trained values back into it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from qtoolkit.errors import UsageError
from qtoolkit.graph.layers import weight_positions
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["batch_norm_statistics", "choose_parameters", "write_constants_"]

_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})
# Operator → positions of what training changes, the data itself being input 0.
_TRAINED_INPUTS = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
}
_HANDED_ON = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def choose_parameters(view: GraphView, wanted: Collection[str] | None = None) -> tuple[str, ...]:
    """Names of the constants to train, in the order of the nodes that read them first.

    Without ``wanted``: weights of the layers that ``graph.layers`` finds (so not the fixed weights of a decoder), also
    behind QuantizeLinear and DequantizeLinear, a Reshape or a Transpose; biases, of the node or of an Add behind the
    layer; scale and shift of normalizations; slopes of PRelu. Only floating-point constants.
    Raises UsageError where ``wanted`` holds a name that is no floating-point constant.
    """
    layers = weight_positions(view)
    found: dict[str, None] = {}
    for node in view.nodes:
        name = node_name(node)
        places = _TRAINED_INPUTS.get(node.op_type, ())
        if name in layers:
            places = (layers[name], *places)
            found.update(dict.fromkeys(_added_bias(view, node)))
        elif node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            # No constant weight of its own: it may be made from one.
            places = tuple(place for place in (0, 1) if _is_quantized_weight(view, node, place))
            places += (2,) if places and len(node.input) > 2 and node.op_type != "MatMul" else ()
        sources = [_source(view, node.input[place]) for place in places if place < len(node.input)]
        found.update(dict.fromkeys(source for source in sources if source is not None))
    if wanted is None:
        return tuple(found)
    for name in wanted:
        if not view.is_constant(name) or view.elem_type(name) not in _FLOATS:
            raise UsageError(
                "a tensor cannot be trained",
                expected="the name of a floating-point initializer",
                found=repr(name),
            )
    return tuple(dict.fromkeys(wanted))


def batch_norm_statistics(view: GraphView) -> tuple[str, ...]:
    """Names of the running means and variances of all batch norms."""
    nodes = [node for node in view.nodes if node.op_type == "BatchNormalization"]
    return tuple(dict.fromkeys(name for node in nodes for name in node.input[3:5] if view.is_constant(name)))


def _is_quantized_weight(view: GraphView, node: onnx.NodeProto, place: int) -> bool:
    if place == 0 and node.op_type != "MatMul":
        return False
    passed, tensor = False, node.input[place]
    while (producer := view.producer(tensor)) is not None and producer.op_type in _HANDED_ON | _QUANTIZERS:
        passed = passed or producer.op_type in _QUANTIZERS
        tensor = producer.input[0]
    return passed and len(view.shape(tensor) or ()) >= 2 and view.is_constant(tensor)


def _source(view: GraphView, tensor: str) -> str | None:
    """The floating-point constant that ``tensor`` is, or is made from without arithmetic; None where there is none."""
    while tensor and not view.is_constant(tensor):
        producer = view.producer(tensor)
        if producer is None or producer.op_type not in _HANDED_ON | _QUANTIZERS:
            return None
        tensor = producer.input[0]
    return tensor if tensor and view.elem_type(tensor) in _FLOATS else None


def _added_bias(view: GraphView, node: onnx.NodeProto) -> list[str]:
    """The constant vector that the only reader of the layer's output adds."""
    readers = view.consumers(node.output[0])
    if node.op_type not in ("MatMul", "Gemm") or len(readers) != 1 or readers[0].op_type != "Add":
        return []
    others = [name for name in readers[0].input if name != node.output[0] and view.is_constant(name)]
    return [name for name in others if view.elem_type(name) in _FLOATS and len(view.shape(name) or ()) == 1]


def write_constants_(model: onnx.ModelProto, values: Mapping[str, Tensor]) -> None:
    """Give initializers and Constant nodes of ``model`` new values, each in the type it has there; in place.

    ``values`` holds them by name in the shape that they have in the model. Names, order and all else stay.
    """
    for initializer in model.graph.initializer:
        if initializer.name in values:
            _fill_(initializer, values[initializer.name])
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in values:
            _fill_constant_(node, values[node.output[0]])


def _fill_constant_(node: onnx.NodeProto, value: Tensor) -> None:
    for given in node.attribute:
        if given.name == "value":
            _fill_(given.t, value)
            return
    tensor = numpy_helper.from_array(value.detach().cpu().float().contiguous().numpy())
    del node.attribute[:]  # numbers written as value_float or value_floats
    node.attribute.append(helper.make_attribute("value", tensor))


def _fill_(tensor: onnx.TensorProto, value: Tensor) -> None:
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    array = value.detach().to("cpu", torch.float64 if kind == np.float64 else torch.float32).contiguous().numpy()
    filled = numpy_helper.from_array(array.astype(kind), tensor.name)
    if numpy_helper.to_array(tensor).tobytes() == numpy_helper.to_array(filled).tobytes():
        return  # however it was stored
    if tensor.doc_string:
        filled.doc_string = tensor.doc_string
    tensor.CopyFrom(filled)
