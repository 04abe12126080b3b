import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.cocoeval import COCOeval

from qtoolkit.data.skeletons import COCO17
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.oks import oks

SIGMAS = np.array([0.05, 0.1])


def poses(*xy):
    return np.array(xy, np.float32)


HAND_COMPUTED = {
    # d² = 2·area·(2σ)² gives exp(−1): area 100, σ 0.05 → d² = 2, σ 0.1 → d² = 8.
    "equal poses": ([(0, 0), (5, 5)], [1, 1], 1.0),
    "one keypoint off by one unit": ([(1, 1), (5, 5)], [1, 1], (np.exp(-1) + 1) / 2),
    "both off by one unit": ([(1, 1), (7, 7)], [1, 1], np.exp(-1)),
    "the one that is off is not labelled": ([(1, 1), (5, 5)], [0, 2], 1.0),
    "only the one that is off is labelled": ([(1, 1), (5, 5)], [2, 0], np.exp(-1)),
    "nothing labelled": ([(0, 0), (5, 5)], [0, 0], 0.0),
    "far away": ([(500, 0), (500, 5)], [1, 1], 0.0),
}


@pytest.mark.parametrize(("pose", "visibility", "expected"), HAND_COMPUTED.values(), ids=HAND_COMPUTED)
def test_hand_computed(pose, visibility, expected):
    found = oks(poses([(0, 0), (5, 5)]), poses(pose), np.array([100.0]), np.array([visibility]), SIGMAS)
    assert found.shape == (1, 1)
    assert found[0, 0] == pytest.approx(expected, abs=1e-12)


def test_a_third_column_is_not_read():
    a, b = np.zeros((1, 2, 3)), np.zeros((1, 2, 3))
    b[..., 2] = 9
    assert oks(a, b, np.ones(1), np.ones((1, 2), bool), SIGMAS)[0, 0] == 1.0


def test_rows_are_references_and_columns_poses():
    a = np.zeros((2, 2, 2))
    a[1] = 1000
    b = np.concatenate([a, a[:1]])
    found = oks(a, b, np.ones(2), np.ones((2, 2)), SIGMAS)
    np.testing.assert_array_equal(found, [[1, 0, 1], [0, 1, 0]])


def test_nobody_on_either_side():
    assert oks(np.zeros((0, 2, 2)), np.zeros((3, 2, 2)), np.ones(0), np.ones((0, 2)), SIGMAS).shape == (0, 3)
    assert oks(np.zeros((3, 2, 2)), np.zeros((0, 2, 2)), np.ones(3), np.ones((3, 2)), SIGMAS).shape == (3, 0)


WRONG = {
    "other skeleton": ((1, 3, 2), (1, 2, 2), (1,), (1, 2), (2,)),
    "one area missing": ((2, 2, 2), (1, 2, 2), (1,), (2, 2), (2,)),
    "visibility of one person only": ((2, 2, 2), (1, 2, 2), (2,), (1, 2), (2,)),
    "sigmas of another skeleton": ((1, 2, 2), (1, 2, 2), (1,), (1, 2), (17,)),
    "flat keypoints": ((1, 4), (1, 4), (1,), (1, 2), (2,)),
}


@pytest.mark.parametrize("shapes", WRONG.values(), ids=WRONG)
def test_shapes_that_contradict_each_other(shapes):
    with pytest.raises(UsageError, match=r"do not fit each other(.|\n)*expected: keypoints_a"):
        oks(*(np.zeros(shape) for shape in shapes))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4), m=st.integers(1, 4))
def test_equals_pycocotools(seed, n, m):
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 200, (n, 17, 3))
    truth[..., 2] = random.integers(0, 3, (n, 17))
    truth[:, 0, 2] = 2
    found = truth[random.integers(0, n, m)] + random.normal(0, 8, (m, 17, 3))
    areas = random.uniform(100, 20000, n)

    evaluation = COCOeval(iouType="keypoints")
    evaluation._gts[1, 1] = [
        {"keypoints": pose.ravel().tolist(), "area": area, "bbox": [0, 0, 9, 9]}
        for pose, area in zip(truth, areas, strict=True)
    ]
    scores = np.linspace(1, 0.5, m)
    evaluation._dts[1, 1] = [
        {"keypoints": pose.ravel().tolist(), "score": score} for pose, score in zip(found, scores, strict=True)
    ]
    expected = np.asarray(evaluation.computeOks(1, 1)).T
    np.testing.assert_allclose(oks(truth, found, areas, truth[..., 2], COCO17.sigmas), expected, rtol=1e-12, atol=0)
