"""Non-maximum suppression inside the graph: a network that gives people instead of anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.tidy import remove_unused_
from qtoolkit.graph.view import GraphView

__all__ = ["END_TO_END_OUTPUTS", "NmsSettings", "append_nms"]

END_TO_END_OUTPUTS = ("boxes", "scores", "keypoints")
"""(N, 4) x1, y1, x2, y2 in pixels of the input; (N,); (N, K, 3) x, y, confidence. N people, most confident first."""

_PREFIX = "end_to_end"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class NmsSettings:
    """score_threshold  people with a score not above it are dropped, 0–1
    iou_threshold    of two boxes with a larger IoU the more confident stays, 0–1
    max_people       at most so many people
    max_candidates   only so many of the most confident boxes are looked at

    Raises UsageError for values outside these ranges or below 1.
    """

    score_threshold: float
    iou_threshold: float
    max_people: int
    max_candidates: int

    def __post_init__(self) -> None:
        for name in ("score_threshold", "iou_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise _bad_setting(name, "a number from 0 to 1", getattr(self, name))
        for name in ("max_people", "max_candidates"):
            if getattr(self, name) < 1:
                raise _bad_setting(name, "at least 1", getattr(self, name))


class _Builder:
    """Nodes and constants that are added behind a graph, with names of their own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any, dtype: type[np.generic]) -> str:
        name = f"{_PREFIX}.{name}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def node(self, operator: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:
        made = output or f"{_PREFIX}.{name}"
        self.nodes.append(helper.make_node(operator, inputs, [made], f"{_PREFIX}.{name}", **attributes))
        return made

    def split(self, tensor: str, sizes: list[int], names: list[str]) -> list[str]:
        outputs = [f"{_PREFIX}.{name}" for name in names]
        lengths = self.constant(f"{names[0]}.sizes", sizes, np.int64)
        self.nodes.append(helper.make_node("Split", [tensor, lengths], outputs, f"{names[0]}.split", axis=1))
        return outputs


def append_nms(
    model: onnx.ModelProto, output: str, *, class_score: bool, anchors_last: bool, settings: NmsSettings
) -> onnx.ModelProto:
    """A copy of a prepared network, float or quantized, that gives ``END_TO_END_OUTPUTS`` instead of rows per anchor.

    output        the tensor of rows: (1, A, C), or (1, C, A) with ``anchors_last``
    class_score   a row is cx, cy, w, h, objectness, class, K × (x, y, confidence) (yolov5-pose), the score being
                  objectness · class; otherwise cx, cy, w, h, score, K × (x, y, confidence) (yolov8-pose)

    Rules: a float16 ``output`` is made float32. The graph before it stays as it is, unless one of its tensors has the
    name of a new output: then ``.inner`` is added to it. Other outputs go, and what only they needed. The operators are
    of opset 13, so that any prepared network can take them; the file keeps its opset. The same boxes stay, in the same
    order, as from the suppression on the host: NonMaxSuppression drops a box whose IoU with a better one is above the
    threshold too.

    Raises ModelFileError where ``output`` is no such tensor of float32 or float16.
    """
    rows, keypoints = _layout(model, output, class_score, anchors_last)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    output_given, output = output, _free_names_(result, output)
    build = _Builder()
    if GraphView(model).elem_type(output_given) == TensorProto.FLOAT16:
        output = build.node("Cast", [output], "rows_float32", to=TensorProto.FLOAT)
    boxes, scores, points = _columns(build, output, rows, keypoints, class_score, anchors_last)
    if rows > settings.max_candidates:
        boxes, scores, points = _best(build, boxes, scores, points, settings.max_candidates)
    _suppress(build, boxes, scores, points, settings)
    result.graph.node.extend(build.nodes)
    result.graph.initializer.extend(build.initializers)
    del result.graph.output[:]
    shapes: dict[str, list[str | int]] = {
        "boxes": ["people", 4],
        "scores": ["people"],
        "keypoints": ["people", keypoints, 3],
    }
    for name, shape in shapes.items():
        result.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    remove_unused_(result)
    checker.check_model(result)
    return result


def _layout(model: onnx.ModelProto, output: str, class_score: bool, anchors_last: bool) -> tuple[int, int]:
    """Number of rows, number of keypoints."""
    view = GraphView(model)
    shape = view.shape(output)
    before = 6 if class_score else 5
    if shape is not None and len(shape) == 3 and shape[0] == 1 and view.elem_type(output) in _FLOATS:
        rows, columns = (shape[2], shape[1]) if anchors_last else (shape[1], shape[2])
        if columns > before and not (columns - before) % 3:
            return rows, (columns - before) // 3
    found = f"shape {shape}" if output in view.outputs else f"outputs {', '.join(view.outputs)}"
    raise ModelFileError(
        f"no people can be read from {output!r}",
        expected=f"a float32 or float16 output of 1×{'C×A' if anchors_last else 'A×C'} with C = {before} + 3K",
        found=found,
        do="export the network with its decoded outputs",
    )


def _free_names_(model: onnx.ModelProto, output: str) -> str:
    """Take the names of the new outputs from the graph's tensors; the name that ``output`` has then."""
    graph = model.graph
    renamed = {name: f"{name}.inner" for name in END_TO_END_OUTPUTS}
    for node in graph.node:
        for field in (node.input, node.output):
            names = [renamed.get(name, name) for name in field]
            del field[:]
            field.extend(names)
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        value.name = renamed.get(value.name, value.name)
    return renamed.get(output, output)


def _columns(
    build: _Builder, output: str, rows: int, keypoints: int, class_score: bool, anchors_last: bool
) -> tuple[str, str, str]:
    """Corners (A, 4), scores (A,) and keypoints (A, K, 3) of all rows."""
    if anchors_last:
        output = build.node("Transpose", [output], "transpose", perm=[0, 2, 1])
    columns = (6 if class_score else 5) + 3 * keypoints
    table = build.node("Reshape", [output, build.constant("rows.shape", [rows, columns], np.int64)], "rows")
    centre, size, *score, points = build.split(
        table,
        [2, 2, *([1, 1] if class_score else [1]), 3 * keypoints],
        ["centre", "size", *(["objectness", "class"] if class_score else ["score"]), "points"],
    )
    half = build.node("Mul", [size, build.constant("one_half", 0.5, np.float32)], "half")
    low, high = build.node("Sub", [centre, half], "low"), build.node("Add", [centre, half], "high")
    boxes = build.node("Concat", [low, high], "corners", axis=1)
    confidence = build.node("Mul", score, "confidence") if class_score else score[0]
    scores = build.node("Reshape", [confidence, build.constant("scores.shape", [rows], np.int64)], "all_scores")
    shape = build.constant("points.shape", [rows, keypoints, 3], np.int64)
    return boxes, scores, build.node("Reshape", [points, shape], "all_points")


def _best(build: _Builder, boxes: str, scores: str, points: str, count: int) -> tuple[str, str, str]:
    """The ``count`` most confident rows, most confident first; of equal ones the first come first."""
    values, places = f"{_PREFIX}.best_scores", f"{_PREFIX}.best_places"
    number = build.constant("candidates", [count], np.int64)
    build.nodes.append(helper.make_node("TopK", [scores, number], [values, places], f"{_PREFIX}.best", axis=0))
    chosen = [
        build.node("Gather", [each, places], f"best_{each.rpartition('.')[2]}", axis=0) for each in (boxes, points)
    ]
    return chosen[0], values, chosen[1]


def _suppress(build: _Builder, boxes: str, scores: str, points: str, settings: NmsSettings) -> None:
    zero = build.constant("axis0", [0], np.int64)
    both = build.constant("axes01", [0, 1], np.int64)
    inputs = [
        build.node("Unsqueeze", [boxes, zero], "nms_boxes"),
        build.node("Unsqueeze", [scores, both], "nms_scores"),
        build.constant("max_people", [settings.max_people], np.int64),
        build.constant("iou_threshold", [settings.iou_threshold], np.float32),
        build.constant("score_threshold", [settings.score_threshold], np.float32),
    ]
    found = build.node("NonMaxSuppression", inputs, "nms")
    # Of its rows (batch, class, box) only the box says anything.
    people = build.node("Gather", [found, build.constant("box_column", 2, np.int64)], "people", axis=1)
    for tensor, name in zip((boxes, scores, points), END_TO_END_OUTPUTS, strict=True):
        build.node("Gather", [tensor, people], f"{name}_of_people", output=name, axis=0)


def _bad_setting(name: str, expected: str, found: object) -> UsageError:
    return UsageError(
        f"the {name.replace('_', ' ')} cannot be used", expected=expected, found=str(found), do="give another value"
    )
