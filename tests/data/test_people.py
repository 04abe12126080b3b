from __future__ import annotations

import json

import numpy as np
import pytest

from qtoolkit.data.people import People
from qtoolkit.errors import UsageError


def three_people() -> People:
    return People(
        boxes_xyxy=np.arange(12, dtype=np.float32).reshape(3, 4),
        scores=np.array([0.9, 0.1, 1 / 3], np.float32),
        keypoints=np.arange(18, dtype=np.float32).reshape(3, 2, 3) / 7,
    )


def test_nobody_still_knows_how_many_keypoints_there_would_be() -> None:
    people = People.empty(17)
    assert len(people) == 0
    assert people.keypoint_count == 17
    assert people.boxes_xyxy.shape == (0, 4)
    assert people.to_records() == []


@pytest.mark.parametrize(
    ("index", "scores"),
    [
        pytest.param(np.array([2, 0]), [1 / 3, 0.9], id="integers keep their order"),
        pytest.param(np.array([False, True, True]), [0.1, 1 / 3], id="mask"),
        pytest.param(slice(0, 2), [0.9, 0.1], id="slice"),
        pytest.param([1], [0.1], id="list"),
        pytest.param([], [], id="empty list"),
    ],
)
def test_select(index: object, scores: list[float]) -> None:
    chosen = three_people().select(index)  # type: ignore[arg-type]
    np.testing.assert_array_equal(chosen.scores, np.array(scores, np.float32))
    assert chosen.boxes_xyxy.shape == (len(scores), 4)
    assert chosen.keypoints.shape == (len(scores), 2, 3)


def test_boxes_and_keypoints_are_selected_with_their_score() -> None:
    chosen = three_people().select([2])
    assert chosen.boxes_xyxy.tolist() == [[8, 9, 10, 11]]
    np.testing.assert_array_equal(chosen.keypoints, three_people().keypoints[2:])


def test_values_become_float32() -> None:
    people = People(np.zeros((1, 4)), np.ones(1), np.zeros((1, 17, 3)))
    assert {people.boxes_xyxy.dtype, people.scores.dtype, people.keypoints.dtype} == {np.dtype(np.float32)}


def test_clipping_moves_points_to_the_image_and_leaves_confidences() -> None:
    people = People(
        np.array([[-5, 3, 700, 500]]), np.array([0.5]), np.array([[[-1.0, 481.0, 5.0], [640.0, 0.5, 0.25]]])
    ).clipped((640, 480))
    assert people.boxes_xyxy.tolist() == [[0, 3, 640, 480]]
    assert people.keypoints.tolist() == [[[0, 480, 5], [640, 0.5, 0.25]]]


def test_clipping_leaves_the_original_alone() -> None:
    people = three_people()
    people.clipped((1, 1))
    np.testing.assert_array_equal(people.keypoints, three_people().keypoints)


def test_records_survive_json_to_the_last_bit() -> None:
    people = three_people()
    again = People.from_records(json.loads(json.dumps(people.to_records())), 2)
    np.testing.assert_array_equal(again.scores, people.scores)
    np.testing.assert_array_equal(again.boxes_xyxy, people.boxes_xyxy)
    np.testing.assert_array_equal(again.keypoints, people.keypoints)


def test_records_of_nobody() -> None:
    assert People.from_records([], 17).keypoints.shape == (0, 17, 3)


@pytest.mark.parametrize(
    ("boxes", "scores", "keypoints"),
    [
        pytest.param((2, 4), (3,), (3, 17, 3), id="a box too few"),
        pytest.param((3, 5), (3,), (3, 17, 3), id="five numbers in a box"),
        pytest.param((3, 4), (3, 1), (3, 17, 3), id="scores in a column"),
        pytest.param((3, 4), (3,), (3, 17, 2), id="no confidences"),
        pytest.param((3, 4), (3,), (3, 51), id="flat keypoints"),
        pytest.param((1, 4), (), (1, 17, 3), id="a bare score"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    boxes: tuple[int, ...], scores: tuple[int, ...], keypoints: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match=r"do not fit each other\n  expected: boxes_xyxy \(N, 4\)"):
        People(np.zeros(boxes), np.zeros(scores), np.zeros(keypoints))
