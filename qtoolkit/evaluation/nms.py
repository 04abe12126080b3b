"""Greedy non-maximum suppression: of boxes that overlap much, the most confident stays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError

__all__ = [
    "DEFAULT_IOU_THRESHOLD",
    "DEPLOYED_SCORE_THRESHOLD",
    "MAX_CANDIDATES",
    "MAX_PEOPLE",
    "non_maximum_suppression",
]

# The values with which Ultralytics validates pose networks, and with which the published figures were measured.
DEFAULT_IOU_THRESHOLD = 0.7
MAX_PEOPLE = 300
# As a program that shows people would; decoding for AP keeps far more.
DEPLOYED_SCORE_THRESHOLD = 0.25
# Below the 3,000 most confident there is no person left to find; it bounds the time of an image full of noise.
MAX_CANDIDATES = 3000

# Keeps 0/0 of two empty boxes from being NaN; far below the area of one pixel.
_EPSILON = np.float32(1e-9)


def non_maximum_suppression(
    boxes_xyxy: NDArray[np.floating],
    scores: NDArray[np.floating],
    iou_threshold: float = DEFAULT_IOU_THRESHOLD,
    max_people: int = MAX_PEOPLE,
    max_candidates: int = MAX_CANDIDATES,
) -> NDArray[np.intp]:
    """Indices of the boxes that stay, most confident first, at most ``max_people`` of them.

    boxes_xyxy  (N, 4) x1, y1, x2, y2; any one frame. A box with x2 < x1 or y2 < y1 counts as empty
    scores      (N,)

    The best box of those left stays, every box with IoU > ``iou_threshold`` against it goes, until none is left.
    Boxes of equal score keep their order. Only the ``max_candidates`` best enter. One row of IoU is computed per box
    that stays, so that time goes with people rather than with candidates squared. Raises UsageError for shapes that
    contradict each other and for a threshold outside 0–1.
    """
    _check(boxes_xyxy, scores, iou_threshold)
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")[:max_candidates]
    x1, y1, x2, y2 = np.ascontiguousarray(np.asarray(boxes_xyxy, np.float32)[order].T)
    areas = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    left = np.arange(order.size)
    keep: list[int] = []
    while left.size and len(keep) < max_people:
        best, left = int(left[0]), left[1:]
        keep.append(best)
        overlap_w = np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left])
        overlap_h = np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left])
        intersection = np.maximum(overlap_w, 0) * np.maximum(overlap_h, 0)
        union = areas[best] + areas[left] - intersection
        left = left[intersection / (union + _EPSILON) <= iou_threshold]
    return order[np.array(keep, np.intp)]


def _check(boxes_xyxy: NDArray[np.floating], scores: NDArray[np.floating], iou_threshold: float) -> None:
    if np.ndim(scores) != 1 or np.shape(boxes_xyxy) != (*np.shape(scores), 4):
        raise UsageError(
            "boxes and scores do not fit each other",
            expected="boxes_xyxy (N, 4) and scores (N)",
            found=f"boxes_xyxy {np.shape(boxes_xyxy)} and scores {np.shape(scores)}",
            do="give one score per box",
        )
    if not 0 <= iou_threshold <= 1:
        raise UsageError(
            "the IoU threshold of non-maximum suppression is not a share",
            expected="a number from 0 to 1",
            found=str(iou_threshold),
            do=f"leave it at {DEFAULT_IOU_THRESHOLD}, with which published figures are measured",
        )
