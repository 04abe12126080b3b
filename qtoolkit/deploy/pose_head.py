"""From the outputs of a pose network to people. Copied into bundles, beside run_pose.py.

Python 3.8 and numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["decode", "suppress"]


def decode(outputs: Any, table: Any, threshold: float) -> Any:
    """Boxes (N, 4) as corners, scores (N,), keypoints (N, K, 3) above the threshold, in pixels of
    the input. ``table``, of bundle.json, names for each: an output, how many columns it has, and
    the first column that is taken and the one behind the last."""
    if "heatmap" in table:
        name, stride = table["heatmap"]
        maps = np.asarray(outputs[name], np.float32)[0]
        return _heatmap(maps, stride, threshold)

    def columns(name: str, width: int, first: int, last: int) -> Any:
        array = np.asarray(outputs[name], np.float32)
        rows = array.reshape(width, -1).T if table["transposed"] else array.reshape(-1, width)
        return rows[:, first:last]

    scores = np.prod([columns(*place)[:, 0] for place in table["scores"]], axis=0)
    chosen = scores > threshold
    boxes, points = (columns(*table[part])[chosen] for part in ("boxes", "keypoints"))
    if table["centred"]:
        half = boxes[:, 2:] / 2
        boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    return boxes, scores[chosen], points.reshape(-1, points.shape[1] // 3, 3)


def suppress(boxes: Any, scores: Any, limits: Any, is_done: bool) -> Any:
    """Indices of the boxes that stay: the best of those left, until none overlaps it too much."""
    order = np.argsort(-scores, kind="stable")
    if is_done:
        return order[: limits["max_people"]]
    left = order[: limits["max_candidates"]]
    kept: list[int] = []
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    areas = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    while left.size and len(kept) < limits["max_people"]:
        best, left = left[0], left[1:]
        kept.append(best)
        w = np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left])
        h = np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left])
        shared = np.maximum(w, 0) * np.maximum(h, 0)
        union = areas[best] + areas[left] - shared + np.float32(1e-9)
        left = left[shared / union <= limits["iou"]]
    return np.array(kept, np.intp)


def _heatmap(maps: Any, stride: int, threshold: float) -> Any:
    """The highest cell of each map (K, h, w), a quarter cell towards its higher neighbour."""
    count, h, w = maps.shape
    k, confidence = np.arange(count), maps.max(axis=(1, 2))
    y, x = np.divmod(maps.reshape(count, -1).argmax(axis=1), w)
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    step_x = np.sign(padded[k, y + 1, x + 2] - padded[k, y + 1, x]) * ((x > 0) & (x < w - 1))
    step_y = np.sign(padded[k, y + 2, x + 1] - padded[k, y, x + 1]) * ((y > 0) & (y < h - 1))
    points = (np.stack([x + 0.25 * step_x, y + 0.25 * step_y], axis=1) * stride).astype(np.float32)
    score = confidence.mean(keepdims=True)
    people = slice(0, int(score[0] > threshold))
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])[None]
    return box[people], score[people], np.column_stack([points, confidence])[None][people]
