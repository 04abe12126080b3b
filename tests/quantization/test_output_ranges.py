from __future__ import annotations

import numpy as np
import onnx
import pytest

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.targets import find_target
from qtoolkit.errors import DataSetError
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.graph.load import prepare_network
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.output_ranges import output_ranges
from qtoolkit.quantization.ptq import Quantizer

HEAD = detect_head({"output0": (1, 56, 84)}, (64, 64))


@pytest.fixture(scope="module")
def feeds(photos):
    return photos(6, size=16)


@pytest.fixture(scope="module")
def blind(network_builder, feeds):
    """``blind("ort-cpu")`` → quantizer of a network whose tensor ``wide`` has a channel that reaches 100, which nobody
    needs: the next layer multiplies it with a millionth of what it multiplies the others with."""

    def make(target: str) -> Quantizer:
        net = network_builder(seed=3, activation="relu", batch_norm=False)
        first = np.abs(net.random.normal(0, 0.3, (4, 3, 1, 1)))
        first[0] *= 100.0
        second = net.random.normal(0, 1.0, (2, 4, 1, 1))
        second[:, 0] *= 1e-6
        net.node("Conv", ["images", net.constant("w1", first)], "tall")
        net.node("Relu", ["tall"], "wide")
        net.node("Conv", ["wide", net.constant("w2", second)], "y")
        model = prepare_network(net.model({"images": (1, 3, 16, 16)}, {"y": (1, 2, 16, 16)}))
        row = find_target(target)
        return Quantizer(model, row, calibrate(model, calibration_tensors(model, row), feeds, threads=1))

    return make


def _int8(quantizer: Quantizer):
    return {layer.name: Precision.INT8 for layer in quantizer.layers}


def _noise(quantizer: Quantizer, infer, photos) -> float:
    network = quantizer.quantize_only(_int8(quantizer))
    pairs = [
        (infer(network, feed, integer_kernels=False)["y"], infer(quantizer.model, feed)["y"])
        for feed in photos(4, seed=9, size=16)
    ]
    return float(sum(np.square(found - wanted).sum() for found, wanted in pairs))


@pytest.mark.parametrize("target", ["ort-cpu", "tidl", "tensorrt"])
def test_a_range_that_is_wrong_at_the_output_is_found(blind, feeds, infer, photos, target):
    quantizer = blind(target)
    found = output_ranges(quantizer, _int8(quantizer), None, feeds, threads=1, integer_kernels=False)
    lo, hi = found["wide", 8]
    assert hi < 0.3 * quantizer.range_of("wide", 8)[1]
    better = quantizer.with_ranges(found)
    assert better.range_of("wide", 8) == (lo, hi)
    assert _noise(better, infer, photos) < 0.5 * _noise(quantizer, infer, photos)


def test_ranges_that_are_right_stay(blind, feeds):
    quantizer = blind("ort-cpu")
    rounds = []
    for _ in range(7):
        rounds.append(output_ranges(quantizer, _int8(quantizer), None, feeds, threads=1))
        quantizer = quantizer.with_ranges(rounds[-1])
    assert rounds[0] and not rounds[-1]


@pytest.mark.parametrize(("confirming", "taken"), [(0.1, True), (1.0, False)])
def test_each_range_is_confirmed_on_other_photos(network_builder, photos, confirming, taken):
    """Ranges are those of bright photos. The dark ones that are chosen on would do with a tenth."""
    net = network_builder(seed=3, activation="relu", batch_norm=False)
    net.node("Conv", ["images", net.constant("w1", np.abs(net.random.normal(0, 0.3, (4, 3, 1, 1))))], "tall")
    net.node("Relu", ["tall"], "wide")
    net.node("Conv", ["wide", net.constant("w2", net.random.normal(0, 1.0, (2, 4, 1, 1)))], "y")
    model, row = prepare_network(net.model({"images": (1, 3, 16, 16)}, {"y": (1, 2, 16, 16)})), find_target("ort-cpu")
    bright = photos(6, size=16)
    quantizer = Quantizer(model, row, calibrate(model, calibration_tensors(model, row), bright, threads=1))
    shades = (0.1, confirming, 0.1)
    dark = [{"images": feed["images"] * np.float32(shades[i % 3])} for i, feed in enumerate(bright)]
    found = output_ranges(quantizer, _int8(quantizer), None, dark, threads=1)
    assert (("wide", 8) in found) == taken


@pytest.fixture(scope="module")
def pose_search(confident, photos):
    """``pose_search(1)`` → what is found with one thread; and the counts of the progress."""
    plan = {layer.name: Precision.INT8 for layer in confident.layers}
    counts: list[tuple[int, int]] = []

    def search(threads: int):
        return output_ranges(
            confident, plan, HEAD, photos(6), threads=threads, progress=lambda *each: counts.append(each)
        )

    return search, counts


def test_the_same_on_any_number_of_threads(pose_search):
    search, counts = pose_search
    assert search(1) == search(2)
    assert counts[-1][0] == counts[-1][1] > 10


def test_any_plan_takes_them(confident):
    better = confident.with_ranges({("stem.act", 8): (-1.0, 2.0)})
    names = [layer.name for layer in confident.layers]
    plan = uniform_plan(names, Precision.INT8, model_sha256="0", target="ort-cpu", made_by="test")
    onnx.checker.check_model(better.quantize(plan.with_layers(dict.fromkeys(names[::2], Precision.FP16))).model)
    assert better.activation_params("stem.act", 8).scale == pytest.approx(3 / 255)


def test_too_few_photos(blind, feeds):
    quantizer = blind("ort-cpu")
    with pytest.raises(DataSetError, match="too few photos"):
        output_ranges(quantizer, _int8(quantizer), None, feeds[:2])


def test_the_other_range_of_a_silu_does_not_replace_one_that_was_given(pose, calibrated):
    quantizer = Quantizer(pose, find_target("ort-cpu"), calibrated(pose), pairs_silu=True)
    given = quantizer.with_ranges({("stem.bn.out", 8): (-9.0, 9.0)})
    given.range_of("stem.act", 8)
    assert given.range_of("stem.bn.out", 8) == (-9.0, 9.0)
    assert quantizer.range_of("stem.bn.out", 8) != (-9.0, 9.0)
