"""Turn the outputs of a network into people, in pixels of the network's input, before non-maximum suppression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.people import People
from qtoolkit.errors import HeadError, ModelFileError
from qtoolkit.evaluation.head_layouts import Head, anchor_counts

__all__ = ["DEFAULT_SCORE_THRESHOLD", "decode", "output_blocks"]

# COCO AP counts people down to the least confident ones: a higher threshold cuts the tail of the precision curve off.
DEFAULT_SCORE_THRESHOLD = 0.001

# Far from any confidence, yet beyond what rounding to an integer grid can make of a confidence of 0.
_LOWEST_SCORE = -0.05


def decode(outputs: Mapping[str, NDArray[Any]], head: Head, score_threshold: float = DEFAULT_SCORE_THRESHOLD) -> People:
    """People with a score above ``score_threshold``, in the order of the rows; boxes and keypoints in input pixels.

    ``outputs`` holds the tensors that ``head`` names, any float type. Boxes are not clipped and, unless
    ``head.nms_inside``, overlapping boxes of one person are all there.

    - yolov8: score as it is. yolov5: objectness · class.
    - heatmap: the highest cell of each map, moved a quarter cell towards its higher neighbour along each axis, times
      the stride; score is the mean of the K maxima and the box is drawn around the keypoints. Source: the decoding of
      SimpleBaseline and HRNet (Xiao et al. 2018), cell 0 at pixel 0.

    Raises ModelFileError where a value is NaN or infinite, HeadError where shapes or values contradict the head:
    another count of anchors, negative scores (logits), coordinates from 0 to 1, corners in the wrong order.
    """
    arrays = _read(outputs, head)
    if head.kind == "heatmap":
        return _decode_heatmap(arrays[0], head, score_threshold)
    boxes, scores, keypoints = _blocks(arrays, head)
    _check_values(boxes, scores, head)
    chosen = scores > score_threshold
    boxes, keypoints = boxes[chosen], keypoints[chosen]
    if head.box_format == "cxcywh":
        half = boxes[:, 2:] / 2
        boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    else:
        _check_corners(boxes, head)
    return People(boxes, scores[chosen], keypoints.reshape(-1, head.keypoint_count, 3))


def output_blocks(outputs: Mapping[str, NDArray[Any]], head: Head) -> dict[str, NDArray[np.float32]]:
    """The outputs taken apart by what they mean, because one figure over all is that of the pixels alone.

    boxes (A, 4) in pixels, scores (A,), keypoints_xy (A, K, 2) in pixels and keypoint_confidence (A, K), of all rows;
    heatmaps (K, h, w) alone for a heatmap head. float32. Raises as ``decode`` does for shapes and for values that are
    not finite.
    """
    arrays = _read(outputs, head)
    if head.kind == "heatmap":
        return {"heatmaps": arrays[0]}
    boxes, scores, keypoints = _blocks(arrays, head)
    points = keypoints.reshape(-1, head.keypoint_count, 3)
    return {
        "boxes": boxes,
        "scores": scores,
        "keypoints_xy": points[..., :2],
        "keypoint_confidence": points[..., 2],
    }


def _read(outputs: Mapping[str, NDArray[Any]], head: Head) -> list[NDArray[np.float32]]:
    """The arrays of ``head.outputs`` in its order, float32, without the batch axis, checked to be finite."""
    arrays = []
    for name in head.outputs:
        if name not in outputs:
            raise HeadError(
                f"the network gave no output {name!r}",
                expected=f"the outputs of a {head.kind} head: {', '.join(head.outputs)}",
                found=", ".join(outputs) or "no outputs",
                do="find the head again from this network's own outputs",
            )
        array = np.asarray(outputs[name], np.float32)
        if not np.isfinite(array).all():
            raise ModelFileError(
                f"the network gives values that are not numbers in output {name!r}",
                expected="finite values",
                found=f"{np.count_nonzero(~np.isfinite(array))} of {array.size} values are NaN or infinite",
                do="check the network in float; in 16 bit, give the layers that overflow more range (fp32 or int16)",
            )
        arrays.append(_without_batch(array, name, head))
    return arrays


def _without_batch(array: NDArray[np.float32], name: str, head: Head) -> NDArray[np.float32]:
    if head.kind == "separate-outputs":
        # (N), (N, 1), (N, 5), (N, 3K), (N, K, 3), each with or without a batch axis: ``_separate_blocks`` reshapes.
        return array
    if head.kind in ("yolov5-end-to-end", "yolov8-end-to-end") and array.ndim == 2:
        array = array[None]
    columns = head.keypoint_count * 3 + (5 if head.kind == "yolov8-pose" else 6)
    if head.kind == "heatmap":
        w, h = head.input_size_wh
        wanted: tuple[int | None, ...] = (1, head.keypoint_count, h // head.strides[0], w // head.strides[0])
    elif head.anchors_last:
        wanted = (1, columns, head.anchor_count)
    else:
        wanted = (1, head.anchor_count, columns)
    fits = array.ndim == len(wanted) and all(w in (None, found) for w, found in zip(wanted, array.shape, strict=True))
    if not fits or not _plausible_rows(array, head):
        raise HeadError(
            f"output {name!r} does not have the shape of a {head.kind} head",
            expected="×".join("?" if length is None else str(length) for length in wanted)
            + ("" if head.anchor_count else ", the open length agreeing with the input size"),
            found="×".join(map(str, np.shape(array))),
            do="give the right head with --head, and one image at a time",
        )
    rows: NDArray[np.float32] = array[0].T if head.anchors_last else array[0]
    return rows


def _plausible_rows(array: NDArray[np.float32], head: Head) -> bool:
    """Whether a length that the graph left open agrees with the head now that it is known."""
    if head.anchor_count is not None or head.kind == "heatmap":
        return True
    cells = set(anchor_counts(head.input_size_wh).values())
    if head.kind == "yolov8-pose":
        return array.shape[2 if head.anchors_last else 1] in cells
    # As many rows as the anchors of a YOLOv5-style head: its boxes would be read as corners without anybody noticing.
    return (array.shape[1] in {3 * count for count in cells}) == (head.kind == "yolov5-pose")


def _blocks(
    arrays: list[NDArray[np.float32]], head: Head
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Boxes (A, 4) in the head's own format, scores (A,), keypoints (A, 3K)."""
    if head.kind == "separate-outputs":
        return _separate_blocks(arrays, head)
    rows = arrays[0]
    if head.kind == "yolov8-pose":
        return rows[:, :4], rows[:, 4], rows[:, 5:]
    scores = rows[:, 4] * rows[:, 5] if head.kind == "yolov5-pose" else rows[:, 4]
    return rows[:, :4], scores, rows[:, 6:]


def _separate_blocks(
    arrays: list[NDArray[np.float32]], head: Head
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    box_columns = 4 if len(arrays) == 3 else 5
    boxes = arrays[0].reshape(-1, box_columns) if arrays[0].size % box_columns == 0 else arrays[0]
    scores = boxes[:, 4] if box_columns == 5 and boxes.ndim == 2 else arrays[-1].reshape(-1)
    sizes = len(boxes) * 3 * head.keypoint_count
    if boxes.shape != (len(scores), box_columns) or arrays[1].size != sizes:
        raise HeadError(
            "the separate outputs of the network do not fit each other",
            expected=f"as many boxes as scores and as sets of {head.keypoint_count} keypoints",
            found=", ".join(f"{name} {a.shape}" for name, a in zip(head.outputs, arrays, strict=True)),
            do="give the right head with --head",
        )
    return boxes[:, :4], scores, arrays[1].reshape(-1, 3 * head.keypoint_count)


def _check_values(boxes: NDArray[np.float32], scores: NDArray[np.float32], head: Head) -> None:
    """Whether the values can be what the head says they are; shapes alone do not tell."""
    if not scores.size:
        return
    if scores.min() < _LOWEST_SCORE:
        raise HeadError(
            f"the scores of this {head.kind} head are not confidences",
            expected="values from 0 to 1",
            found=f"values from {scores.min():.3g} to {scores.max():.3g}",
            do="export the network with the Sigmoid behind its scores",
        )
    # Anchors lie all over the input, whatever the image shows. People may all be in a corner: lists are not judged.
    if head.box_format == "cxcywh" and 0 < boxes[:, :2].max() <= 2:
        raise HeadError(
            f"the boxes of this {head.kind} head are not in pixels",
            expected=f"centres all over an input of {head.input_size_wh[0]}×{head.input_size_wh[1]} pixels (W×H)",
            found=f"no centre beyond {boxes[:, :2].max():.3g}",
            do="export the network with its boxes and keypoints in pixels of the input, not from 0 to 1",
        )


def _check_corners(boxes: NDArray[np.float32], head: Head) -> None:
    turned = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    # A badly quantized network may turn a thin box over; rows that are no corners do so for half the people and more.
    if np.count_nonzero(turned) * 2 > len(boxes):
        raise HeadError(
            f"the boxes of this {head.kind} head are not corners",
            expected="x1, y1, x2, y2 with x1 ≤ x2 and y1 ≤ y2",
            found=f"{np.count_nonzero(turned)} of {len(boxes)} boxes with a negative width or height",
            do="give the right head with --head",
        )


def _decode_heatmap(maps: NDArray[np.float32], head: Head, score_threshold: float) -> People:
    keypoint_count, h, w = maps.shape
    flat = maps.reshape(keypoint_count, -1)
    k = np.arange(keypoint_count)
    y, x = np.divmod(flat.argmax(axis=1), w)
    confidence = flat.max(axis=1)
    # Beyond the border the edge repeats itself: no neighbour there, no step towards it.
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    step_x = np.sign(padded[k, y + 1, x + 2] - padded[k, y + 1, x]) * ((x > 0) & (x < w - 1))
    step_y = np.sign(padded[k, y + 2, x + 1] - padded[k, y, x + 1]) * ((y > 0) & (y < h - 1))
    points = np.stack([x + 0.25 * step_x, y + 0.25 * step_y], axis=1) * head.strides[0]
    score = confidence.mean()
    if not score > score_threshold:
        return People.empty(keypoint_count)
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    return People(box[None], score[None], np.concatenate([points, confidence[:, None]], axis=1)[None])
