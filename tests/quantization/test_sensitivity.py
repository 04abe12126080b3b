from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qtoolkit.artifacts.plan import Precision
from qtoolkit.data.skeletons import COCO17
from qtoolkit.errors import UnavailableError, UsageError
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics
from qtoolkit.numerics.ranges import RangeEstimator
from qtoolkit.numerics.similarity import nmse
from qtoolkit.quantization.calibrate import CalibrationStatistics
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.sensitivity import METRICS, _Judge, analyse_sensitivity

OF_OUTPUTS = ("oks", "sqnr")
"""Metrics that look at the outputs of each layer's trial."""

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
    judge = _Judge(HEAD, SIGMAS, metric == "oks")
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
    judge = _Judge(HEAD, SIGMAS, True)
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


@pytest.fixture(scope="module")
def confident(pose, calibrated, quantizer):
    """The same network with scores that are high, so that it finds people in noise."""
    model = onnx.ModelProto()
    model.CopyFrom(pose)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("head.score") and tensor.name.endswith(".1.bias"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(2.5), tensor.name))
    return Quantizer(model, quantizer.target, calibrated(model))


@pytest.mark.parametrize("metric", OF_OUTPUTS)
def test_every_layer_gets_a_loss(confident, photos, metric):
    names = [layer.name for layer in confident.layers]
    seen = []
    found = analyse_sensitivity(
        confident,
        HEAD,
        iter(photos(3)),
        metric=metric,
        model_sha256="ab",
        calibration_sha256="cd",
        threads=1,
        progress=seen.append,
    )
    assert [row.layer for row in found.layers] == names
    assert (found.metric, found.images, found.target, found.precision) == (metric, 3, "ort-cpu", Precision.INT8)
    assert (found.model_sha256, found.calibration_sha256) == ("ab", "cd")
    assert all(10 < row.sqnr_db < 120 for row in found.layers)
    if metric == "oks":
        # Noise in the scores alone moves no pose.
        assert all(-1e-9 < row.loss < 0.5 for row in found.layers)
        assert sum(row.loss > 1e-6 for row in found.layers) > len(names) / 2
    else:
        assert all(row.sqnr_db == pytest.approx(-10 * math.log10(row.loss)) for row in found.layers)
    assert (found.people > 0) == (metric == "oks")
    assert sum(row.macs_share for row in found.layers) == pytest.approx(1.0)
    assert [row.macs for row in found.layers] == [layer.macs for layer in confident.layers]
    assert seen[-1] == 3 * len(names)
    assert found.seconds > 0


@pytest.mark.parametrize("metric", OF_OUTPUTS)
def test_a_layer_behind_outliers_ranks_first(confident, photos, metric):
    # Only head.keypoints.1.1 reads this tensor; one value 300 times as large leaves the others three steps.
    tensor = "head.keypoints.1.0.act"
    seen = confident.statistics.of(tensor)
    values = np.array([seen.minimum, 300 * seen.maximum], np.float32)
    histogram = StreamingHistogram()
    histogram.update(values)
    spoiled = TensorStatistics.of(histogram, values[:1], values[1:])
    statistics = CalibrationStatistics("", 4, {**confident.statistics.tensors, tensor: spoiled})
    quantizer = Quantizer(confident.model, confident.target, statistics, RangeEstimator.MIN_MAX)
    found = analyse_sensitivity(quantizer, HEAD, photos(2), metric=metric, threads=1)
    first, second = found.ranking[:2]
    assert first.layer == "head.keypoints.1.1"
    assert first.loss > 1.5 * second.loss


def test_a_layer_with_a_ruined_weight_ranks_first_by_noise(pose, quantizer, photos):
    # One input channel that is always 0 has a huge weight: the float network does not change, the others' steps do.
    model = onnx.ModelProto()
    model.CopyFrom(pose)
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    before, weight, bias = (values[name] for name in ("c2f.a.weight", "c2f.b.weight", "c2f.a.bias"))
    dead, ruined, low = (numpy_helper.to_array(tensor).copy() for tensor in (before, weight, bias))
    dead[0], low[0], ruined[:, 0] = 0.0, 0.0, 100.0
    for tensor, array in ((before, dead), (weight, ruined), (bias, low)):
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    changed = Quantizer(model, quantizer.target, quantizer.statistics)
    found = analyse_sensitivity(changed, HEAD, photos(2), metric="sqnr", threads=1)
    assert found.ranking[0].layer == "c2f.b"


def test_some_layers_alone(quantizer, photos):
    found = analyse_sensitivity(
        quantizer, HEAD, photos(1), metric="sqnr", layers=["down8", "stem"], threads=1, precision=Precision.INT16
    )
    assert [row.layer for row in found.layers] == ["stem", "down8"]
    assert found.precision is Precision.INT16
    # Shares are of the whole network.
    assert sum(row.macs_share for row in found.layers) < 0.5


def test_a_precision_that_changes_nothing_has_no_loss(quantizer, photos):
    found = analyse_sensitivity(
        quantizer, HEAD, photos(1), metric="sqnr", layers=["stem"], threads=1, precision=Precision.FP32
    )
    assert (found.layers[0].loss, found.layers[0].sqnr_db) == (0.0, None)


def test_poses_need_people(quantizer, photos):
    with pytest.raises(UsageError, match="needs people on the calibration photos") as caught:
        analyse_sensitivity(quantizer, HEAD, photos(2), metric="oks", layers=["stem"], threads=1)
    assert caught.value.found == "nobody on 2 images"
    assert "--metric sqnr" in caught.value.do


def test_an_unknown_metric_is_wrong_use(quantizer, photos):
    with pytest.raises(UsageError, match="the metric is not known") as caught:
        analyse_sensitivity(quantizer, HEAD, photos(1), metric="map", threads=1)
    assert (caught.value.expected, caught.value.found) == (" or ".join(METRICS), "'map'")


def test_ap_needs_labels(quantizer, photos):
    with pytest.raises(UsageError, match="the metric ap needs labels") as caught:
        analyse_sensitivity(quantizer, HEAD, photos(1), metric="ap", threads=1)
    assert "--metric oks" in caught.value.do


def test_fisher_without_torch_is_unavailable(quantizer, photos, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="the metric fisher needs torch") as caught:
        analyse_sensitivity(quantizer, HEAD, photos(1), metric="fisher", threads=1)
    assert "qtoolkit[train]" in caught.value.do
