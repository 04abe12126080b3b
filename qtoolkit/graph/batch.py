"""A network of one image made into one of several at a time."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.shapes import network_input
from qtoolkit.graph.tidy import remove_unused_
from qtoolkit.graph.view import GraphView

__all__ = ["with_batch"]


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy of a prepared network, float or quantized, whose input is (``batch``, C, H, W).

    Rules: a Reshape of something that depends on the image, to a constant shape that begins with 1, begins with
    ``batch`` instead; nothing else changes. Recorded shapes are inferred anew. That is right for networks that keep
    their images on the first axis; whether this one does, only running it tells: compare with single images.

    Raises UsageError for a batch below 1, ModelFileError where the shapes do not fit at that batch.
    """
    if batch < 1:
        raise UsageError("the batch cannot be used", expected="1 or more", found=str(batch), do="give --batch 1")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    image = network_input(result).name
    _widen_reshapes_(result, image, batch)
    graph = result.graph
    for value in graph.input:
        if value.name == image:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    remove_unused_(result)
    try:
        return shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise ModelFileError(
            f"the network cannot run at batch {batch}",
            expected="a network that keeps its images on the first axis",
            found=str(error).strip().splitlines()[0][:200],
            do="export it for that batch",
        ) from error


def _widen_reshapes_(model: onnx.ModelProto, image: str, batch: int) -> None:
    view = GraphView(model)
    depends = {image}
    widened: dict[str, str] = {}
    for node in view.nodes:
        if not depends & set(node.input):
            continue
        depends.update(node.output)
        if node.op_type != "Reshape":
            continue
        shape = view.constant(node.input[1])
        if shape is None or not shape.size or int(shape[0]) != 1:
            continue
        name = widened.get(node.input[1])
        if name is None:
            name = widened[node.input[1]] = f"{node.input[1]}.batch"
            values = np.concatenate([[batch], shape[1:]]).astype(np.int64)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        node.input[1] = name
