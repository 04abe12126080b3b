from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.quantization.output_error import OutputError

HEAD = Head("yolov8-pose", ("y",), 1, (64, 64), 2, (8, 16, 32), True, "cxcywh", False)


def _rows(score: float) -> np.ndarray:
    """Two places (1, 8, 2): a box of 40 × 40 pixels with ``score``, and one of 4 × 4 with a score of 0."""
    return np.array([[[10, 30], [10, 30], [40, 4], [40, 4], [score, 0], [5, 6], [7, 8], [0.5, 0.5]]], np.float32)


def test_errors_by_hand():
    judge = OutputError(HEAD, {"y": _rows(0.8)})
    other = _rows(0.8)
    other[0, 0, 0] += 4  # box of the person by 4 pixels of 40
    other[0, 4, 1] += 0.5  # score of the background
    other[0, 5, 0] += 8  # keypoint of the person by 8 pixels of 40
    other[0, 6, 1] += 8  # keypoint of the background by 8 pixels of at least 16
    boxes, scores, points, confidence = judge.errors({"y": other})
    assert boxes == pytest.approx(0.81 * 0.01)
    assert scores == pytest.approx(0.01 * 0.25)
    assert points == pytest.approx(0.81 * 0.04 + 0.01 * 0.25)
    assert confidence == 0


def test_a_head_without_rows_is_judged_tensor_by_tensor():
    judge = OutputError(None, {"a": np.zeros((1, 2)), "b": np.ones((1, 2))})
    assert judge.errors({"a": np.array([[3.0, 4.0]])}).tolist() == [25.0, 0.0]
