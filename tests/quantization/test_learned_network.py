from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("torch")

import torch

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.data.calibration_set import CalibrationSet
from qtoolkit.data.samples import Split
from qtoolkit.errors import UsageError
from qtoolkit.graph.layers import find_layers
from qtoolkit.quantization.bias_correction import input_means
from qtoolkit.quantization.learned_network import LearningOptions, learn_network
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.training import unit_learning
from qtoolkit.training.block_reconstruction import BlockOptions
from qtoolkit.training.checkpoint import read_state
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.unit_learning import RoundingOptions

OPTIONS = BlockOptions(steps=6, batch=2, crop=32)


@pytest.fixture
def shots(tmp_path: Path) -> CalibrationSet:
    folder = tmp_path / "shots"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        small = random.integers(0, 256, (8, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(small, (64, 64)))
    return CalibrationSet.from_split(Split(folder, None))


@pytest.fixture(params=["ort-cpu", "tensorrt"])
def on_target(request, pose, calibrated) -> Quantizer:
    return Quantizer(pose, find_target(request.param), calibrated(pose, request.param), pairs_silu=True)


def learned(quantizer, shots, folder, options=OPTIONS):
    plan = uniform_plan([layer.name for layer in find_layers(quantizer.model)], Precision.INT8)
    chosen = LearningOptions(blocks=options)
    found = learn_network(quantizer, plan, None, shots, ["blocks"], folder, chosen, threads=1)
    return found, quantizer.quantize(plan).model


def test_the_graph_is_that_of_ptq_with_other_numbers(on_target, shots, tmp_path):
    found, plain = learned(on_target, shots, tmp_path / "state")
    assert [(node.op_type, node.name) for node in found.graph.node] == [
        (node.op_type, node.name) for node in plain.graph.node
    ]
    assert found.SerializeToString(deterministic=True) != plain.SerializeToString(deterministic=True)
    with OnnxRuntimeCpu(found, threads=1) as runner:
        size = on_target.model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        name = on_target.model.graph.input[0].name
        assert all(
            np.isfinite(value).all()
            for value in runner.infer({name: np.zeros((1, 3, size, size), np.float32)}).values()
        )


def test_it_is_the_same_every_time_and_after_a_stop(on_target, shots, tmp_path, monkeypatch):
    whole = learned(on_target, shots, tmp_path / "whole")[0]
    again = learned(on_target, shots, tmp_path / "again")[0]
    assert whole == again

    from qtoolkit.training import block_reconstruction

    plain_step, calls = block_reconstruction._take_step, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == OPTIONS.steps + 2:
            raise KeyboardInterrupt
        plain_step(*arguments)

    monkeypatch.setattr(block_reconstruction, "_take_step", stops)
    try:
        resumed = learned(on_target, shots, tmp_path / "stopped")[0]
    except KeyboardInterrupt:
        resumed = learned(on_target, shots, tmp_path / "stopped")[0]
    assert resumed == whole


def test_a_folder_of_other_options_is_refused(on_target, shots, tmp_path):
    learned(on_target, shots, tmp_path / "state")
    with pytest.raises(UsageError):
        learned(on_target, shots, tmp_path / "state", BlockOptions(steps=5, batch=2, crop=32))


ROUNDING = RoundingOptions(steps=6, batch=2, crops=10, crop=64, lr=0.3)


def rounded(quantizer, shots, folder, options=ROUNDING, corrections=("rounding",), plan=None):
    plan = plan or uniform_plan([layer.name for layer in find_layers(quantizer.model)], Precision.INT8)
    chosen = LearningOptions(blocks=OPTIONS, rounding=options)
    return learn_network(quantizer, plan, None, shots, corrections, folder, chosen, threads=1)


def integers(model, layer):
    """The weight of ``layer``, int8."""
    return numpy_helper.to_array(
        next(t for t in model.graph.initializer if t.name == f"{layer}/{layer}.weight/quantized")
    ).astype(int)


class TestRounding:
    @pytest.fixture(autouse=True)
    def every_unit_counts_as_better(self, monkeypatch):
        """So few steps seldom find anything better."""
        errors = count(0, -1)
        monkeypatch.setattr(unit_learning.UnitLearning, "_error", lambda *_: float(next(errors)))

    @pytest.fixture(params=["ort-cpu", "tensorrt", "tidl"])
    def on_target(self, request, pose, calibrated, photos):
        means = input_means(pose, photos(2)) if request.param == "tidl" else {}
        statistics = calibrated(pose, request.param)
        return Quantizer(pose, find_target(request.param), statistics, means=means, pairs_silu=True)

    def test_the_graph_is_that_of_ptq_with_weights_at_most_one_step_off(self, on_target, shots, tmp_path):
        plan = uniform_plan([layer.name for layer in find_layers(on_target.model)], Precision.INT8)
        plain, found = on_target.quantize(plan).model, rounded(on_target, shots, tmp_path / "state")
        assert [(n.op_type, n.name, n.input, n.output) for n in found.graph.node] == [
            (n.op_type, n.name, n.input, n.output) for n in plain.graph.node
        ]
        changes = [integers(found, each.name) - integers(plain, each.name) for each in on_target.layers]
        assert max(np.abs(change).max() for change in changes) == 1

    def test_the_network_that_is_written_is_the_one_that_was_learned(
        self, on_target, shots, photos, tmp_path, monkeypatch, infer
    ):
        pairs = []
        make = QuantizedPair.of
        monkeypatch.setattr(QuantizedPair, "of", lambda *given: pairs.append(make(*given)) or pairs[-1])
        found = rounded(on_target, shots, tmp_path / "state")
        feeds = photos(1, seed=5)[0]
        (pair,) = pairs
        ends = list(pair.student.outputs)
        model = onnx.ModelProto()
        model.CopyFrom(found)
        model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in ends)
        expected = infer(model, feeds, integer_kernels=False)
        with torch.no_grad():
            given = pair.student(torch.from_numpy(feeds["images"]), outputs=ends)
        for name in ends:
            # A value between two grid points may fall to either side.
            error = np.abs(given[name].numpy() - expected[name])
            assert np.median(error) <= 1e-3 * np.abs(expected[name]).max(), name

    def test_it_is_the_same_every_time_and_after_a_stop(self, on_target, shots, tmp_path, monkeypatch):
        whole = rounded(on_target, shots, tmp_path / "whole")
        assert rounded(on_target, shots, tmp_path / "whole") == whole
        plain_step, calls = unit_learning.UnitLearning._step, []

        def stops(*arguments):
            calls.append(1)
            if len(calls) == 2 * ROUNDING.steps + 2:
                raise KeyboardInterrupt
            plain_step(*arguments)

        monkeypatch.setattr(unit_learning.UnitLearning, "_step", stops)
        with pytest.raises(KeyboardInterrupt):
            rounded(on_target, shots, tmp_path / "stopped")
        assert read_state(tmp_path / "stopped" / "rounding" / "last.safetensors").facts["units"] == 2
        assert rounded(on_target, shots, tmp_path / "stopped") == whole
        assert not list((tmp_path / "stopped").glob("rounding/units-*"))

    def test_layers_that_are_not_int8_stay_as_they_are(self, on_target, shots, tmp_path):
        names = [layer.name for layer in find_layers(on_target.model)]
        wide = on_target.target.wide
        plan = uniform_plan(names, Precision.INT8).with_layers(dict.fromkeys(names[1::2], wide))
        plain, found = on_target.quantize(plan).model, rounded(on_target, shots, tmp_path / "state", plan=plan)
        before = {tensor.name: tensor for tensor in plain.graph.initializer}
        others = [
            tensor for tensor in found.graph.initializer
            if any(tensor.name.startswith((f"{name}/", f"{name}.")) for name in names[1::2])
            and not tensor.name.endswith((".bias/quantized/scale", ".bias/quantized"))
            # What an 8-bit layer reads has a scale that is learned with it, whoever made it.
            and "/quantized8/" not in tensor.name
        ]  # fmt: skip
        assert others and all(tensor == before[tensor.name] for tensor in others)
        assert any(np.any(integers(found, name) != integers(plain, name)) for name in names[::2])

    def test_it_learns_behind_blocks(self, on_target, shots, tmp_path):
        both = rounded(on_target, shots, tmp_path / "both", corrections=("blocks", "rounding"))
        assert both != rounded(on_target, shots, tmp_path / "one")
        assert (tmp_path / "both" / "blocks").exists() and (tmp_path / "both" / "rounding").exists()

    def test_other_options_in_the_same_folder_are_refused(self, on_target, shots, tmp_path):
        rounded(on_target, shots, tmp_path / "state")
        with pytest.raises(UsageError):
            rounded(on_target, shots, tmp_path / "state", replace(ROUNDING, drop=0.25))

    def test_channels_can_be_weighed(self, on_target, shots, tmp_path):
        plain = rounded(on_target, shots, tmp_path / "plain")
        assert rounded(on_target, shots, tmp_path / "fisher", replace(ROUNDING, fisher=True)) != plain


def test_progress_counts_the_steps_of_every_unit(quantizer, shots, tmp_path):
    plan = uniform_plan([layer.name for layer in find_layers(quantizer.model)], Precision.INT8)
    seen = []
    learn_network(
        quantizer, plan, None, shots, ["rounding"], tmp_path, LearningOptions(rounding=ROUNDING), threads=1,
        progress=lambda *given: seen.append(given),
    )  # fmt: skip
    assert {name for name, _, _ in seen} == {"rounding"}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2]


def test_biases_that_were_corrected_are_not_lost(pose, calibrated, shots, tmp_path):
    last = find_layers(pose)[-1]
    own = next(numpy_helper.to_array(tensor) for tensor in pose.graph.initializer if tensor.name == last.bias)
    target, statistics = find_target("tidl"), calibrated(pose, "tidl")
    quantizer = Quantizer(pose, target, statistics, biases={last.name: own.astype(np.float64) + 1.0})
    found, plain = learned(quantizer, shots, tmp_path / "state")
    uncorrected = learned(Quantizer(pose, target, statistics), shots, tmp_path / "other")[1]

    def bias(model):
        name = f"{last.name}/{last.bias}/quantized"
        return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)

    np.testing.assert_allclose(bias(found), bias(plain), rtol=1e-6, atol=1)
    assert np.abs(bias(found) - bias(uncorrected)).min() > 100
