"""The distillation loss: zero at the teacher, right by hand, weighted by the teacher's confidence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qtoolkit.evaluation.heads import detect_head
from qtoolkit.graph.equalize import equalized
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.shapes import network_input
from qtoolkit.graph.view import GraphView
from qtoolkit.training.distill import Distillation, head_outputs, score_channels
from qtoolkit.training.onnx_module import OnnxModule


def _maps(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"score": torch.randn(2, 1, 4, 4, generator=generator), "box": torch.randn(2, 3, 4, 4, generator=generator)}


def test_the_teacher_itself_costs_nothing():
    loss = Distillation(("score", "box"), {"score": torch.tensor([0])})
    assert float(loss(_maps(1), _maps(1)).total) == pytest.approx(0, abs=1e-6)


def test_one_place_by_hand():
    loss = Distillation(("score", "box"), {"score": torch.tensor([0])})
    teacher = {"score": torch.zeros(1, 1, 1, 2), "box": torch.tensor([[[[1.0, 3.0]]]])}
    student = {"score": torch.tensor([[[[1.0, 0.0]]]]), "box": torch.tensor([[[[1.0, 5.0]]]])}
    parts = loss(teacher, student)
    # Both places weigh 1/2: variance 1, squared difference 4 at one of them.
    assert float(parts.rest) == pytest.approx(2.0)
    divergence = (torch.log1p(torch.exp(torch.tensor(1.0))) - 0.5 - torch.log(torch.tensor(2.0))) / 2
    logits = 0.05 * (0.51**0.5) / 2
    assert float(parts.scores) == pytest.approx(float(divergence) + logits, rel=1e-5)
    assert float(parts.total) == pytest.approx(10 * float(parts.scores) + 2.0, rel=1e-6)


def test_errors_count_where_the_teacher_is_sure():
    loss = Distillation(("score", "box"), {"score": torch.tensor([0])})
    teacher = {"score": torch.tensor([[[[4.0, -8.0]]]]), "box": torch.tensor([[[[0.0, 1.0]]]])}
    wrong_at = [{**teacher, "box": teacher["box"] + torch.tensor([[[shift]]])} for shift in ([1.0, 0.0], [0.0, 1.0])]
    at_person, at_background = (float(loss(teacher, student).rest) for student in wrong_at)
    assert at_person > 50 * at_background


def test_without_confidences_every_place_counts_alike():
    loss = Distillation(("box",), {})
    teacher, student = {"box": _maps(1)["box"]}, {"box": _maps(2)["box"]}
    wanted = (student["box"] - teacher["box"]).square().mean() / teacher["box"].var()
    assert float(loss(teacher, student).total) == pytest.approx(float(wanted), rel=1e-6)


def test_a_step_against_the_gradient_brings_the_student_nearer():
    loss = Distillation(("score", "box"), {"score": torch.tensor([0])})
    teacher, student = _maps(1), {name: value.requires_grad_(True) for name, value in _maps(2).items()}
    before = loss(teacher, student).total
    before.backward()
    for name, value in student.items():
        # Downhill is towards the teacher at each single number.
        assert bool(((value.grad * (value - teacher[name]).detach()) >= 0).all())
    moved = {name: (value - 0.1 * value.grad).detach() for name, value in student.items()}
    assert float(loss(teacher, moved).total) < float(before.detach())


def test_the_spread_is_that_of_the_batch_it_was_measured_on():
    loss = Distillation(("box",), {})
    teacher, student = {"box": _maps(1)["box"]}, {"box": _maps(2)["box"]}
    loss.measure_spread({"box": 10 * teacher["box"]})
    wide = float(loss(teacher, student).total)
    loss.measure_spread(teacher)
    assert float(loss(teacher, student).total) == pytest.approx(100 * wide, rel=1e-4)


def test_score_channels_are_found_by_their_gradient(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    view = GraphView(model)
    head = detect_head({name: view.shape(name) or () for name in view.outputs}, network_input(model).input_size_wh)
    channels = score_channels(model, head)
    assert set(channels) <= set(head_outputs(model))
    assert len(channels) == 3
    assert all(view.shape(name)[1] == 1 and found.tolist() == [0] for name, found in channels.items())


def test_no_known_head_has_no_score_channels(tiny_pose_model):
    assert score_channels(prepare_network(tiny_pose_model()), None) == {}


def test_beyond_the_limit_differences_count_along_a_line():
    teacher = {"box": torch.tensor([[[[-1.0, 1.0]]]])}  # variance 2
    wide = 2**0.5
    losses = {}
    for limit in (None, 1.0):
        loss = Distillation(("box",), {}, limit)
        losses[limit] = [
            float(loss(teacher, {"box": teacher["box"] + torch.tensor([[[[shift * wide, 0.0]]]])}).total)
            for shift in (0.5, 1.0, 3.0, 100.0)
        ]
    assert losses[None] == pytest.approx([0.125, 0.5, 4.5, 5000.0])
    assert losses[1.0] == pytest.approx([0.125, 0.5, 2.5, 99.5])


def test_the_gradient_is_finite_at_the_teacher_and_bounded_far_from_it():
    loss = Distillation(("score", "box"), {"score": torch.tensor([0])}, 1.0)
    teacher = _maps(1)
    sizes = []
    for factor in (0.0, 10.0, 1000.0):
        student = {name: (value + factor).requires_grad_(True) for name, value in teacher.items()}
        total = loss(teacher, student).total
        sizes.append(float(torch.autograd.grad(total, student["box"])[0].abs().max()))
    assert sizes[0] == pytest.approx(0)
    assert sizes[1] == pytest.approx(sizes[2], rel=1e-3)


def test_outputs_of_an_equalized_network_are_those_of_the_float_one(tiny_pose_model):
    model = prepare_network(tiny_pose_model("relu"))
    scaled, names = equalized(model), head_outputs(model)
    assert head_outputs(scaled) == names
    image = network_input(model)
    feeds = {image.name: np.random.default_rng(0).random((1, 3, *image.input_size_wh[::-1]), dtype=np.float32)}
    found, expected = (
        OnnxModule(each, outputs=names)({name: torch.from_numpy(value) for name, value in feeds.items()})
        for each in (scaled, model)
    )
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)
    assert any(node.name.endswith("/rows") for node in scaled.graph.node)
