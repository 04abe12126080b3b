from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.targets import find_target
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.graph.load import prepare_network
from qtoolkit.numerics.affine import dequantize
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics
from qtoolkit.numerics.ranges import RangeEstimator
from qtoolkit.quantization.calibrate import CalibrationStatistics
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.sensitivity import analyse_sensitivity

pytest.importorskip("torch")

from qtoolkit.quantization import fisher
from qtoolkit.quantization.fisher import fisher_losses
from qtoolkit.quantization.pose_terms import PoseTerms

HEAD = detect_head({"output0": (1, 56, 84)}, (64, 64))


# Boxes only say which rows are one person; in noise, rows of one person are found at the finest level alone.
_NOT_POSES = ("head.box", "head.score.1", "head.score.2")


def losses(quantizer, feeds, names=None, precision=Precision.INT8, **options):
    layers = [layer for layer in quantizer.layers if names is None or layer.name in names]
    return fisher_losses(quantizer, HEAD, feeds, layers, precision, **{"threads": 1, **options})


def test_the_formula_against_finite_differences(confident, photos, infer, monkeypatch):
    # The weight's part alone.
    monkeypatch.setattr(fisher, "_rounding_error", lambda value, grid: value * 0)
    name, feed = "head.score.0.1", photos(1)[0]
    rows = infer(confident.model, feed)["output0"][0].T
    terms = PoseTerms.of(rows, HEAD)
    projection = terms.project(np.random.default_rng(0).choice([-1.0, 1.0], terms.count)).astype(np.float64)
    layer = next(layer for layer in confident.layers if layer.name == name)
    model = onnx.ModelProto()
    model.CopyFrom(confident.model)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == layer.weight)
    weight = numpy_helper.to_array(tensor).copy()
    gradient = np.zeros(weight.size)
    for place in range(weight.size):
        values = []
        for step in (0.01, -0.01):
            shifted = weight.copy()
            shifted.flat[place] += step
            tensor.CopyFrom(numpy_helper.from_array(shifted, tensor.name))
            values.append(float((infer(model, feed)["output0"][0].T * projection).sum()))
        gradient[place] = (values[0] - values[1]) / 0.02
    grid = confident.grids({name: Precision.INT8}).weights[name]
    noise = (dequantize(grid.weight, grid.params) - weight).ravel()
    expected = (gradient**2 * noise**2).sum() / terms.people
    assert expected > 0
    assert losses(confident, [feed], [name]).losses[name] == pytest.approx(expected, rel=0.02)


def test_every_layer_that_poses_depend_on_gets_a_loss(confident, photos):
    found = losses(confident, photos(3))
    assert list(found.losses) == [layer.name for layer in confident.layers]
    assert found.images == 3 and found.people > 3 and found.takes_people
    for name, loss in found.losses.items():
        assert not (loss and name.startswith("head.box")), name
        assert loss > 0.0 or name.startswith(_NOT_POSES), name
    assert max(found.losses.values()) < 1


def test_threads_and_company_change_nothing(confident, photos):
    alone = losses(confident, photos(3), ["stem", "head.keypoints.0.1"])
    together = losses(confident, photos(3), threads=2)
    assert {name: pytest.approx(loss) for name, loss in alone.losses.items()}.items() <= together.losses.items()


def test_sixteen_bits_cost_next_to_nothing(confident, photos):
    eight, sixteen = (losses(confident, photos(2), precision=p) for p in (Precision.INT8, Precision.INT16W16))
    assert all(sixteen.losses[name] <= 1e-3 * loss for name, loss in eight.losses.items())
    # 16-bit activations, 8-bit weights: something in between.
    weights = losses(confident, photos(2), precision=Precision.INT16)
    assert sixteen.losses["stem"] < weights.losses["stem"] < eight.losses["stem"]


def test_a_layer_behind_outliers_ranks_first(confident, photos):
    tensor = "head.keypoints.1.0.act"
    seen = confident.statistics.of(tensor)
    values = np.array([seen.minimum, 300 * seen.maximum], np.float32)
    histogram = StreamingHistogram()
    histogram.update(values)
    spoiled = TensorStatistics.of(histogram, values[:1], values[1:])
    statistics = CalibrationStatistics("", 4, {**confident.statistics.tensors, tensor: spoiled})
    target = confident.target.model_copy(update={"float_last_inputs": False})
    quantizer = Quantizer(confident.model, target, statistics, RangeEstimator.MIN_MAX)
    progress = []
    found = analyse_sensitivity(
        quantizer, HEAD, photos(2), metric="fisher", threads=1, progress=progress.append, model_sha256="ab"
    )
    first, second = found.ranking[:2]
    assert first.layer == "head.keypoints.1.1"
    assert first.loss > 1.5 * second.loss
    assert (found.metric, found.images, found.model_sha256, first.sqnr_db) == ("fisher", 2, "ab", None)
    assert found.people > 0
    assert progress == [len(found.layers), 2 * len(found.layers)]


def test_small_losses_are_those_that_trials_find(confident, photos):
    # Of a layer that moves keypoints alone, no row takes another's place: 1 − OKS to second order is all there is.
    name = "head.keypoints.1.1"
    feeds = photos(12)
    tried = analyse_sensitivity(confident, HEAD, feeds, metric="oks", layers=[name], threads=1).layers[0].loss
    assert losses(confident, feeds, [name]).losses[name] == pytest.approx(tried, rel=0.5)


def test_a_target_that_rounds_inputs_alone(confident, photos, calibrated):
    target = find_target("tensorrt")
    narrow = Quantizer(confident.model, target, calibrated(confident.model, "tensorrt"))
    found = losses(narrow, photos(2))
    assert all(loss > 0 for name, loss in found.losses.items() if not name.startswith(_NOT_POSES))


def test_a_head_without_rows_is_judged_by_noise_at_the_last_layers(network_builder, calibrated, photos):
    net = network_builder(seed=3, activation="relu", batch_norm=False)
    x = net.conv("stem", "images", 3, 8, kernel=3, stride=2)
    x = net.conv("down", x, 8, 16, kernel=3, stride=2)
    net.plain_conv("maps", x, 16, 17, kernel=1)
    model = net.model({"images": (1, 3, 64, 64)}, {"maps.out": (1, 17, 16, 16)})
    model = prepare_network(model)
    quantizer = Quantizer(model, find_target("ort-cpu"), calibrated(model))
    head = Head("heatmap", ("maps.out",), 17, (64, 64), None, (4,), False, "keypoints", True)
    found = fisher_losses(quantizer, head, photos(8), quantizer.layers, threads=1)
    assert (found.people, found.takes_people) == (0, False)
    trials = analyse_sensitivity(quantizer, head, photos(8), metric="sqnr", threads=1)
    for row in trials.layers:
        assert found.losses[row.layer] == pytest.approx(row.loss, rel=0.6)


def test_floating_point_has_no_grid(confident, photos):
    with pytest.raises(UsageError, match="rounding to integers only"):
        losses(confident, photos(1), precision=Precision.FP16)


def test_poses_need_people(quantizer, photos):
    with pytest.raises(UsageError, match="needs people on the calibration photos"):
        analyse_sensitivity(quantizer, HEAD, photos(2), metric="fisher", layers=["stem"], threads=1)
