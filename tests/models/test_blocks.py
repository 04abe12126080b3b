import pytest
import torch
from torch.nn import functional

from qtoolkit.models.blocks import (
    C3,
    SPP,
    Bottleneck,
    ConvolutionStem,
    ConvolutionUnit,
    FocusStem,
    depthwise_unit,
    space_to_channels,
)


def test_a_unit_is_convolution_batch_norm_activation():
    unit = ConvolutionUnit(2, 3, 3, 2).eval()
    unit.bn.running_mean.normal_()
    unit.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 2, 5, 6)
    y = functional.conv2d(x, unit.conv.weight, stride=2, padding=1)
    mean, variance = (each[None, :, None, None] for each in (unit.bn.running_mean, unit.bn.running_var))
    y = (y - mean) / torch.sqrt(variance + 1e-3)
    torch.testing.assert_close(unit(x), y * torch.sigmoid(y))
    assert unit.bn.momentum == 0.03 and unit.conv.bias is None


def test_depthwise_has_one_filter_per_channel():
    unit = depthwise_unit(8, 3, "relu")
    assert unit.conv.weight.shape == (8, 1, 3, 3)
    assert unit(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


def test_the_shortcut_adds_the_input():
    with_it, without = Bottleneck(4, True, "silu").eval(), Bottleneck(4, False, "silu").eval()
    without.load_state_dict(with_it.state_dict())
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(with_it(x), x + without(x))


def test_c3_sends_one_half_past_the_bottlenecks():
    block = C3(4, 8, 2, False, "silu").eval()
    x = torch.randn(1, 4, 3, 3)
    halves = torch.cat([block.m[1](block.m[0](block.cv1(x))), block.cv2(x)], 1)
    torch.testing.assert_close(block(x), block.cv3(halves))
    assert len(block.m) == 2


def test_chained_pools_are_pools_of_3_5_and_7():
    block = SPP(8, 6, "relu").eval()
    seen = []
    block.cv2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 8, 9, 7)
    assert block(x).shape == (1, 6, 9, 7)
    y = block.cv1(x)
    pools = [functional.max_pool2d(y, size, 1, size // 2) for size in (3, 5, 7)]
    torch.testing.assert_close(seen[0], torch.cat([y, *pools], 1), rtol=0, atol=0)


def test_pixels_of_a_square_lie_side_by_side():
    x = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    y = space_to_channels(x)
    assert y.shape == (1, 8, 2, 3)
    for dy in (0, 1):
        for dx in (0, 1):
            for c in (0, 1):
                assert torch.equal(y[0, (2 * dy + dx) * 2 + c], x[0, c, dy::2, dx::2])


@pytest.mark.parametrize("stem", [FocusStem, ConvolutionStem])
def test_stems_halve_the_image(stem):
    assert stem(16, "silu")(torch.rand(2, 3, 8, 12)).shape == (2, 16, 4, 6)
