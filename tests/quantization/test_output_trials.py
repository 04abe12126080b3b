from __future__ import annotations

import math

import numpy as np
import pytest

from qtoolkit.data.skeletons import COCO17
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.numerics.similarity import nmse
from qtoolkit.quantization.output_trials import OutputJudge

HEAD = detect_head({"output0": (1, 56, 84)}, (64, 64))
SIGMAS = np.array(COCO17.sigmas)


def person(x, y, side=20.0, score=0.9, confidence=0.9, moved=0.0):
    """A row of the output: a square box around (x, y), all keypoints at its centre, moved to the right by ``moved``."""
    points = np.tile([x + moved, y, confidence], (17, 1))
    return np.concatenate([[x, y, side, side, score], points.ravel()]).astype(np.float32)


def outputs(*people):
    """The network's output (1, 56, 84) with these people; the other anchors score nothing."""
    rows = np.zeros((84, 56), np.float32)
    rows[:, :4] = 10.0
    for index, row in enumerate(people):
        rows[7 * index] = row
    return {"output0": rows.T[None]}


def judged(pairs, metric="oks"):
    """A judge that saw, photo by photo, the float network's outputs and those with layer ``a`` quantized."""
    judge = OutputJudge(HEAD, SIGMAS, metric == "oks")
    for photo, (clean, noisy) in enumerate(pairs):
        judge(photo, None, clean)
        judge(photo, "a", noisy)
    return judge


def oks_of(distance, side=20.0):
    """By hand: exp(−d² / (2 · area · (2σ)²)), area 0.53 of the box, mean over 17 keypoints."""
    area = 0.53 * side**2
    return sum(math.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2)) for sigma in COCO17.sigmas) / 17


def test_the_formula_by_hand():
    assert oks_of(0) == 1.0
    # Two keypoints alone, nose (0.026) and hip (0.107), at 2 px in a box of 20 px: the nose is far off, the hip is not.
    assert math.exp(-4 / (2 * 212 * (2 * 0.026) ** 2)) == pytest.approx(0.0305, abs=1e-4)
    assert math.exp(-4 / (2 * 212 * (2 * 0.107) ** 2)) == pytest.approx(0.8139, abs=1e-4)


@pytest.mark.parametrize("moved", [0.0, 0.5, 2.0, 10.0])
def test_the_loss_of_a_moved_pose_is_one_minus_oks(moved):
    judge = judged([(outputs(person(30, 30)), outputs(person(30, 30, moved=moved)))])
    assert judge.oks_loss("a") == pytest.approx(1 - oks_of(moved), abs=1e-6)
    assert judge.people == 1


def test_a_person_that_is_lost_loses_all():
    assert judged([(outputs(person(30, 30)), outputs())]).oks_loss("a") == 1.0


@pytest.mark.parametrize(
    ("score", "loss"), [(0.2, 0.0), (0.11, 0.0), (0.09, 1.0)], ids=["less sure", "just found", "not found"]
)
def test_a_person_may_lose_confidence_down_to_a_tenth(score, loss):
    judge = judged([(outputs(person(30, 30)), outputs(person(30, 30, score=score)))])
    assert judge.oks_loss("a") == pytest.approx(loss, abs=1e-6)


def test_the_most_similar_person_counts_and_every_person_weighs_the_same():
    clean = outputs(person(15, 15), person(45, 45))
    noisy = outputs(person(15, 15, moved=1.0), person(45, 45, moved=2.0), person(45, 15))
    expected = ((1 - oks_of(1.0)) + (1 - oks_of(2.0))) / 2
    # A second photo with one person, found again as it was.
    judge = judged([(clean, noisy), (outputs(person(30, 30)), outputs(person(30, 30)))])
    assert judge.people == 3
    assert judge.oks_loss("a") == pytest.approx(expected * 2 / 3, abs=1e-6)


def test_doubtful_people_of_the_float_network_do_not_count():
    clean = outputs(person(15, 15, score=0.39), person(45, 45))
    judge = judged([(clean, outputs(person(45, 45)))])
    assert (judge.people, judge.oks_loss("a")) == (1, pytest.approx(0.0, abs=1e-6))


def test_doubtful_keypoints_do_not_count():
    clean, noisy = person(30, 30), person(30, 30, moved=2.0)
    # Only the hip, keypoint 11, is sure.
    clean[5 + 2 :: 3] = 0.4
    clean[5 + 3 * 11 + 2] = 0.6
    loss = judged([(outputs(clean), outputs(noisy))]).oks_loss("a")
    assert loss == pytest.approx(1 - math.exp(-4 / (2 * 212 * (2 * 0.107) ** 2)), abs=1e-5)


@pytest.mark.parametrize("found", [outputs(), outputs(person(15, 15))], ids=["nobody found", "somebody found"])
def test_a_pose_without_a_sure_keypoint_counts_nowhere(found):
    unsure = outputs(person(15, 15, confidence=0.3))
    assert judged([(unsure, found)]).people == 0
    judge = judged([(unsure, found), (outputs(person(30, 30)), outputs(person(30, 30, moved=2.0)))])
    assert judge.people == 1
    assert judge.oks_loss("a") == pytest.approx(1 - oks_of(2.0), abs=1e-6)


def test_overlapping_boxes_of_one_person_count_once():
    clean = outputs(person(30, 30), person(30.5, 30, score=0.8))
    judge = judged([(clean, clean)])
    assert judge.people == 1 and judge.oks_loss("a") == pytest.approx(0.0, abs=1e-6)


def test_noise_is_the_mean_over_boxes_scores_keypoints_and_confidences():
    clean, noisy = (np.random.default_rng(seed).uniform(0.1, 0.9, (2, 1, 56, 84)) for seed in (0, 1))
    noisy = (clean + 0.1 * noisy).astype(np.float32)
    clean = clean.astype(np.float32)
    judge = judged([({"output0": a}, {"output0": b}) for a, b in zip(clean, noisy, strict=True)], "sqnr")
    rows = np.arange(51) % 3
    blocks = [slice(0, 4), slice(4, 5), 5 + np.flatnonzero(rows < 2), 5 + np.flatnonzero(rows == 2)]
    # Energies are summed over the photos before they are divided.
    expected = np.mean([nmse(clean[:, 0, block], noisy[:, 0, block]) for block in blocks])
    assert judge.nmse("a") == pytest.approx(expected, rel=1e-5)
    assert judge.nmse("never tried") == judge.oks_loss("never tried") == 0.0


def test_float_results_are_kept_for_one_group_of_photos_only():
    judge = OutputJudge(HEAD, SIGMAS, True)
    clean = outputs(person(30, 30))
    for group in range(3):
        photos = [2 * group, 2 * group + 1]
        for photo in photos:
            judge(photo, None, clean)
        assert list(judge.blocks) == list(judge.reference) == photos
        for layer in ("a", "b"):
            for photo in photos:
                judge(photo, layer, clean)
    assert judge.people == 6
    assert sum(map(len, judge.oks_losses["b"])) == 6
