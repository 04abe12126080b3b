import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from qtoolkit.errors import UsageError
from qtoolkit.evaluation.decode import decode as decode_people
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.models.yolopose import ANCHORS, STRIDES, DeployedYoloPose, YoloPose, YoloPoseConfig, decode

# Parameters in millions and GMACs of the published networks: our own count of the released definitions first, then the
# figures that the release itself prints.
PUBLISHED = [
    ("s6", False, 15.12, 640, 10.09),
    ("s6", False, None, 960, 22.71),
    ("s6", True, 12.56, 640, 8.57),
    ("s6", True, None, 960, 19.29),
    ("m6", False, 41.43, 960, 66.13),
    ("l6", False, 87.07, 960, 145.29),
    ("s6", False, None, 640, 10.2),
    ("s6", False, None, 960, 22.8),
    ("s6", True, None, 640, 8.6),
    ("s6", True, None, 960, 19.3),
    ("s6", True, None, 1280, 34.4),
    ("m6", False, None, 960, 66.3),
    ("m6", True, None, 640, 26.1),
    ("m6", True, None, 960, 58.7),
    ("l6", False, None, 960, 145.6),
]


@functools.cache
def _without_memory(size, lite):
    with torch.device("meta"):
        return YoloPose(YoloPoseConfig(size, lite))


def _gmacs(model, size):
    counted = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output: counted.append(output.numel() * module.weight[0].numel())
        )
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    model(torch.empty(1, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(counted) / 1e9


@pytest.mark.parametrize(("size", "lite", "parameters_m", "input_size", "gmacs"), PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(size, lite, parameters_m, input_size, gmacs):
    model = _without_memory(size, lite)
    assert _gmacs(model, input_size) == pytest.approx(gmacs, rel=0.015)
    if parameters_m is not None:
        found = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert found == pytest.approx(parameters_m, rel=0.001)


@pytest.mark.parametrize("lite", [False, True])
@pytest.mark.parametrize("order", ["apart", "ti"])
def test_shapes_of_all_levels(lite, order):
    with torch.device("meta"):
        model = YoloPose(YoloPoseConfig("n6", lite, keypoint_count=5, head_order=order))
        raw = model(torch.empty(2, 3, 128, 192))
        rows = DeployedYoloPose(model)(torch.empty(2, 3, 128, 192))
    assert [tuple(level.shape) for level in raw] == [(2, 3, 128 // s, 192 // s, 21) for s in STRIDES]
    assert rows.shape == (2, sum(3 * (128 // s) * (192 // s) for s in STRIDES), 21)


@pytest.mark.parametrize("shape", [(1, 3, 100, 128), (1, 3, 128, 32), (3, 64, 64)])
def test_images_of_other_sizes_are_refused(shape):
    with torch.device("meta"):
        model = YoloPose(YoloPoseConfig(lite=True))
    with pytest.raises(UsageError, match="multiples of 64"):
        model(torch.empty(shape, device="meta"))


def test_the_boxes_come_from_the_box_head_alone(make_network):
    model = make_network(lite=True)
    x = torch.rand(1, 3, 64, 64)
    before = model(x)
    for head in model.heads:
        head.keypoints[-1].weight.data.mul_(2)
    after = model(x)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[..., :6], new[..., :6])
        assert not torch.allclose(old[..., 6:], new[..., 6:])


def test_ti_cuts_the_joined_channels_into_anchors(make_network):
    model = make_network(lite=True, head_order="ti")
    outputs = {}
    for name, head in model.heads.named_children():
        head.box.register_forward_hook(lambda m, i, y, name=name: outputs.setdefault(f"{name}.box", y))
        head.keypoints.register_forward_hook(lambda m, i, y, name=name: outputs.setdefault(f"{name}.keypoints", y))
    raw = model(torch.rand(1, 3, 64, 64))
    for level, rows in enumerate(raw):
        box, keypoints = outputs[f"{level}.box"], outputs[f"{level}.keypoints"]
        # Anchor 1 begins at channel 57 of both joined: channel 39 of the keypoint convolution.
        assert torch.equal(rows[0, 1, :, :, :6].permute(2, 0, 1), keypoints[0, 39:45])
        assert torch.equal(rows[0, 0, :, :, :18].permute(2, 0, 1), box[0])


@pytest.mark.parametrize("lite", [False, True])
@pytest.mark.parametrize("order", ["apart", "ti"])
def test_the_priors_are_those_of_yolov5(lite, order):
    torch.manual_seed(0)
    rows = YoloPose(YoloPoseConfig(lite=lite, head_order=order)).eval()(torch.rand(1, 3, 128, 128))
    for level, stride in zip(rows, STRIDES, strict=True):
        # 8 people in the cells of a 640-pixel image; the class score says yes, and the same at every place.
        assert level[..., 4].mean().item() == pytest.approx(math.log(8 / (640 / stride) ** 2), abs=0.35)
        torch.testing.assert_close(level[..., 5], torch.full_like(level[..., 5], math.log(60)))


def test_decoding_by_hand():
    raw = [torch.zeros(1, 3, 128 // s, 192 // s, 9, dtype=torch.float64) for s in STRIDES]
    # Level P4, anchor 2, row 3, column 5.
    raw[1][0, 2, 3, 5] = torch.tensor([0.4, -0.2, 0.3, -1.0, 2.0, 3.0, 0.7, -1.5, 0.9])
    anchors = torch.tensor(ANCHORS, dtype=torch.float64)
    rows = decode(raw, anchors, STRIDES)
    place = 3 * 16 * 24 + 2 * 8 * 12 + 3 * 12 + 5

    def logistic(t):
        return 1 / (1 + math.exp(-t))

    expected = [
        (2 * logistic(0.4) - 0.5 + 5) * 16,
        (2 * logistic(-0.2) - 0.5 + 3) * 16,
        (2 * logistic(0.3)) ** 2 * 180,
        (2 * logistic(-1.0)) ** 2 * 137,
        logistic(2.0),
        logistic(3.0),
        (2 * 0.7 - 0.5 + 5) * 16,
        (2 * -1.5 - 0.5 + 3) * 16,
        logistic(0.9),
    ]
    torch.testing.assert_close(rows[0, place], torch.tensor(expected, dtype=torch.float64))
    # Every logit 0: the middle of the cell, the anchor itself.
    torch.testing.assert_close(rows[0, 0, :4], torch.tensor([4.0, 4.0, 19.0, 27.0], dtype=torch.float64))
    assert rows.shape == (1, 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3), 9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pixels_are_decoded_in_float32(dtype):
    raw = [torch.zeros(1, 3, 1024 // s, 1024 // s, 9, dtype=dtype) for s in STRIDES]
    rows = decode(raw, torch.tensor(ANCHORS), STRIDES)
    assert rows.dtype == torch.float32
    assert rows[0, 127, 0].item() == 127.5 * 8


def test_the_deployed_network_gives_what_decode_gives(make_network):
    model = make_network(lite=True)
    x = torch.rand(2, 3, 64, 128)
    rows = DeployedYoloPose(model)(x)
    assert torch.equal(rows, decode(model(x), model.anchors, model.strides))
    head = detect_head({"output0": (1, *rows.shape[1:])}, (128, 64))
    assert (head.kind, head.keypoint_count, head.strides) == ("yolov5-pose", 17, STRIDES)
    people = decode_people({"output0": rows[:1].detach().numpy()}, head, 0.0)
    scores = (rows[0, :, 4] * rows[0, :, 5]).detach().numpy()
    np.testing.assert_allclose(people.scores, scores, rtol=1e-6)
    np.testing.assert_allclose(people.keypoints[:, 3, 1], rows[0, :, 6 + 3 * 3 + 1].detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("lite", [False, True])
def test_channels_last_computes_the_same(make_network, lite):
    model = make_network(lite=lite)
    x = torch.rand(1, 3, 64, 64)
    expected = model(x)
    found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for old, new in zip(expected, found, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


def test_double_precision(make_network):
    model = make_network(lite=True).double()
    raw = model(torch.rand(1, 3, 64, 64, dtype=torch.float64))
    assert {level.dtype for level in raw} == {torch.float64}
    assert decode(raw, model.anchors, model.strides).dtype == torch.float64


def test_autocast_to_16_bit_and_its_gradients(make_network):
    model = make_network(lite=True, activation="relu").train()
    x = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(x)
    assert {level.dtype for level in raw} == {torch.bfloat16}
    sum(level.float().square().mean() for level in raw).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())
