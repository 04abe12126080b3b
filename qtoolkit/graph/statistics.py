"""Let the network measure itself: extra outputs that hold each tensor's extremes and a sample of its values.

Reading whole activations out of the runtime costs more than the inference (a 640-pixel nano network makes 280 MB of
them an image). Reduced inside the graph, by the runtime's own threads, they are a few kilobytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.graph.view import GraphView

__all__ = ["OFFSET_INPUT", "MeasuredTensor", "add_statistics"]

OFFSET_INPUT = "qtoolkit/sample_offset"
"""Name of the extra input: int64 ``(1,)``, where sampling starts; another one each image."""

_FLAT, _START_AXIS, _END = "qtoolkit/flat", "qtoolkit/axis", "qtoolkit/end"
_FAR = 2**62


class MeasuredTensor(NamedTuple):
    """The outputs that tell of one tensor: scalars ``minimum`` and ``maximum``, and ``sample`` of shape ``(n,)``."""

    minimum: str
    maximum: str
    sample: str
    size: int


def add_statistics(
    model: onnx.ModelProto, tensors: Sequence[str], sample_size: int = 4096
) -> tuple[onnx.ModelProto, dict[str, MeasuredTensor]]:
    """A copy of ``model`` (prepared) that returns statistics of ``tensors`` instead of its outputs.

    The sample takes every s-th value of the flattened tensor from offset mod s on, with s odd and about size /
    ``sample_size``: with another offset for each image all places are seen in time.
    """
    view = GraphView(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {_FLAT: [-1], _START_AXIS: [0], _END: [_FAR]}
    nodes, measured = [], {}
    for tensor in tensors:
        size = prod(view.shape(tensor) or (1,))
        # An odd stride walks through all columns of a map whose width is even.
        stride = max(1, size // sample_size) | 1
        names = [
            f"{tensor}/statistics/{part}" for part in ("stride", "minimum", "maximum", "values", "start", "sample")
        ]
        constants[names[0]] = [stride]
        nodes += [
            helper.make_node("ReduceMin", [tensor], [names[1]], name=names[1], keepdims=0),
            helper.make_node("ReduceMax", [tensor], [names[2]], name=names[2], keepdims=0),
            helper.make_node("Reshape", [tensor, _FLAT], [names[3]], name=names[3]),
            helper.make_node("Mod", [OFFSET_INPUT, names[0]], [names[4]], name=names[4]),
            helper.make_node("Slice", [names[3], names[4], _END, _START_AXIS, names[0]], [names[5]], name=names[5]),
        ]
        measured[tensor] = MeasuredTensor(names[1], names[2], names[5], size)
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items())
    graph.input.append(helper.make_tensor_value_info(OFFSET_INPUT, TensorProto.INT64, [1]))
    del graph.output[:]
    for each in measured.values():
        graph.output.append(helper.make_tensor_value_info(each.minimum, TensorProto.FLOAT, []))
        graph.output.append(helper.make_tensor_value_info(each.maximum, TensorProto.FLOAT, []))
        graph.output.append(helper.make_tensor_value_info(each.sample, TensorProto.FLOAT, [None]))
    return copy, measured
