from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qtoolkit.artifacts.plan import Precision
from qtoolkit.errors import UnavailableError, UsageError
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics
from qtoolkit.numerics.ranges import RangeEstimator
from qtoolkit.quantization.calibrate import CalibrationStatistics
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.sensitivity import METRICS, analyse_sensitivity

OF_OUTPUTS = ("oks", "sqnr")
"""Metrics that look at the outputs of each layer's trial."""

HEAD = detect_head({"output0": (1, 56, 84)}, (64, 64))


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
    target = confident.target.model_copy(update={"float_last_inputs": False})
    quantizer = Quantizer(confident.model, target, statistics, RangeEstimator.MIN_MAX)
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
