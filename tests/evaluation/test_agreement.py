import numpy as np
import pytest

from qtoolkit.data.people import People
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.agreement import agreement, reference_as_ground_truth
from qtoolkit.evaluation.coco_ap import bootstrap_interval

K = 17
POSE_XY = np.stack([np.linspace(0, 60, K), np.linspace(0, 100, K)[::-1]], axis=1)


def people(*found, confidence=1.0):
    """(score, x) of each person: one pose in a 60×100 box, moved to the right by x pixels."""
    x = np.array([x for _, x in found]).reshape(-1, 1)
    keypoints = np.concatenate([np.tile(POSE_XY, (len(found), 1, 1)), np.full((len(found), K, 1), confidence)], axis=2)
    keypoints[..., 0] += x
    boxes_xyxy = np.tile([0, 0, 60, 100], (len(found), 1)) + x * [1, 0, 1, 0]
    return People(boxes_xyxy, np.array([score for score, _ in found]), keypoints)


def random_people(seed, n=60):
    random = np.random.default_rng(seed)
    corner, size = random.uniform(0, 500, (n, 1, 2)), random.uniform(20, 200, (n, 1, 2))
    xy = corner + random.random((n, K, 2)) * size
    boxes = np.concatenate([corner, corner + size], axis=2)[:, 0]
    return People(boxes, random.random(n), np.concatenate([xy, random.random((n, K, 1))], axis=2))


@pytest.mark.parametrize("seed", range(5))
def test_a_network_agrees_with_itself(seed):
    # About 30 confident people per image: more than the 20 that COCO looks at.
    reference = {image_id: random_people(100 * seed + image_id) for image_id in range(4)}
    found = agreement(reference, reference)
    assert found.metrics is not None
    assert (found.ap, found.metrics.ap50, found.metrics.ar) == (100, 100, 100)
    assert (found.people, found.images) == (80, 4)


HALF = 51 / 101 * 100
BOTH = {1: people((0.9, 0), (0.8, 300))}
CASES = {
    "one person lost": (BOTH, {1: people((0.9, 0))}, HALF),
    "image lost": (BOTH, {}, 0),
    "another score changes nothing": (BOTH, {1: people((0.01, 0), (0.3, 300))}, 100),
    "a false alarm in front": (BOTH, {1: people((0.99, 900), (0.9, 0), (0.8, 300))}, 2 / 3 * 100),
    "a false alarm behind": (BOTH, {1: people((0.9, 0), (0.8, 300), (0.7, 900))}, 100),
    "a doubtful person found is no false alarm": ({1: people((0.9, 0), (0.49, 300))}, BOTH, 100),
    "a doubtful person may be lost": ({1: people((0.9, 0), (0.49, 300))}, {1: people((0.9, 0))}, 100),
    "someone not even doubtful is a false alarm": (
        {1: people((0.8, 0), (0.1, 300))},
        {1: people((0.8, 0), (0.9, 300))},
        50,
    ),
}


@pytest.mark.parametrize(("reference", "candidate", "ap"), CASES.values(), ids=CASES)
def test_known_agreement(reference, candidate, ap):
    assert agreement(reference, candidate).ap == pytest.approx(ap)


def test_nobody_to_agree_on():
    found = agreement({1: people((0.4, 0)), 2: People.empty(K)}, BOTH)
    assert (found.metrics, found.ap, found.people, found.images) == (None, None, 0, 2)


def test_people_without_a_confident_keypoint_do_not_count():
    assert agreement({1: people((0.9, 0), confidence=0.5)}, BOTH).ap is None


def test_ground_truth_of_one_person():
    reference = people((0.9, 10))
    reference.keypoints[0, 3, 2] = 0.4
    (found,) = reference_as_ground_truth({7: reference})["annotations"]
    assert (found["image_id"], found["iscrowd"], found["num_keypoints"]) == (7, 0, 16)
    assert found["bbox"] == [10, 0, 60, 100]
    assert found["area"] == pytest.approx(0.53 * 6000)
    assert found["keypoints"][2::3] == [2, 2, 2, 0, *[2] * 13]


def test_confident_people_beyond_the_twentieth_are_ignored_not_wrong():
    reference = people(*[(0.6 + 0.01 * i, 100 * i) for i in range(22)])
    crowd = [a["iscrowd"] for a in reference_as_ground_truth({1: reference})["annotations"]]
    assert crowd == [0] * 20 + [1] * 2


def test_thresholds_can_be_moved():
    truth = reference_as_ground_truth({1: people((0.9, 0), (0.6, 300))}, score_threshold=0.7, doubtful_threshold=0.65)
    assert len(truth["annotations"]) == 1


def test_bootstrap_of_agreement():
    reference = {1: people((0.9, 0), (0.8, 300)), 2: people((0.9, 0))}
    truth = reference_as_ground_truth(reference)
    interval = bootstrap_interval(truth, {1: people((0.9, 0)), 2: people((0.9, 0))}, [1, 2], n=20)
    assert interval.lo < interval.value < interval.hi == pytest.approx(100)


def test_another_skeleton():
    with pytest.raises(UsageError, match="different skeletons"):
        agreement(BOTH, {1: People.empty(16)})
