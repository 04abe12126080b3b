"""Closed-form fits: exact where a solution exists, and far closer than a bare swap where none does."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import helper
from torch.nn import functional

from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.swap_activations import swap_activations
from qtoolkit.training.distill import head_outputs
from qtoolkit.training.onnx_module import OnnxModule
from qtoolkit.training.reconstruction import Patches, fit_activation, reconstruct_layers_, regression_bytes


def _conv(**attributes):
    return helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", **attributes)


@pytest.mark.parametrize(
    ("attributes", "kernel", "group"),
    [
        ({}, (1, 1), 1),
        ({"pads": [1, 1, 1, 1]}, (3, 3), 1),
        ({"pads": [0, 1, 2, 0], "strides": [2, 2]}, (3, 3), 1),
        ({"pads": [2, 2, 2, 2], "dilations": [2, 2]}, (3, 3), 1),
        ({"pads": [1, 1, 1, 1], "group": 4}, (3, 3), 4),
        ({"pads": [0, 1, 0, 1], "strides": [1, 2], "group": 2}, (1, 3), 2),
    ],
)
def test_patches_times_weights_are_the_convolution(attributes, kernel, group):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(4, 9, 11, generator=generator)
    weight = torch.randn(8, 4 // group, *kernel, generator=generator)
    patches = Patches.of(_conv(**attributes), kernel)
    assert patches is not None
    top, left, bottom, right = patches.pads
    padded = functional.pad(image, (left, right, top, bottom))[None]
    wanted = functional.conv2d(padded, weight, None, patches.strides, 0, patches.dilations, group)[0]
    places = torch.randperm(wanted.shape[1] * wanted.shape[2], generator=generator)[:7]
    rows = patches.rows(image, places, wanted.shape[2])
    found = (rows @ weight.view(group, 8 // group, -1).transpose(1, 2)).transpose(0, 1).reshape(7, 8)
    torch.testing.assert_close(found, wanted.flatten(1)[:, places].T, rtol=1e-4, atol=1e-5)


def test_padding_left_to_the_runtime_is_not_fitted():
    assert Patches.of(_conv(auto_pad="SAME_UPPER"), (3, 3)) is None


@pytest.mark.parametrize(("kind", "share"), [("silu", 0.8), ("mish", 0.8), ("gelu", 1.001), ("hard_swish", 0.8)])
def test_the_fitted_relu_is_nearer_than_the_plain_one(kind, share):
    values = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 3.0])
    function = {"silu": functional.silu, "mish": functional.mish, "gelu": functional.gelu}.get(
        kind, functional.hardswish
    )
    slope, shift = fit_activation(kind, values)

    def left(rectified):
        wanted = function(values)
        difference = rectified - wanted
        return (difference - difference.mean(0)).square().mean(0)

    fitted, plain = left(slope * functional.relu(values + shift)), left(functional.relu(values))
    assert (fitted < share * plain).all()


def test_an_unknown_activation_keeps_slope_one():
    slope, shift = fit_activation("prelu", torch.randn(100, 3))
    assert slope.tolist() == [1, 1, 1]
    assert shift.tolist() == [0, 0, 0]


def _pair(model: onnx.ModelProto):
    original = prepare_network(model)
    swapped, changes = swap_activations(original, "relu")
    outputs = head_outputs(original)
    producers = {node.output[0]: node.name for node in swapped.graph.node}
    kinds = {producers[change.input]: change.kind for change in changes}
    return original, swapped, kinds, outputs


def _distance(teacher, student, images, outputs):
    with torch.no_grad():
        wanted, given = teacher(images), student(images)
    return sum(float((given[name] - wanted[name]).square().mean() / wanted[name].var()) for name in outputs)


def test_a_network_without_changes_stays_what_it_was(tiny_pose_model):
    original, _, _, outputs = _pair(tiny_pose_model())
    teacher, student = (OnnxModule(original, outputs=outputs) for _ in range(2))
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    fits = reconstruct_layers_(teacher, student, original, {}, images, rows=2000)
    assert max(fit.error for fit in fits) < 1e-4
    assert _distance(teacher, student, images, outputs) < 1e-3


def _convolution(network_builder, group=1):
    """``images`` (1, 8, 12, 12) → one convolution of 3×3, 8 channels."""
    net = network_builder(seed=1)
    weight = net.weights("w", (8, 8 // group, 3, 3), 72 / group)
    bias = net.constant("b", net.random.normal(0, 0.5, 8))
    net.node("Conv", ["images", weight, bias], "out", kernel_shape=[3, 3], pads=[1] * 4, group=group)
    return net.model({"images": (1, 8, 12, 12)}, {"out": (1, 8, 12, 12)})


@pytest.mark.parametrize("group", [1, 2, 8], ids=["dense", "grouped", "depthwise"])
def test_a_linear_layer_is_recovered(network_builder, group):
    model = _convolution(network_builder, group)
    teacher, student = OnnxModule(model), OnnxModule(model)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    images = torch.randn(8, 8, 12, 12, generator=generator)
    (fit,) = reconstruct_layers_(teacher, student, model, {}, images)
    assert fit.rows == 8 * 144
    assert fit.error < 1e-5
    for name, parameter in student.parameters_by_name().items():
        torch.testing.assert_close(parameter, teacher.parameters_by_name()[name], rtol=0, atol=2e-3)


def test_layers_that_share_a_weight_keep_it(network_builder):
    net = network_builder(seed=1)
    weight, bias = net.weights("w", (8, 8, 1, 1), 8), net.constant("b", net.random.normal(0, 0.5, 8))
    net.node("Conv", [net.node("Conv", ["images", weight, bias], "inner"), weight, bias], "out")
    model = net.model({"images": (1, 8, 12, 12)}, {"out": (1, 8, 12, 12)})
    teacher, student = OnnxModule(model), OnnxModule(model)
    with torch.no_grad():
        student.parameters_by_name()["w"].mul_(2)
    before = student.parameters_by_name()["w"].clone()
    assert reconstruct_layers_(teacher, student, model, {}, torch.rand(2, 8, 12, 12)) == []
    torch.testing.assert_close(student.parameters_by_name()["w"].detach(), before.detach(), rtol=0, atol=0)


def test_memory_of_the_regression_is_that_of_the_widest_layer(network_builder):
    model = _convolution(network_builder, group=2)
    # Per row 2 groups of 4 · 9 entries and a one, and six vectors of 8 outputs; 4 bytes each.
    assert regression_bytes(OnnxModule(model), model, 100) == 100 * 4 * (2 * 37 + 6 * 8)


def test_the_fit_is_far_nearer_than_a_bare_swap_on_other_images(tiny_pose_model):
    original, swapped, kinds, outputs = _pair(tiny_pose_model())
    teacher = OnnxModule(original, outputs=outputs)
    bare, fitted = OnnxModule(swapped, outputs=outputs), OnnxModule(swapped, outputs=outputs)
    generator = torch.Generator().manual_seed(4)
    images, others = (torch.rand(24, 3, 64, 64, generator=generator) for _ in range(2))
    calls = []
    fits = reconstruct_layers_(
        teacher, fitted, swapped, kinds, images, rows=20_000, progress=lambda done, total: calls.append((done, total))
    )
    assert {fit.layer for fit in fits} == set(fitted.layer_names)
    assert calls[-1][0] == calls[-1][1] == len(fitted.layer_names)
    assert _distance(teacher, fitted, others, outputs) < 0.35 * _distance(teacher, bare, others, outputs)


def test_the_walk_gives_what_each_layer_reads(tiny_pose_model):
    original, _, _, outputs = _pair(tiny_pose_model())
    module = OnnxModule(original, outputs=outputs)
    images = torch.rand(1, 3, 64, 64)
    seen = dict(module.visit_layers(images))
    assert tuple(seen) == module.layer_names
    first = next(node for node in original.graph.node if node.name == module.layer_names[3])
    with torch.no_grad():
        wanted = module(images, capture=[first.input[0]])[first.input[0]]
    torch.testing.assert_close(seen[first.name].detach(), wanted)
