"""Everything of a retraining step is computed where the networks lie.

Checked without a GPU: on the device ``meta`` shapes and devices are followed and nothing is computed. Whatever puts a
tensor of the CPU beside one of the network, or makes one, would stop a GPU or make it wait.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.targets import find_target
from qtoolkit.graph import default_network
from qtoolkit.graph.load import prepare_network
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.qat import QatOptions
from qtoolkit.training import network_pair, reconstruction
from qtoolkit.training.fine_tuning import FineTuning
from qtoolkit.training.layer_fit import fit_layers_
from qtoolkit.training.network_pair import NetworkPair
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.retrain_options import RetrainOptions
from qtoolkit.training.shards import ShardedGradients
from qtoolkit.training.tuning_batches import TuningBatch

_META = torch.device("meta")


class _Watched(TorchDispatchMode):
    """Collects ``strays``: operations with tensors of two devices, or on the CPU with more than a number."""

    def __init__(self):
        super().__init__()
        self.strays, self.count = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        kinds = {each.device.type for each in tensors}
        self.count += 1
        # Adam counts its steps on the CPU, in tensors without axes.
        if len(kinds) > 1 or (kinds == {"cpu"} and any(each.dim() for each in tensors)):
            self.strays.add(str(function))
        return result


class _NoState:
    tuned = None


@pytest.fixture
def pair_on_meta(tmp_path, tiny_pose_model, network_builder):
    def make(kind):
        if kind == "the default network":
            path = default_network.default_network("silu")
        else:
            path = tmp_path / "net.onnx"
            onnx.save(tiny_pose_model() if kind == "with scores" else _resized(network_builder(seed=2)), path)
        options = RetrainOptions(model=path, images="photos", out=tmp_path / "out", amp="off", train_size=64, rows=1000)
        pair = NetworkPair.of(options)
        pair.to_(_META)
        return pair, options

    return make


def _resized(net):
    """A batch norm that is not folded, an average over pads, and a Resize that torch has no kernel for."""
    x = net.conv("stem", "images", 3, 8, kernel=3, stride=2)
    x = net.act("pre", net.norm("bn", net.node("Add", [x, net.plain_conv("inner", x, 8, 8, kernel=3)], "sum"), 8))
    x = net.node("AveragePool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    scales = net.constant("scales", np.array([1, 1, 2, 2], np.float32))
    x = net.node("Resize", [x, "", scales], "up", mode="linear", coordinate_transformation_mode="asymmetric")
    net.plain_conv("last", x, 8, 4, kernel=1)
    return net.model({"images": (1, 3, 64, 64)}, {"last.out": (1, 4, 32, 32)})


_KINDS = ["with scores", "without scores", "the default network"]


def _taken_step(pair, options):
    """A fine-tuning of ``pair`` after two steps, and what was seen of the second."""
    tuning = FineTuning(pair, _NoState(), options, None, lambda seen: None, {}, lambda done, total: None)
    with torch.no_grad():
        pair.loss.measure_spread(pair.teacher(torch.empty(4, 3, 64, 64, device=_META)))
    gradients = ShardedGradients(tuning._loss_of, list(tuning._parameters.values()), 0)
    parts = TuningBatch(torch.empty(4, 3, 64, 64)).to(_META).parts(4)
    # In the first step indices of channels and of a Resize are sent, once.
    tuning._take_step(parts, gradients)
    with _Watched() as watched:
        tuning._take_step(parts, gradients)
    return tuning, watched


@pytest.mark.parametrize("kind", _KINDS)
def test_a_step(pair_on_meta, kind):
    tuning, watched = _taken_step(*pair_on_meta(kind))
    assert watched.strays == set()
    assert watched.count > 100
    assert all(each.grad is not None and each.grad.device == _META for each in tuning._parameters.values())
    assert all(state["exp_avg"].device == _META for state in tuning._optimizer.state.values())


@pytest.mark.parametrize("kind", _KINDS)
def test_the_fit_draws_its_places_on_the_cpu_and_nothing_else(pair_on_meta, kind, monkeypatch):
    pair, options = pair_on_meta(kind)
    for module in (reconstruction, network_pair):  # on meta nothing has a value
        monkeypatch.setattr(module, "float", lambda tensor: 0.0, raising=False)
    images = torch.empty(2, 3, 64, 64, device=_META)
    with _Watched() as watched:
        report = fit_layers_(pair, images, options)
    assert len(report.layers) >= 2
    drawn_and_sent = {"aten.randperm.generator", "aten.slice.Tensor", "aten._to_copy.default"}
    # What a Resize reads is sent once; an empty tensor stands for the rows in front of the first image.
    assert watched.strays <= {*drawn_and_sent, "aten.lift_fresh.default", "aten.empty.memory_format"}


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "tidl"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_a_step_of_quantization_aware_training(target, activation, tiny_pose_model):
    row, model = find_target(target), prepare_network(tiny_pose_model(activation))
    feeds = [{"images": np.random.default_rng(seed).random((1, 3, 64, 64), np.float32)} for seed in range(2)]
    quantizer = Quantizer(model, row, calibrate(model, calibration_tensors(model, row), feeds, threads=1))
    plan = quantizer.quantize(uniform_plan([layer.name for layer in quantizer.layers], Precision.INT8)).plan
    grids = quantizer.grids(plan.layers)
    pair = QuantizedPair.of(model, None, grids.placement, grids.activations, grids.weights)
    pair.to_(_META)
    tuning, watched = _taken_step(pair, QatOptions())
    assert watched.strays == set()
    assert {each.device for each in pair.tensors().values()} == {_META}
    assert any(name.startswith("grid of") and each.grad is not None for name, each in tuning._parameters.items())


def test_sizes_are_tried_where_the_networks_are(pair_on_meta):
    pair, _ = pair_on_meta("with scores")
    assert pair.device == _META
    with _Watched() as watched:
        assert pair.photo_size_wh(96, 0.7, "--train-size") == (96, 96)
    assert not watched.strays


def test_a_tensor_of_the_cpu_is_found(pair_on_meta):
    pair, _ = pair_on_meta("without scores")
    images = torch.empty(1, 3, 64, 64, device=_META)
    pair.student.set_node_function("sum.node", lambda x, *_: x * torch.ones(1).to(x.device))
    with _Watched() as watched:
        pair.student(images)
    assert {"aten.ones.default", "aten._to_copy.default"} <= watched.strays
