from __future__ import annotations

import math

import numpy as np
import pytest

from qtoolkit.data.skeletons import COCO17
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.quantization.pose_terms import PoseTerms

V8 = detect_head({"output0": (1, 56, 84)}, (64, 64))
V5 = detect_head({"output0": (1, 252, 57)}, (64, 64))
SIGMAS = COCO17.sigmas
AREA = 0.53 * 20.0**2


def person(x, y, score=0.9, confidence=0.9, side=20.0):
    """A row of a YOLOv8 head: a square box, all keypoints in its middle."""
    points = np.tile([x, y, confidence], (17, 1)).ravel()
    return np.concatenate([[x, y, side, side, score], points]).astype(np.float32)


def rows(*people):
    """(84, 56): these people first, then anchors that find nobody."""
    table = np.zeros((84, 56), np.float32)
    table[:, :4] = 10.0
    for index, row in enumerate(people):
        table[index] = row
    return table


def changes(terms, change):
    """(T,) what ``change`` (A, C) of the rows makes of each term, by one projection each."""
    return np.array([(terms.project(np.eye(terms.count)[t]) * change).sum() for t in range(terms.count)])


@pytest.mark.parametrize("moved", [0.02, 0.1])
def test_a_small_move_costs_one_minus_oks(moved):
    terms = PoseTerms.of(rows(person(30, 30)), V8)
    change = np.zeros((84, 56))
    change[0, 5::3] = moved
    lost = 1 - sum(math.exp(-(moved**2) / (2 * AREA * (2 * sigma) ** 2)) for sigma in SIGMAS) / 17
    assert (terms.people, terms.count) == (1, 34)
    # Second order: the next one is half the square of it.
    assert (changes(terms, change) ** 2).sum() == pytest.approx(lost, rel=0.02)


def test_the_mean_over_signs_is_the_sum_of_the_squares():
    terms = PoseTerms.of(rows(person(30, 30), person(32, 30, score=0.85)), V8)
    random = np.random.default_rng(0)
    change = random.normal(size=(84, 56))
    squares = [(terms.project(random.choice([-1.0, 1.0], terms.count)) * change).sum() ** 2 for _ in range(4000)]
    assert np.mean(squares) == pytest.approx((changes(terms, change) ** 2).sum(), rel=0.1)


def test_boxes_and_doubtful_keypoints_and_people_do_not_count():
    sure = person(30, 30)
    sure[5 + 2 :: 3] = 0.4
    sure[5 + 3 * 11 + 2] = 0.6
    terms = PoseTerms.of(rows(sure, person(50, 50, score=0.39), person(10, 50, confidence=0.3)), V8)
    assert terms.people == 1
    used = terms.project(np.ones(terms.count)) != 0
    assert sorted(map(tuple, np.argwhere(used).tolist())) == [(0, 5 + 33), (0, 5 + 34)]


def test_a_rival_counts_by_its_pose_and_the_gap_of_the_scores():
    clean = rows(person(30, 30, score=0.8), person(32, 30, score=0.75))
    terms = PoseTerms.of(clean, V8)
    assert (terms.people, terms.count) == (1, 35)
    change = np.zeros((84, 56))
    change[1, 4] = 0.001
    gap = math.log(0.8 / 0.2) - math.log(0.75 / 0.25)
    similar = sum(math.exp(-4 / (2 * AREA * (2 * sigma) ** 2)) for sigma in SIGMAS) / 17
    logit = 0.001 / (0.75 * 0.25)
    expected = (1 - similar) * math.exp(-gap / 0.3) * (logit / 0.3) ** 2
    assert (changes(terms, change) ** 2).sum() == pytest.approx(expected, rel=1e-3)
    # A score of both that rises alike, in logits, changes nothing.
    change[0, 4] = 0.001 * (0.8 * 0.2) / (0.75 * 0.25)
    assert (changes(terms, change) ** 2).sum() == pytest.approx(0.0, abs=1e-9)


def test_a_person_elsewhere_is_no_rival():
    terms = PoseTerms.of(rows(person(15, 30), person(45, 30)), V8)
    assert (terms.people, terms.count) == (2, 68)


def test_the_score_of_a_yolov5_head_is_a_product():
    table = np.zeros((252, 57), np.float32)
    for index, (x, objectness) in enumerate([(30, 0.9), (32, 0.8)]):
        table[index] = np.concatenate([[x, 30, 20, 20, objectness, 0.9], np.tile([x, 30, 0.9], 17)])
    terms = PoseTerms.of(table, V5)
    assert (terms.people, terms.count) == (1, 35)
    by_objectness, by_class = np.zeros((2, 252, 57))
    by_objectness[0, 4], by_class[0, 5] = 1e-3 / 0.9, 1e-3 / 0.9
    moved = [abs(changes(terms, change)[-1]) for change in (by_objectness, by_class)]
    # Either raises the score of 0.81 by 0.001.
    assert moved[0] == pytest.approx(moved[1], rel=1e-5)
    assert moved[0] > 0


@pytest.mark.parametrize("people", [[], [person(30, 30, score=0.3)]], ids=["nobody", "doubtful"])
def test_nobody_makes_no_terms(people):
    terms = PoseTerms.of(rows(*people), V8)
    assert (terms.people, terms.count) == (0, 0)
    assert not terms.project(np.zeros(0)).any()
