"""Learned rounding against the formulas of the papers, computed in numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from qtoolkit.numerics.affine import IntegerGrid, fake_quantize, params_from_range, quantize, weight_params
from qtoolkit.training.fake_quantizer import FakeQuantizer
from qtoolkit.training.rounding import LearnedRounding, beta, dropped, mixed

GRID = IntegerGrid(8, signed=True, symmetric=True, narrow_range=True)


@pytest.fixture(params=[None, 0, 1], ids=["per tensor", "per channel", "along the second axis"])
def weight_and_params(request):
    weight = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    return weight, weight_params(weight, GRID, request.param)


def rounding_of(weight, params):
    return LearnedRounding(torch.from_numpy(weight), FakeQuantizer(params, True, batched=False))


def test_it_begins_at_the_float_weight(weight_and_params):
    rounding = rounding_of(*weight_and_params)
    found = rounding(torch.zeros(1)).detach().numpy()
    np.testing.assert_allclose(found, weight_and_params[0], atol=2e-6)


def test_the_rectified_sigmoid(weight_and_params):
    rounding = rounding_of(*weight_and_params)
    with torch.no_grad():
        rounding.v.copy_(torch.linspace(-6, 6, rounding.v.numel()).reshape(rounding.v.shape))
    v = rounding.v.detach().numpy().astype(np.float64)
    expected = np.clip(1 / (1 + np.exp(-v)) * (1.1 - -0.1) + -0.1, 0, 1)
    np.testing.assert_allclose(rounding.share_up().detach().numpy(), expected, atol=1e-6)
    assert expected.min() == 0 and expected.max() == 1


@pytest.mark.parametrize("exponent", [20.0, 2.0])
def test_the_regularizer(weight_and_params, exponent):
    rounding = rounding_of(*weight_and_params)
    up = rounding.share_up().detach().numpy().astype(np.float64)
    expected = (1 - np.abs(2 * up - 1) ** exponent).mean()
    assert float(rounding.unevenness(exponent).detach()) == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        rounding.v.copy_(torch.where(rounding.v > 0, 9.0, -9.0))
    assert float(rounding.unevenness(exponent).detach()) == 0


def test_hard_values_lie_on_the_grid_next_to_the_weight(weight_and_params):
    weight, params = weight_and_params
    rounding = rounding_of(weight, params)
    with torch.no_grad():
        rounding.v.copy_(torch.from_numpy(np.random.default_rng(1).normal(size=weight.shape) * 5))
    hard = rounding.hardened().numpy()
    np.testing.assert_array_equal(hard, fake_quantize(hard, params))
    scale = rounding.scale.numpy()
    integers, steps = quantize(hard, params).astype(np.int64), weight / scale
    assert np.all((integers == np.floor(steps)) | (integers == np.floor(steps) + 1) | (np.abs(integers) == GRID.qmax))
    up = rounding.share_up().detach().numpy() >= 0.5
    np.testing.assert_array_equal(integers, np.clip(np.floor(steps) + up, GRID.qmin, GRID.qmax))


def test_without_a_step_it_is_rounding_to_nearest(weight_and_params):
    weight, params = weight_and_params
    np.testing.assert_array_equal(rounding_of(weight, params).hardened().numpy(), fake_quantize(weight, params))


def test_weights_at_the_ends_of_the_grid_stay_in_it():
    weight = np.array([[1.0, -1.0, 0.0, 0.5]], np.float32)
    params = weight_params(weight, GRID, None)
    rounding = rounding_of(weight, params)
    with torch.no_grad():
        rounding.v.fill_(9.0)
    assert np.all(np.abs(quantize(rounding.hardened().numpy(), params)) <= GRID.qmax)
    assert torch.isfinite(rounding_of(weight, params).v).all()


def test_beta_falls_from_20_to_2_behind_a_warm_up():
    values = [beta(step, 100) for step in range(100)]
    assert values[:20] == [None] * 20
    assert values[20] == 20.0 and 2.0 < values[99] < 2.3
    assert all(first > second for first, second in pairwise(values[20:]))


class TestDrop:
    @pytest.fixture
    def quantizer(self):
        return FakeQuantizer(params_from_range(-1.0, 1.0, IntegerGrid(8, signed=True, symmetric=False)), True)

    def test_the_ends(self, quantizer):
        x = torch.rand(2, 3, 8, 8)
        assert torch.equal(dropped(quantizer, 0.0, torch.Generator())(x), quantizer(x))
        assert torch.equal(dropped(quantizer, 1.0, torch.Generator())(x), x)

    def test_between_them_each_element_is_one_or_the_other(self, quantizer):
        x = torch.rand(2, 3, 32, 32)
        found = dropped(quantizer, 0.25, torch.Generator().manual_seed(0))(x, torch.zeros(()))
        is_float = found == x
        assert torch.equal(found[~is_float], quantizer(x)[~is_float])
        assert 0.2 < float(is_float.float().mean()) < 0.3

    def test_the_seed_decides(self):
        ones, zeros = torch.ones(100), torch.zeros(100)
        first, second = (mixed(ones, zeros, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, second)
