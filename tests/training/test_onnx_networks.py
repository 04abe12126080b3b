"""Blocks of the networks that people bring, against ONNX Runtime: as exported, prepared, and in a batch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import shape_inference

from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.swap_activations import swap_activations
from qtoolkit.training.onnx_module import OnnxModule


def resnet_block(net):
    """Strided residual block with its shortcut convolution, the stem's max-pool before it, a classifier behind it."""
    x = net.conv("stem", "images", 3, 8, kernel=7, stride=2)
    x = net.node("MaxPool", [x], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = net.conv("a", x, 8, 12, kernel=3, stride=2)
    y = net.norm("b.bn", net.plain_conv("b", y, 12, 12, kernel=3), 12)
    shortcut = net.norm("c.bn", net.plain_conv("c", x, 8, 12, kernel=1, stride=2), 12)
    x = net.node("Relu", [net.node("Add", [y, shortcut], "add")], "relu")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "gap")], "flat")
    weight, bias = net.weights("fc.weight", (5, 12), 12), net.constant("fc.bias", np.arange(5))
    return net.node("Gemm", [x, weight, bias], "y", transB=1)


def mobilenet_block(net):
    """Inverted residual of MobileNetV3: depthwise, HardSwish, squeeze-and-excitation by HardSigmoid."""
    x = net.plain_conv("stem", "images", 3, 8, kernel=3, stride=2)
    x = net.node("HardSwish", [net.norm("stem.bn", x, 8)], "stem.act")
    y = net.node("HardSwish", [net.norm("e.bn", net.plain_conv("e", x, 8, 16, kernel=1), 16)], "e.act")
    weight = net.weights("dw.weight", (16, 1, 5, 5), 25)
    y = net.node("Conv", [y, weight], "dw.raw", group=16, pads=[2, 2, 2, 2], kernel_shape=[5, 5])
    y = net.norm("dw.bn", y, 16)
    gate = net.node("ReduceMean", [y], "se.mean", axes=[2, 3])
    gate = net.node("Relu", [net.plain_conv("se.down", gate, 16, 4, kernel=1)], "se.relu")
    gate = net.plain_conv("se.up", gate, 4, 16, kernel=1)
    gate = net.node("HardSigmoid", [gate], "se.gate", alpha=1 / 6, beta=0.5)
    y = net.node("HardSwish", [net.node("Mul", [y, gate], "se")], "dw.act")
    y = net.norm("p.bn", net.plain_conv("p", y, 16, 8, kernel=1), 8)
    return net.node("Add", [x, y], "y")


def deconvolution_head(net):
    """Head of SimpleBaseline: transposed convolutions to heatmaps."""
    x = net.conv("stem", "images", 3, 8, kernel=3, stride=2)
    for name, channels in (("up1", 8), ("up2", 6)):
        weight = net.weights(f"{name}.weight", (channels, 6, 4, 4), channels * 4)
        geometry = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        x = net.node("ConvTranspose", [x, weight], f"{name}.raw", **geometry)
        x = net.node("Relu", [net.norm(f"{name}.bn", x, 6)], f"{name}.relu")
    return net.plain_conv("heatmaps", x, 6, 17, kernel=1)


def hourglass(net):
    """Down, and up again by nearest Resize to given sizes, with skips and pre-activation batch norms."""
    x = net.plain_conv("stem", "images", 3, 8, kernel=3)
    low = net.node("AveragePool", [x], "down", kernel_shape=[2, 2], strides=[2, 2])
    low = net.node("Relu", [net.norm("low.bn", low, 8)], "low.relu")
    low = net.plain_conv("low", low, 8, 8, kernel=3)
    sizes = net.constant("sizes", [1, 8, 32, 32], np.int64)
    mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return net.node("Add", [x, net.node("Resize", [low, "", "", sizes], "up", **mode)], "y")


def shuffle_block(net):
    """ShuffleNet unit: halves split, one convolved, joined and shuffled by Reshape, Transpose, Reshape."""
    x = net.conv("stem", "images", 3, 8, kernel=3, stride=2)
    net.node("Split", [x, net.constant("halves", [4, 4], np.int64)], ["left", "right"], axis=1)
    right = net.conv("a", "right", 4, 4, kernel=1)
    x = net.node("Concat", ["left", right], "joined", axis=1)
    x = net.node("Reshape", [x, net.constant("groups", [1, 2, 4, 16, 16], np.int64)], "grouped")
    x = net.node("Transpose", [x], "swapped", perm=[0, 2, 1, 3, 4])
    return net.node("Reshape", [x, net.constant("together", [1, 8, 16, 16], np.int64)], "y")


def convnext_block(net):
    """Depthwise 7×7, LayerNormalization over channels moved last, two linear layers with GELU, a layer scale."""
    x = net.plain_conv("stem", "images", 3, 8, kernel=4, stride=4)
    weight = net.weights("dw.weight", (8, 1, 7, 7), 49)
    y = net.node("Conv", [x, weight], "dw", group=8, pads=[3, 3, 3, 3], kernel_shape=[7, 7])
    y = net.node("Transpose", [y], "last", perm=[0, 2, 3, 1])
    scale, shift = net.constant("ln.scale", np.linspace(0.5, 1.5, 8)), net.constant("ln.shift", np.arange(8) / 8)
    y = net.node("LayerNormalization", [y, scale, shift], "ln", axis=-1, epsilon=1e-6)
    y = net.node("MatMul", [y, net.weights("w1", (8, 16), 8)], "m1")
    y = net.node("Add", [y, net.constant("b1", np.arange(16) / 16)], "h1")
    erf = net.node("Erf", [net.node("Div", [y, net.constant("root", 2**0.5)], "d")], "erf")
    y = net.node("Mul", [y, net.node("Add", [erf, net.constant("one", 1.0)], "e1")], "g2")
    y = net.node("Mul", [y, net.constant("half", 0.5)], "gelu")
    y = net.node("MatMul", [y, net.weights("w2", (16, 8), 16)], "m2")
    y = net.node("Mul", [y, net.constant("gamma", np.full(8, 0.1))], "scaled")
    return net.node("Add", [x, net.node("Transpose", [y], "first", perm=[0, 3, 1, 2])], "y")


def attention_block(net):
    """Attention of YOLO11: query, key and value from one convolution, heads apart, a positional convolution added."""
    x = net.plain_conv("stem", "images", 3, 8, kernel=4, stride=4)
    qkv = net.plain_conv("qkv", x, 8, 16, kernel=1)
    qkv = net.node("Reshape", [qkv, net.constant("heads", [1, 2, 8, 100], np.int64)], "apart")
    net.node("Split", [qkv, net.constant("parts", [2, 2, 4], np.int64)], ["q", "k", "v"], axis=2)
    scores = net.node("MatMul", [net.node("Transpose", ["q"], "q.t", perm=[0, 1, 3, 2]), "k"], "scores")
    scores = net.node("Mul", [scores, net.constant("gain", 2**-0.5)], "scaled")
    scores = net.node("Softmax", [scores], "soft", axis=-1)
    mixed = net.node("MatMul", ["v", net.node("Transpose", [scores], "soft.t", perm=[0, 1, 3, 2])], "mixed")
    shape = net.constant("map", [1, 8, 10, 10], np.int64)
    mixed = net.node("Reshape", [mixed, shape], "map.of")
    weight = net.weights("pe.weight", (8, 1, 3, 3), 9)
    place = net.node("Reshape", ["v", shape], "v.map")
    place = net.node("Conv", [place, weight], "pe", group=8, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    return net.plain_conv("proj", net.node("Add", [mixed, place], "sum"), 8, 8, kernel=1)


def transformer_block(net):
    """Tokens with a class token, sequence first, and heads folded into the batch, as torch's own attention exports."""
    x = net.plain_conv("stem", "images", 3, 8, kernel=8, stride=8)
    x = net.node("Reshape", [x, net.constant("flat", [1, 8, 36], np.int64)], "tokens")
    x = net.node("Transpose", [x], "tokens.t", perm=[0, 2, 1])
    x = net.node("Concat", [net.constant("cls", np.arange(8).reshape(1, 1, 8)), x], "with.cls", axis=1)
    x = net.node("Add", [x, net.constant("positions", net.random.normal(0, 1, (1, 37, 8)))], "placed")
    x = net.node("Transpose", [x], "sequence", perm=[1, 0, 2])
    heads = net.constant("heads", [37, 2, 4], np.int64)
    parts = {}
    for name in "qkv":
        part = net.node("MatMul", [x, net.weights(f"{name}.weight", (8, 8), 8)], f"{name}.m")
        part = net.node("Add", [part, net.constant(f"{name}.bias", np.arange(8) / 8)], f"{name}.b")
        order = [1, 2, 0] if name == "k" else [1, 0, 2]
        parts[name] = net.node("Transpose", [net.node("Reshape", [part, heads], f"{name}.h")], name, perm=order)
    scores = net.node("Softmax", [net.node("MatMul", [parts["q"], parts["k"]], "scores")], "soft", axis=-1)
    mixed = net.node("Transpose", [net.node("MatMul", [scores, parts["v"]], "mixed")], "mixed.t", perm=[1, 0, 2])
    mixed = net.node("Reshape", [mixed, net.constant("merged", [37, 8], np.int64)], "rows")
    mixed = net.node("Gemm", [mixed, net.weights("o.weight", (8, 8), 8), net.constant("o.bias", np.ones(8))], "o")
    mixed = net.node("Reshape", [mixed, net.constant("again", [37, 1, 8], np.int64)], "o.sequence")
    x = net.node("Transpose", [net.node("Add", [x, mixed], "sum")], "batch.first", perm=[1, 0, 2])
    return net.node("Gather", [x, net.constant("first", 0, np.int64)], "y", axis=1)


NETWORKS = [
    (resnet_block, 32),
    (mobilenet_block, 32),
    (deconvolution_head, 16),
    (hourglass, 32),
    (shuffle_block, 32),
    (convnext_block, 32),
    (attention_block, 36),
    (transformer_block, 40),
]


def build(network_builder, make, size, seed=3):
    net = network_builder(seed)
    output = make(net)
    model = net.model({"images": (1, 3, size, size)}, {output: None}, 17)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return shape_inference.infer_shapes(model)


@pytest.mark.parametrize(("make", "size"), NETWORKS, ids=[make.__name__ for make, _ in NETWORKS])
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "as exported"])
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels last", "channels first"])
def test_networks(network_builder, make, size, prepared, channels_last):
    model = build(network_builder, make, size)
    model = prepare_network(model) if prepared else model
    x = np.random.default_rng(0).random((3, 3, size, size), dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    wanted = np.concatenate([session.run(None, {"images": x[i : i + 1]})[0] for i in range(3)])
    module = OnnxModule(model, channels_last=channels_last).eval()
    (found,) = module(torch.from_numpy(x)).values()
    assert found.shape == wanted.shape
    assert float(np.abs(found.detach().numpy() - wanted).max()) < 1e-4 * float(np.abs(wanted).max())
    found.square().mean().backward()
    missing = [name for name, parameter in module.parameters_by_name().items() if parameter.grad is None]
    assert not missing


@pytest.mark.parametrize(
    ("make", "size", "kinds", "gates"),
    [
        (mobilenet_block, 32, {"hard_swish": 3}, 1),
        (convnext_block, 32, {"gelu": 1}, 0),
        (resnet_block, 32, {"silu": 2}, 0),
    ],
)
def test_activations_of_networks_are_swapped_and_their_gates_kept(network_builder, make, size, kinds, gates):
    swapped, changes = swap_activations(prepare_network(build(network_builder, make, size)))
    assert Counter(change.kind for change in changes) == kinds
    assert sum(node.op_type in ("Sigmoid", "HardSigmoid") for node in swapped.graph.node) == gates
    assert len(OnnxModule(swapped)(torch.rand(2, 3, size, size))) == 1


def test_biases_and_scales_outside_of_layers_are_trained(network_builder):
    names = set(OnnxModule(build(network_builder, convnext_block, 32)).parameters_by_name())
    assert {"w1", "b1", "ln.scale", "ln.shift", "dw.weight"} <= names
    assert not {"root", "one", "half"} & names
    assert set(OnnxModule(build(network_builder, convnext_block, 32), trainable=["gamma"]).parameters_by_name()) == {
        "gamma"
    }
