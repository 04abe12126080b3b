import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from qtoolkit.data.people import People
from qtoolkit.errors import DataSetError, UsageError
from qtoolkit.evaluation.coco_ap import bootstrap_interval, coco_keypoint_ap

K = 17
# Corners of a 60×100 box and points inside it: area 6000 is "medium".
POSE_XY = np.stack([np.linspace(0, 60, K), np.linspace(0, 100, K)[::-1]], axis=1)


def annotation(annotation_id, image_id, offset_xy=(0, 0), **changes):
    keypoints = np.concatenate([POSE_XY + offset_xy, np.full((K, 1), 2.0)], axis=1)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [*np.add(offset_xy, 0.0).tolist(), 60.0, 100.0],
        "area": 6000.0,
        "iscrowd": 0,
        "num_keypoints": K,
        "keypoints": keypoints.ravel().tolist(),
    } | changes


def labels(*annotations, images=(1, 2)):
    return {
        "images": [{"id": i, "width": 640, "height": 480} for i in images],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": list(annotations),
    }


def people(*found):
    """(score, offset_xy) of each person, in the pose of the labels."""
    keypoints = [np.concatenate([POSE_XY + xy, np.ones((K, 1))], axis=1) for _, xy in found]
    return People(
        np.zeros((len(found), 4)), np.array([score for score, _ in found]), np.array(keypoints).reshape(-1, K, 3)
    )


FAR = (300, 300)
ONE_EACH = (annotation(1, 1), annotation(2, 2))
CROWD = annotation(3, 1, FAR, iscrowd=1)
UNLABELLED = annotation(3, 1, FAR, num_keypoints=0, keypoints=[0.0] * 3 * K)
# 101 recall points: recall 0.5 is reached at 0.00 … 0.50, 51 of them.
HALF = 51 / 101 * 100

KNOWN = {
    "everybody found": (ONE_EACH, {1: people((0.9, (0, 0))), 2: people((0.8, (0, 0)))}, 100, 100),
    "nobody found": (ONE_EACH, {1: people(), 2: people()}, 0, 0),
    "no predictions at all": (ONE_EACH, {}, 0, 0),
    "one of two found": (ONE_EACH, {1: people((0.9, (0, 0)))}, HALF, 50),
    "found far away": (ONE_EACH, {1: people((0.9, FAR)), 2: people((0.8, FAR))}, 0, 0),
    # Precision 1 up to recall 0.5, then 2 of 3.
    "a false alarm between two": (
        ONE_EACH,
        {1: people((0.9, (0, 0)), (0.8, FAR)), 2: people((0.7, (0, 0)))},
        (51 + 50 * 2 / 3) / 101 * 100,
        100,
    ),
    "a false alarm behind both": (
        ONE_EACH,
        {1: people((0.9, (0, 0)), (0.1, FAR)), 2: people((0.7, (0, 0)))},
        100,
        100,
    ),
    "one person found twice": (ONE_EACH[:1], {1: people((0.9, (0, 0)), (0.8, (0, 0)))}, 100, 100),
    "who finds a crowd is not wrong": (
        (*ONE_EACH, CROWD),
        {1: people((0.9, FAR), (0.8, (0, 0))), 2: people((0.7, (0, 0)))},
        100,
        100,
    ),
    "who finds unlabelled people is not wrong": (
        (*ONE_EACH, UNLABELLED),
        {1: people((0.9, FAR), (0.8, (0, 0))), 2: people((0.7, (0, 0)))},
        100,
        100,
    ),
    "a crowd need not be found": ((*ONE_EACH, CROWD), {1: people((0.9, (0, 0))), 2: people((0.7, (0, 0)))}, 100, 100),
    "twenty people at most": (ONE_EACH[:1], {1: people(*[(0.9, FAR)] * 20, (0.8, (0, 0)))}, 0, 0),
    "the twentieth counts": (ONE_EACH[:1], {1: people(*[(0.9, FAR)] * 19, (0.8, (0, 0)))}, 5, 100),
}


@pytest.mark.parametrize(("annotations", "predictions", "ap", "ar"), KNOWN.values(), ids=KNOWN)
def test_known_ap(annotations, predictions, ap, ar):
    metrics = coco_keypoint_ap(labels(*annotations), predictions, [1, 2])
    assert (metrics.ap, metrics.ar) == pytest.approx((ap, ar))
    assert (metrics.ap50, metrics.ap75, metrics.ap_m) == pytest.approx((ap, ap, ap))
    assert metrics.ap_l is None


def test_thresholds_from_50_to_95():
    # Every sigma 0.1 and area 5000: exp(−d² / (2·5000·0.04)) = 0.72 for d² = 400·ln(1/0.72); above 5 of 10 thresholds.
    away = np.sqrt(400 * np.log(1 / 0.72))
    truth = labels(annotation(1, 1, area=5000.0))
    metrics = coco_keypoint_ap(truth, {1: people((0.9, (away, 0)))}, [1], np.full(K, 0.1))
    assert (metrics.ap, metrics.ap50, metrics.ap75, metrics.ar) == pytest.approx((50, 100, 0, 50))


def test_sizes_are_judged_apart():
    large = annotation(2, 2, area=10000.0)
    metrics = coco_keypoint_ap(labels(annotation(1, 1), large), {1: people((0.9, (0, 0)))}, [1, 2])
    assert (metrics.ap_m, metrics.ap_l) == pytest.approx((100, 0))


def test_only_the_images_asked_for_count():
    predictions = {1: people((0.9, (0, 0))), 2: people((0.9, FAR))}
    assert coco_keypoint_ap(labels(*ONE_EACH), predictions, [1]).ap == pytest.approx(100)
    assert coco_keypoint_ap(labels(*ONE_EACH), predictions, [2]).ap == 0


def test_labels_are_left_as_they_were_and_nothing_is_printed(capsys):
    # Made here: those that other tests share would carry any trace already.
    truth = labels(annotation(1, 1), annotation(2, 1, FAR, iscrowd=1))
    before = copy.deepcopy(truth)
    coco_keypoint_ap(truth, {1: people((0.9, (0, 0)))}, [1, 2])
    bootstrap_interval(truth, {1: people((0.9, (0, 0)))}, [1, 2], n=2)
    assert truth == before
    assert capsys.readouterr() == ("", "")


NOBODY = {
    "no annotations": (),
    "crowds only": (CROWD,),
    "unlabelled people only": (UNLABELLED,),
    "people of other images only": (annotation(1, 2),),
}


@pytest.mark.parametrize("annotations", NOBODY.values(), ids=NOBODY)
def test_nobody_to_evaluate_on(annotations):
    with pytest.raises(DataSetError, match="nobody to evaluate on"):
        coco_keypoint_ap(labels(*annotations), {1: people((0.9, (0, 0)))}, [1])


def test_images_without_labels():
    with pytest.raises(DataSetError, match=r"do not cover(.|\n)*1 images without an entry \(id 7"):
        coco_keypoint_ap(labels(*ONE_EACH), {}, [1, 7])


def test_another_skeleton():
    with pytest.raises(UsageError, match=r"different skeletons(.|\n)*17 keypoints(.|\n)*predictions with \[16\]"):
        coco_keypoint_ap(labels(*ONE_EACH), {1: People.empty(16)}, [1])
    with pytest.raises(UsageError, match="different skeletons"):
        coco_keypoint_ap(labels(*ONE_EACH), {}, [1], np.ones(16))


def random_scene(seed, images=12):
    """Labels of every sort (crowds, unlabelled and half labelled people, all sizes) and predictions near and far."""
    random = np.random.default_rng(seed)
    annotations, predictions = [], {}
    for image_id in range(1, images + 1):
        found = []
        for _ in range(random.integers(0, 4)):
            scale = random.uniform(0.3, 3)
            xy = POSE_XY * scale + random.uniform(0, 300, 2)
            visible = random.integers(0, 3, K) * (random.random() > 0.2)
            annotations.append(
                annotation(
                    len(annotations) + 1,
                    image_id,
                    bbox=[*xy.min(0).tolist(), *np.ptp(xy, axis=0).tolist()],
                    area=6000 * scale**2,
                    iscrowd=int(random.random() < 0.15),
                    num_keypoints=int(np.count_nonzero(visible)),
                    keypoints=np.concatenate([xy, visible[:, None]], axis=1).ravel().tolist(),
                )
            )
            for _ in range(random.integers(0, 18)):
                found.append(xy + random.normal(0, random.choice([1, 8, 100]) * scale, (K, 2)))
        if found:
            keypoints = np.concatenate([np.array(found), random.random((len(found), K, 1))], axis=2)
            # Few levels, so that scores tie within and between images.
            scores = random.integers(1, 9, len(found)) / 8
            predictions[image_id] = People(np.zeros((len(found), 4)), scores, keypoints)
    return labels(*annotations, images=range(1, images + 1)), predictions


def by_hand(truth, predictions, image_ids):
    """pycocotools driven as its own demo does: every detection through loadRes."""
    results = [
        {"image_id": image_id, "category_id": 1, "score": float(score), "keypoints": pose.ravel().tolist()}
        for image_id in sorted(predictions)
        for score, pose in zip(
            predictions[image_id].scores, predictions[image_id].keypoints.astype(np.float64), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value < 0 else value * 100 for value in evaluation.stats[:6].tolist()]


@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools_to_the_last_digit(seed):
    truth, predictions = random_scene(seed)
    assert max(len(found) for found in predictions.values()) > 20
    metrics = coco_keypoint_ap(truth, predictions, range(1, 13))
    found = [metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_m, metrics.ap_l, metrics.ar]
    assert found == by_hand(truth, predictions, range(1, 13))


def test_bootstrap_encloses_the_ap_and_repeats_with_its_seed():
    truth, predictions = random_scene(3)
    interval = bootstrap_interval(truth, predictions, range(1, 13), n=40, seed=1)
    assert interval.value == pytest.approx(coco_keypoint_ap(truth, predictions, range(1, 13)).ap)
    assert 0 <= interval.lo < interval.value < interval.hi <= 100
    assert (interval.level, interval.resamples, interval.images) == (0.95, 40, 12)
    assert bootstrap_interval(truth, predictions, range(1, 13), n=40, seed=1) == interval
    assert bootstrap_interval(truth, predictions, range(1, 13), n=40, seed=2) != interval


def test_bootstrap_equals_evaluating_copies_of_the_images():
    truth, predictions = random_scene(5, images=6)
    draw = np.random.default_rng(4).integers(0, 6, 6)
    interval = bootstrap_interval(truth, predictions, range(1, 7), n=1, seed=4)
    copies = [
        dict(a, image_id=new, id=100 * new + a["id"])
        for new, old in enumerate(draw, start=1)
        for a in truth["annotations"]
        if a["image_id"] == old + 1
    ]
    renamed = {new: predictions[old + 1] for new, old in enumerate(draw, start=1) if old + 1 in predictions}
    expected = coco_keypoint_ap(labels(*copies, images=range(1, 7)), renamed, range(1, 7)).ap
    assert interval.lo == interval.hi == pytest.approx(expected, abs=1e-9)


def test_bootstrap_of_a_difference():
    truth, predictions = random_scene(3)
    same = bootstrap_interval(truth, predictions, range(1, 13), baseline=predictions, n=20)
    assert (same.value, same.lo, same.hi) == (0, 0, 0)
    worse = {image_id: found.select([0]) for image_id, found in predictions.items()}
    interval = bootstrap_interval(truth, worse, range(1, 13), baseline=predictions, n=20)
    difference = coco_keypoint_ap(truth, worse, range(1, 13)).ap - coco_keypoint_ap(truth, predictions, range(1, 13)).ap
    assert interval.value == pytest.approx(difference)


def test_bootstrap_redraws_samples_without_people():
    truth = labels(annotation(1, 1), images=range(1, 9))
    interval = bootstrap_interval(truth, {1: people((0.9, (0, 0)))}, range(1, 9), n=20)
    assert (interval.lo, interval.hi) == pytest.approx((100, 100))


@pytest.mark.parametrize("options", [{"n": 0}, {"level": 1.0}, {"level": 0.0}])
def test_bootstrap_that_cannot_be_drawn(options):
    with pytest.raises(UsageError, match="cannot be drawn"):
        bootstrap_interval(labels(*ONE_EACH), {}, [1, 2], **options)
