"""Which output shapes each kind of pose head has, and what a head looks like once it is found.

Shapes are tuples in which None stands for an axis whose length the graph does not fix. A first axis of 1 or None is the
batch. K is the number of keypoints, A the number of anchors, N the number of people.

The rows of every YOLO head hold pixels of the network's input (x right, y down):

=====================  ======================  =======================================================================
kind                   shape                   row
=====================  ======================  =======================================================================
yolov8-pose            (1, 5+3K, A)            cx, cy, w, h, score, K × (x, y, confidence); A = cells. Or (1, A, 5+3K)
yolov5-pose            (1, A, 6+3K)            cx, cy, w, h, objectness, class, K × (x, y, confidence); A = 3 · cells
yolov5-end-to-end      (N, 6+3K), (1, N, 6+3K) x1, y1, x2, y2, score, class, K × (x, y, confidence); N open, NMS done
yolov8-end-to-end      (1, N, 6+3K)            the same row, N fixed (300 by habit), rows that are not people score 0
separate-outputs       (N, 4), (N), (N, K, 3)  boxes x1, y1, x2, y2; scores; keypoints (or (N, 3K)); or boxes (N, 5)
                                               with the score last. With or without a batch axis. NMS inside
heatmap                (1, K, H/s, W/s)        one person, one map per keypoint, s in 1, 2, 4, 8
=====================  ======================  =======================================================================

cells is the sum over the strides of ceil(H/s) · ceil(W/s). Sources: the Detect and Pose layers of Ultralytics YOLOv8
and YOLO11, their ``nms=True`` and end-to-end exports, and Texas Instruments' edgeai-yolov5 (YOLO-Pose).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

__all__ = ["HEAD_KINDS", "KNOWN_KEYPOINT_COUNTS", "Head", "Shape", "anchor_counts", "fitting_heads", "layout_lines"]

Shape = tuple[int | None, ...]

HEAD_KINDS = (
    "yolov8-pose",
    "yolov5-pose",
    "yolov5-end-to-end",
    "yolov8-end-to-end",
    "separate-outputs",
    "heatmap",
)

# Sizes of published skeletons (COCO 17, MPII 16, LSP and CrowdPose 14, hands 21, BODY_25, Halpe 26, whole body 133,
# faces 68, 98, 106 …). A detection or segmentation network has an output that fits a pose head with some K too (80
# classes and 32 mask coefficients look like 37 keypoints): K outside this set is believed only when the user says so.
KNOWN_KEYPOINT_COUNTS = frozenset({13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 25, 26, 68, 98, 106, 133})

# Whole-body skeletons have 133. Anchors read as the columns of a list would make thousands.
_MAX_KEYPOINTS = 200

_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
_HEATMAP_STRIDES = (1, 2, 4, 8)
# End-to-end exports keep 100 or 300 people; far more rows are anchors of a layout that is not known.
_MAX_FIXED_PEOPLE = 1000


@dataclass(frozen=True)
class Head:
    """The pose head of one network at one input size: what ``decode`` needs to know, nothing of the values.

    kind            one of HEAD_KINDS
    outputs         names of the tensors that are read; separate-outputs: boxes, keypoints and, unless the boxes have a
                    fifth column, scores
    keypoint_count  K
    input_size_wh   (W, H) of the network's input, pixels
    anchor_count    A, the fixed N of an end-to-end head, or None where the graph leaves it open
    strides         strides of the anchors or of the heatmap, pixels per cell; empty where there are none or A is open
    anchors_last    True where a row of the table above is a column: (1, 5+3K, A)
    box_format      "cxcywh", "xyxy", or "keypoints" where the box is drawn around the keypoints
    nms_inside      the network already keeps one box per person
    """

    kind: str
    outputs: tuple[str, ...]
    keypoint_count: int
    input_size_wh: tuple[int, int]
    anchor_count: int | None
    strides: tuple[int, ...]
    anchors_last: bool
    box_format: str
    nms_inside: bool


def anchor_counts(input_size_wh: tuple[int, int]) -> dict[tuple[int, ...], int]:
    """Cells of every known set of strides at this input size (W, H): strides → cells."""
    w, h = input_size_wh
    return {strides: sum(math.ceil(w / s) * math.ceil(h / s) for s in strides) for strides in _STRIDES}


def fitting_heads(
    output_shapes: Mapping[str, Shape], input_size_wh: tuple[int, int], kind: str | None = None
) -> list[Head]:
    """Every reading of the outputs as a pose head, without judging between them.

    With ``kind`` only that kind is tried, and the limits on N that keep other networks out are lifted. K may be
    anything up to 200.
    """
    heads: list[Head] = []
    for name, shape in output_shapes.items():
        if kind in (None, "yolov8-pose"):
            heads += _yolov8(name, shape, input_size_wh)
        if kind in (None, "yolov5-pose"):
            heads += _yolov5(name, shape, input_size_wh, asked_for=kind is not None)
        if kind in (None, "yolov5-end-to-end", "yolov8-end-to-end"):
            heads += _end_to_end(name, shape, input_size_wh, kind)
        if kind in (None, "heatmap"):
            heads += _heatmap(name, shape, input_size_wh)
    if kind in (None, "separate-outputs"):
        heads += _separate(output_shapes, input_size_wh, asked_for=kind is not None)
    return heads


def layout_lines(input_size_wh: tuple[int, int], kind: str | None = None) -> list[str]:
    """One line per kind (or for one kind): the shapes that it has at this input size, with the usual 17 keypoints."""
    w, h = input_size_wh
    cells = list(anchor_counts(input_size_wh).items())
    yolov8 = ", ".join(f"1×56×{count} (strides {', '.join(map(str, strides))})" for strides, count in cells)
    yolov5 = ", ".join(f"1×{3 * count}×57" for _, count in cells)
    maps = ", ".join(f"1×17×{h // s}×{w // s}" for s in _HEATMAP_STRIDES if w % s == h % s == 0)
    lines = {
        "yolov8-pose": f"{yolov8}, or the last two axes swapped; 56 = 5 + 3·17",
        "yolov5-pose": f"{yolov5}; 57 = 6 + 3·17",
        "yolov5-end-to-end": "N×57 or 1×N×57, N left open by the graph",
        "yolov8-end-to-end": f"1×N×57, N at most {_MAX_FIXED_PEOPLE} (300 by habit)",
        "separate-outputs": "boxes N×4, scores N and keypoints N×17×3 (or N×51), or boxes N×5 and keypoints",
        "heatmap": maps or "1×17×(H/s)×(W/s): no stride of 1, 2, 4, 8 divides this input size",
    }
    return [f"{name}: {text}" for name, text in lines.items() if kind in (None, name)]


def _keypoints(columns: int | None, before: int) -> int | None:
    """K where ``columns`` = ``before`` + 3K with K from 1 to 200, else None."""
    if columns is None or (columns - before) % 3:
        return None
    keypoint_count = (columns - before) // 3
    return keypoint_count if 1 <= keypoint_count <= _MAX_KEYPOINTS else None


def _is_batch(length: int | None) -> bool:
    return length in (1, None)


def _yolov8(name: str, shape: Shape, input_size_wh: tuple[int, int]) -> list[Head]:
    if len(shape) != 3 or not _is_batch(shape[0]):
        return []
    heads = []
    for columns, anchors, anchors_last in ((shape[1], shape[2], True), (shape[2], shape[1], False)):
        keypoint_count = _keypoints(columns, 5)
        if keypoint_count is not None:
            blank = Head("yolov8-pose", (name,), keypoint_count, input_size_wh, None, (), anchors_last, "cxcywh", False)
            heads += _with_anchors(blank, anchors, anchors_per_cell=1)
    return heads


def _yolov5(name: str, shape: Shape, input_size_wh: tuple[int, int], asked_for: bool) -> list[Head]:
    # An open number of rows is read as end-to-end: the anchors of an input of fixed size are fixed too. ``decode``
    # refuses rows that turn out to be as many as the anchors.
    if len(shape) != 3 or not _is_batch(shape[0]) or (shape[1] is None and not asked_for):
        return []
    keypoint_count = _keypoints(shape[2], 6)
    if keypoint_count is None:
        return []
    blank = Head("yolov5-pose", (name,), keypoint_count, input_size_wh, None, (), False, "cxcywh", False)
    return _with_anchors(blank, shape[1], anchors_per_cell=3)


def _with_anchors(head: Head, anchors: int | None, anchors_per_cell: int) -> list[Head]:
    if anchors is None:
        return [head]
    cells = anchor_counts(head.input_size_wh)
    return [
        replace(head, anchor_count=anchors, strides=strides)
        for strides, count in cells.items()
        if anchors_per_cell * count == anchors
    ][:1]


def _end_to_end(name: str, shape: Shape, input_size_wh: tuple[int, int], asked_kind: str | None) -> list[Head]:
    if len(shape) not in (2, 3) or (len(shape) == 3 and not _is_batch(shape[0])):
        return []
    people, keypoint_count = shape[-2], _keypoints(shape[-1], 6)
    if keypoint_count is None:
        return []
    if asked_kind is None and people is not None and not 1 < people <= _MAX_FIXED_PEOPLE:
        return []
    found_kind = "yolov5-end-to-end" if people is None or len(shape) == 2 else "yolov8-end-to-end"
    return [
        Head(asked_kind or found_kind, (name,), keypoint_count, input_size_wh, people, (), False, "xyxy", True),
    ]


def _heatmap(name: str, shape: Shape, input_size_wh: tuple[int, int]) -> list[Head]:
    if len(shape) != 4 or not _is_batch(shape[0]) or not shape[1]:
        return []
    w, h = input_size_wh
    return [
        Head("heatmap", (name,), shape[1], input_size_wh, None, (stride,), False, "keypoints", True)
        for stride in _HEATMAP_STRIDES
        if shape[2:] == (h / stride, w / stride)
    ]


def _separate(output_shapes: Mapping[str, Shape], input_size_wh: tuple[int, int], asked_for: bool) -> list[Head]:
    boxes = {name: shape for name, shape in output_shapes.items() if shape and shape[-1] in (4, 5) and _is_list(shape)}
    keypoints = {name: found for name, shape in output_shapes.items() if (found := _keypoint_list(shape)) is not None}
    anchors = {n * count for count in anchor_counts(input_size_wh).values() for n in (1, 3)}
    heads = []
    for boxes_name, boxes_shape in boxes.items():
        people = boxes_shape[-2]
        # As many rows as anchors have not been through NMS, and their boxes may be of any format.
        if people in anchors and not asked_for:
            continue
        for keypoints_name, (keypoint_rows, keypoint_count) in keypoints.items():
            taken = {boxes_name, keypoints_name}
            scores: list[str | None] = [None] if boxes_shape[-1] == 5 else [*_score_names(output_shapes, people, taken)]
            if keypoint_rows != people:
                continue
            for score in scores:
                outputs = (boxes_name, keypoints_name) if score is None else (boxes_name, keypoints_name, score)
                heads.append(
                    Head("separate-outputs", outputs, keypoint_count, input_size_wh, people, (), False, "xyxy", True)
                )
    return heads


def _is_list(shape: Shape) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and _is_batch(shape[0]))


def _keypoint_list(shape: Shape) -> tuple[int | None, int] | None:
    """(N, K) of (N, K, 3), (1, N, K, 3), (N, 3K) or (1, N, 3K), else None."""
    if shape[-1:] == (3,) and (len(shape) == 3 or (len(shape) == 4 and _is_batch(shape[0]))) and shape[-2]:
        return shape[-3], shape[-2]
    # Boxes with a score and a class have 6 columns: two keypoints in three columns each are not believed.
    keypoint_count = _keypoints(shape[-1], 0) if shape and _is_list(shape) else None
    return None if keypoint_count is None or keypoint_count <= 2 else (shape[-2], keypoint_count)


def _score_names(output_shapes: Mapping[str, Shape], people: int | None, taken: set[str]) -> list[str]:
    """Outputs of one number per person; where labels have the same shape, the one whose name says score."""
    columns = {(people,), (1, people), (None, people), (people, 1), (1, people, 1), (None, people, 1)}
    names = [name for name, shape in output_shapes.items() if shape in columns and name not in taken]
    named = [name for name in names if "score" in name.lower() or "conf" in name.lower()]
    return named if len(names) > 1 and named else names
