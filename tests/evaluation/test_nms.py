import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.errors import UsageError
from qtoolkit.evaluation.nms import non_maximum_suppression

# Against the first: IoU 1, 0.5 (half covered), 1/3 (shifted by half), 0 (touching), 0 (elsewhere).
SQUARE, SAME, HALF, SHIFTED, TOUCHING, AWAY = (
    [0, 0, 10, 10],
    [0, 0, 10, 10],
    [0, 0, 10, 5],
    [5, 0, 15, 10],
    [10, 0, 20, 10],
    [50, 50, 60, 60],
)

NAMED = {
    "same box twice": ([SQUARE, SAME], [0.9, 0.8], 0.7, [0]),
    "the better one stays": ([SQUARE, SAME], [0.8, 0.9], 0.7, [1]),
    "equal scores keep their order": ([SQUARE, SAME], [0.9, 0.9], 0.7, [0]),
    "IoU at the threshold stays": ([SQUARE, HALF], [0.9, 0.8], 0.5, [0, 1]),
    "IoU above the threshold goes": ([SQUARE, HALF], [0.9, 0.8], 0.49, [0]),
    "IoU of one third stays at 0.34": ([SQUARE, SHIFTED], [0.9, 0.8], 0.34, [0, 1]),
    "IoU of one third goes at 0.33": ([SQUARE, SHIFTED], [0.9, 0.8], 0.33, [0]),
    "touching boxes do not overlap": ([SQUARE, TOUCHING], [0.9, 0.8], 0.0, [0, 1]),
    # TOUCHING overlaps SHIFTED, but SHIFTED is gone before it can take TOUCHING along.
    "who is gone suppresses nobody": ([SQUARE, SHIFTED, TOUCHING], [0.9, 0.8, 0.7], 0.3, [0, 2]),
    "best first": ([AWAY, SQUARE, TOUCHING], [0.1, 0.9, 0.5], 0.7, [1, 2, 0]),
    "empty boxes stay, none is NaN": ([[3, 3, 3, 3], [3, 3, 3, 3]], [0.9, 0.8], 0.7, [0, 1]),
    # Turned over, width and height are both −10: their product must not pass for an area.
    "a box turned over is empty": ([SQUARE, [10, 10, 0, 0]], [0.9, 0.8], 0.0, [0, 1]),
    "nobody": (np.zeros((0, 4)), [], 0.7, []),
}


@pytest.mark.parametrize(("boxes", "scores", "threshold", "expected"), NAMED.values(), ids=NAMED)
def test_named_cases(boxes, scores, threshold, expected):
    kept = non_maximum_suppression(np.array(boxes, np.float32), np.array(scores, np.float32), threshold)
    assert kept.tolist() == expected
    assert kept.dtype == np.intp


def test_at_most_max_people():
    boxes = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(8)], np.float32)
    assert non_maximum_suppression(boxes, np.arange(8.0), max_people=3).tolist() == [7, 6, 5]


def test_only_the_best_candidates_enter():
    boxes = np.array([SQUARE, AWAY, SAME], np.float32)
    assert non_maximum_suppression(boxes, np.array([0.9, 0.1, 0.8]), max_candidates=2).tolist() == [0]


def test_shapes_that_contradict_each_other():
    with pytest.raises(UsageError, match=r"boxes and scores do not fit(.|\n)*boxes_xyxy \(2, 4\) and scores \(3,\)"):
        non_maximum_suppression(np.zeros((2, 4)), np.zeros(3))


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_threshold_that_is_no_share(threshold):
    with pytest.raises(UsageError, match="not a share"):
        non_maximum_suppression(np.zeros((1, 4)), np.zeros(1), threshold)


def naive(boxes, scores, threshold, max_people):
    """Box by box and pair by pair, in plain Python, with the IoU written out."""

    def area(box):
        return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)

    def iou(a, b):
        overlap = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
        union = area(a) + area(b) - overlap
        return overlap / union if union else 0.0

    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if len(kept) < max_people and all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


@given(
    corners=st.lists(st.tuples(*[st.integers(0, 12)] * 4), max_size=40),
    seed=st.integers(0, 2**32 - 1),
    # No ratio of two areas of at most 288 comes this close to these values: float32 and Python agree on every pair.
    threshold=st.sampled_from([0.0001, 0.3001, 0.4501, 0.7001, 0.9999]),
    max_people=st.integers(1, 50),
)
def test_equals_a_naive_reference(corners, seed, threshold, max_people):
    x1, y1, w, h = np.array(corners, float).reshape(-1, 4).T
    boxes = np.stack([x1, y1, x1 + w, y1 + h], axis=1)
    # Five levels only, so that ties are common.
    scores = np.random.default_rng(seed).integers(0, 5, len(boxes)) / 4
    expected = naive(boxes.tolist(), scores.tolist(), threshold, max_people)
    assert non_maximum_suppression(boxes, scores, threshold, max_people).tolist() == expected
