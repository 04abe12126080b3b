"""Fake quantizers: the values of the formulas in numerics, bit for bit, and the gradients of LSQ by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qtoolkit.numerics.affine import IntegerGrid, QuantParams, dequantize, fake_quantize, params_from_range, quantize
from qtoolkit.training.fake_quantizer import FakeQuantizer, round_bias

GRIDS = {
    "int8": IntegerGrid(8, signed=True, symmetric=True),
    "int8 narrow": IntegerGrid(8, signed=True, symmetric=True, narrow_range=True),
    "uint8": IntegerGrid(8, signed=False, symmetric=False),
    "int8 asymmetric": IntegerGrid(8, signed=True, symmetric=False),
    "int16": IntegerGrid(16, signed=True, symmetric=True),
    "uint16": IntegerGrid(16, signed=False, symmetric=False),
    "power of two": IntegerGrid(8, signed=True, symmetric=True, power_of_two=True),
}


def _values(shape=(2, 3, 5, 7), seed=0):
    return (np.random.default_rng(seed).normal(0, 3, shape)).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("axis", [None, 1])
def test_values_are_those_of_the_formula_bit_for_bit(grid, axis):
    x = _values()
    lo, hi = (-2.0, 5.0) if axis is None else (np.array([-1.0, -2.0, -0.5]), np.array([3.0, 2.5, 7.0]))
    params = params_from_range(lo, hi, grid, axis)
    found = FakeQuantizer(params, learned=True)(torch.from_numpy(x)).detach().numpy()
    assert found.tobytes() == fake_quantize(x, params).tobytes()


def test_channels_with_zero_points_of_their_own():
    grid = GRIDS["uint8"]
    params = params_from_range(np.array([-1.0, -2.0, 0.0]), np.array([3.0, 2.5, 7.0]), grid, 1)
    assert len(set(params.zero_point.tolist())) == 3
    x = torch.from_numpy(_values()).requires_grad_()
    found = FakeQuantizer(params, learned=True)(x)
    assert found.detach().numpy().tobytes() == fake_quantize(x.detach().numpy(), params).tobytes()
    found.sum().backward()
    inside = [(-1.01, 3.01), (-2.01, 2.51), (-0.01, 7.02)]
    for channel, (lo, hi) in enumerate(inside):
        values, gradient = x.detach()[:, channel], x.grad[:, channel]
        assert bool((gradient == ((values > lo) & (values < hi))).all())


def test_values_under_a_moved_scale_are_those_of_the_parameters_given_back():
    quantizer = FakeQuantizer(params_from_range(-2.0, 5.0, GRIDS["uint8"]), learned=True)
    with torch.no_grad():
        quantizer.log2_ratio.fill_(0.37)
    x = _values()
    assert quantizer.params().scale == pytest.approx(7 / 255 * 2**0.37, rel=1e-6)
    assert quantizer.params().zero_point == quantizer.first.zero_point
    assert quantizer(torch.from_numpy(x)).detach().numpy().tobytes() == fake_quantize(x, quantizer.params()).tobytes()


@pytest.mark.parametrize(("moved", "doublings"), [(0.4, 0), (0.6, 1), (-1.7, -2)])
def test_a_power_of_two_stays_one(moved, doublings):
    quantizer = FakeQuantizer(params_from_range(-2.0, 5.0, GRIDS["power of two"]), learned=True)
    first = float(quantizer.params().scale)
    with torch.no_grad():
        quantizer.log2_ratio.fill_(moved)
    assert float(quantizer.params().scale) == first * 2.0**doublings
    quantizer(torch.from_numpy(_values())).sum().backward()
    assert quantizer.log2_ratio.grad != 0


def test_gradients_by_hand():
    scale = np.float32(0.5)
    grid = GRIDS["uint8"]
    params = QuantParams(scale, np.array(250, np.uint8), grid, None)
    # Grid: −125 … 2.5. Steps of the values: −0.6, 1.2, 8, −400.
    x = torch.tensor([[-0.3, 0.6, 4.0, -200.0]], requires_grad=True)
    quantizer = FakeQuantizer(params, learned=True)
    weights = torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    (quantizer(x) * weights).sum().backward()
    assert x.grad.tolist() == [[1.0, 2.0, 0.0, 0.0]]
    to_scale = (1 * (-1 + 0.6) + 2 * (1 - 1.2) + 3 * 5 + 5 * -250) / np.sqrt(4 * 255)
    assert float(quantizer.log2_ratio.grad) == pytest.approx(to_scale * 0.5 * np.log(2), rel=1e-5)


def test_each_channel_has_the_gradient_of_its_own_values():
    grid = GRIDS["int8 narrow"]
    params = params_from_range(np.array([-1.0, -2.0, -0.5]), np.array([1.0, 2.0, 0.5]), grid, 0)
    weight = _values((3, 4, 2, 2))
    quantizer = FakeQuantizer(params, learned=True, batched=False)
    (quantizer(torch.from_numpy(weight)) ** 2).sum().backward()
    for channel in range(3):
        alone = FakeQuantizer(
            params_from_range(-params.scale[channel] * 127, params.scale[channel] * 127, grid), True, batched=False
        )
        (alone(torch.from_numpy(weight[channel])) ** 2).sum().backward()
        assert float(quantizer.log2_ratio.grad[channel]) == pytest.approx(float(alone.log2_ratio.grad), rel=1e-4)


def test_the_scale_found_by_descent_has_a_smaller_error_than_one_that_is_far_too_wide():
    x = torch.from_numpy(_values((64, 64)))
    quantizer = FakeQuantizer(params_from_range(-200.0, 200.0, GRIDS["int8"]), learned=True)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    errors = []
    for _ in range(150):
        optimizer.zero_grad()
        error = (quantizer(x) - x).square().mean()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < errors[0] / 20


def test_it_computes_in_float32_under_autocast():
    x = torch.from_numpy(_values())
    quantizer = FakeQuantizer(params_from_range(-2.0, 5.0, GRIDS["uint8"]), learned=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, quantizer(x))


def test_a_grid_that_stays_has_no_parameter():
    quantizer = FakeQuantizer(params_from_range(0.0, 1.0, GRIDS["uint8"]), learned=False)
    assert list(quantizer.parameters()) == []
    x = torch.rand(1, 3, requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("axis", [None, 0])
def test_a_bias_lies_on_the_grid_of_input_and_weight(axis):
    random = np.random.default_rng(1)
    bias = random.normal(0, 30, 4).astype(np.float32)
    weight_scale = np.float32([1e-6, 2e-3, 0.01, 0.3]) if axis == 0 else np.float32(2e-3)
    input_scale = np.float32(0.02)
    scale = np.asarray(input_scale * weight_scale, np.float32)
    grid = IntegerGrid(32, signed=True, symmetric=True)
    params = QuantParams(scale, np.zeros(scale.shape, np.int32), grid, axis)
    given = torch.from_numpy(bias).requires_grad_()
    found = round_bias(given, torch.tensor(input_scale), torch.from_numpy(np.asarray(weight_scale)))
    np.testing.assert_allclose(found.detach().numpy(), dequantize(quantize(bias, params), params), rtol=3e-7)
    found.sum().backward()
    assert given.grad.tolist() == [1.0] * 4
