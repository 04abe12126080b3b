"""The averaged weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qtoolkit.training.ema import AveragedModel


def test_the_average_by_hand():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        average = AveragedModel(model, 0.9, 2)
        model[0].weight.fill_(3.0)
        model[1].running_mean.fill_(5.0)
        model[1].num_batches_tracked.fill_(7)
        average.update(model)
    kept = 0.9 * (1 - math.exp(-1 / 2))
    assert average.model[0].weight.item() == pytest.approx(kept * 1 + (1 - kept) * 3)
    assert average.model[1].running_mean.item() == pytest.approx((1 - kept) * 5)
    assert average.model[1].num_batches_tracked.item() == 7
    average.update(model)
    later = 0.9 * (1 - math.exp(-2 / 2))
    assert average.model[0].weight.item() == pytest.approx(later * (3 - 2 * kept) + (1 - later) * 3)


def test_the_average_is_apart_from_the_model():
    model = nn.Linear(2, 2)
    average = AveragedModel(model, 0.9, 10)
    before = average.model.weight.clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(average.model.weight, before)
    assert not average.model.weight.requires_grad
    assert not average.model.training
    assert model.weight.requires_grad
