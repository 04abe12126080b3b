"""The two networks of a retraining: what is replaced, sizes they run at, batch norms that stay, names that stay."""

from __future__ import annotations

import dataclasses

import onnx
import pytest
import torch

from qtoolkit.errors import HeadError, ModelFileError, UsageError
from qtoolkit.graph.layers import last_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.training.network_pair import NetworkPair
from qtoolkit.training.onnx_module import OnnxModule
from qtoolkit.training.retrain_options import RetrainOptions


@pytest.fixture
def pair_of(tmp_path):
    def make(model, **changes):
        onnx.save(model, tmp_path / "net.onnx")
        options = {"model": tmp_path / "net.onnx", "images": "photos", "out": tmp_path / "out", **changes}
        return NetworkPair.of(RetrainOptions.model_validate(options))

    return make


def _with_batch_norm(network_builder):
    """A batch norm in front of an activation, behind a residual sum: it cannot be folded."""
    net = network_builder(seed=2)
    x = net.conv("stem", "images", 3, 8, kernel=3, stride=2)
    added = net.node("Add", [x, net.plain_conv("inner", x, 8, 8, kernel=3)], "sum")
    x = net.act("pre", net.norm("bn", added, 8))
    net.plain_conv("last", x, 8, 4, kernel=1)
    return net.model({"images": (1, 3, 32, 32)}, {"last.out": (1, 4, 16, 16)})


def _classifier(network_builder):
    """A fully connected layer behind a flattened map: one input size only."""
    net = network_builder(seed=3)
    x = net.node("Flatten", [net.conv("conv", "images", 3, 4, kernel=3, stride=2)], "flat", axis=1)
    net.node("Gemm", [x, net.weights("fc", (4 * 24 * 16, 5), 1536)], "out")
    return net.model({"images": (1, 3, 48, 32)}, {"out": (1, 5)})


def test_kinds_are_those_behind_layers_but_the_last(pair_of, tiny_pose_model):
    pair = pair_of(tiny_pose_model())
    kinds = pair.activations_behind()
    assert set(kinds.values()) == {"silu"}
    assert len(kinds) == len(pair.changes)
    assert not set(kinds) & set(last_layers(pair.model))


def test_an_activation_behind_the_last_layer_is_not_made_up_for(pair_of, network_builder):
    net = network_builder(seed=1, batch_norm=False)
    net.conv("last", net.conv("first", "images", 3, 4), 4, 4)
    pair = pair_of(net.model({"images": (1, 3, 32, 32)}, {"last.act": (1, 4, 32, 32)}))
    assert len(pair.changes) == 2
    assert pair.activations_behind() == {"first": "silu"}


def test_every_convolution_has_a_bias_of_a_new_name(pair_of, network_builder):
    net = network_builder(seed=1)
    x = net.act("first", net.node("Conv", ["images", net.weights("w", (4, 3, 1, 1), 3)], "conv.bias"))
    net.node("Conv", [x, net.weights("w2", (4, 4, 1, 1), 4)], "out")
    model = net.model({"images": (1, 3, 32, 32)}, {"out": (1, 4, 32, 32)})
    model.graph.node[0].name = "conv"
    pair = pair_of(model)
    biases = [node.input[2] for node in pair.model.graph.node if node.op_type == "Conv"]
    assert biases == ["conv.bias_", "out.node.bias"]
    image = torch.rand(1, 3, 32, 32)
    wanted = OnnxModule(prepare_network(model))(image)["out"]
    torch.testing.assert_close(pair.teacher(image)["out"], wanted)


def test_sizes(pair_of, tiny_pose_model, network_builder):
    pair = pair_of(tiny_pose_model(input_size=256))
    assert pair.photo_size_wh(None, 0.75, "--fit-size") == (192, 192)
    assert pair.photo_size_wh(96, 0.75, "--fit-size") == (96, 96)
    with pytest.raises(UsageError, match=r"its own is 256×256(.|\n)*--fit-size"):
        pair.photo_size_wh(100, 0.75, "--fit-size")
    assert pair_of(_classifier(network_builder)).photo_size_wh(None, 0.75, "--fit-size") == (32, 48)


def test_a_network_of_grey_images(pair_of, network_builder):
    net = network_builder(seed=1)
    net.plain_conv("last", net.conv("first", "images", 1, 4), 4, 4, kernel=1)
    with pytest.raises(ModelFileError, match="1 channels"):
        pair_of(net.model({"images": (1, 1, 32, 32)}, {"last.out": (1, 4, 32, 32)}))


def test_a_head_that_does_not_fit(pair_of, tiny_pose_model):
    with pytest.raises(HeadError):
        pair_of(tiny_pose_model(), head="heatmap")


def test_statistics_are_estimated_where_that_helps(pair_of, network_builder):
    pair = pair_of(_with_batch_norm(network_builder))
    statistics = pair.student.statistics_by_name()
    assert len(statistics) == 2
    images = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    # As in a network that was trained: the original's are those of what it sees.
    pair.teacher.estimate_statistics([images])
    for tensor in statistics.values():
        tensor.add_(3)
    before = pair._mean_loss(images)
    assert pair.settle_statistics_(images)
    assert pair._mean_loss(images) < 0.5 * before


def test_statistics_stay_where_others_are_worse(pair_of, network_builder):
    pair = pair_of(_with_batch_norm(network_builder))
    twin = OnnxModule(prepare_network(_with_batch_norm(network_builder)), outputs=pair.teacher.outputs).eval()
    pair = dataclasses.replace(pair, student=twin)
    before = {name: tensor.clone() for name, tensor in twin.statistics_by_name().items()}
    images = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert not pair.settle_statistics_(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in twin.statistics_by_name().items())


def test_statistics_are_kept_with_the_weights(pair_of, network_builder, tmp_path):
    first, second = (pair_of(_with_batch_norm(network_builder)) for _ in range(2))
    with torch.no_grad():
        for tensor in first.tensors().values():
            tensor.add_(0.25)
    names = {name.partition(".")[0] for name in first.tensors()}
    assert names == {"model", "statistics"}
    second.load_({name: tensor.detach().clone() for name, tensor in first.tensors().items()})
    for pair, name in ((first, "first.onnx"), (second, "second.onnx")):
        pair.write(tmp_path / name)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    found = {
        each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "first.onnx").graph.initializer
    }
    kept = first.student.statistics_by_name()
    assert all(torch.equal(torch.from_numpy(found[name].copy()), tensor) for name, tensor in kept.items())
