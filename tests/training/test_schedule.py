"""Rates and order of a run."""

from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.training.recipe import build_train_recipe
from qtoolkit.training.schedule import Schedule


class _Images:
    """Stands for a TrainingSet: an order per epoch."""

    def __init__(self, count: int) -> None:
        self.count = count

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(self.count)


def _schedule(set_images=100, processes=1, **fields) -> Schedule:
    recipe = build_train_recipe({"data": "x", "image_size": 64, "batch": 10, **fields})
    return Schedule(recipe, set_images, processes)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        pytest.param({"epochs": 3}, 30, id="epochs"),
        pytest.param({"images": 95}, 10, id="images, rounded up"),
        pytest.param({"epochs": 3, "accumulate": 4}, 6, id="accumulated: 40 images a step, 20 left over"),
        pytest.param({"epochs": 3, "batch": 64, "accumulate": 2}, 3, id="a step larger than the set"),
    ],
)
def test_steps(fields, steps):
    assert _schedule(**fields).steps == steps


def test_rates_by_hand():
    schedule = _schedule(images=1000, warmup_images=100, lr=0.02, lr_final=0.2)
    assert schedule.warmup_steps == 10
    assert schedule.rates(0) == (0, pytest.approx(0.1), pytest.approx(0.8))
    half = schedule.rates(50)
    assert half.weights == half.biases == pytest.approx(0.02 * (1 + 0.2) / 2)
    assert half.momentum == 0.937
    assert schedule.rates(99).weights == pytest.approx(0.02 * 0.2, rel=0.01)
    rising = schedule.rates(5)
    assert rising.momentum == pytest.approx((0.8 + 0.937) / 2)
    full = 0.02 * (1 - 0.8 * (1 - np.cos(np.pi * 0.05)) / 2)
    assert rising.weights == pytest.approx(full / 2)
    assert rising.biases == pytest.approx((0.1 + full) / 2)


def test_the_warm_up_is_three_epochs_and_at_most_a_tenth():
    assert _schedule(epochs=300).warmup_steps == 30
    assert _schedule(epochs=10).warmup_steps == 10
    assert _schedule(epochs=300, warmup_images=0).rates(0).weights == pytest.approx(0.01)


def test_the_lite_rate_is_the_published_one():
    assert _schedule(epochs=1, lite=True, warmup_images=0).rates(0).weights == pytest.approx(0.0032)


def test_sizes_by_phase_and_the_end_of_mosaics():
    schedule = _schedule(images=1000, sizes=[[0.7, 192], [0.3, 320]], close_mosaic=0.1)
    assert [schedule.size_at(step) for step in (0, 69, 70, 99)] == [192, 192, 320, 320]
    assert [schedule.mosaic_at(step) for step in (0, 89, 90, 99)] == [True, True, False, False]


def test_sigmas_shrink_to_the_published_ones():
    schedule = _schedule(images=1000, widening=16, widening_share=0.5)
    assert [schedule.widths_at(step) for step in (0, 25, 50, 99)] == [(16,), (pytest.approx(4),), (1,), (1,)]
    assert _schedule(images=1000).widths_at(0) == (1,)


def test_a_ladder_of_sigmas_loses_its_wide_rungs():
    schedule = _schedule(images=1000, widening=12, widening_kind="ladder", widening_share=0.8)
    assert schedule.widths_at(0) == (1, 2, 4, 8, 12)
    assert schedule.widths_at(40) == (1, 2, pytest.approx(12**0.5))
    assert schedule.widths_at(80) == schedule.widths_at(99) == (1,)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_other_optimizers_warm_up_at_their_own_momentum(optimizer):
    rates = _schedule(images=1000, warmup_images=100, optimizer=optimizer, lr=0.002).rates(0)
    assert rates == (0, 0, 0.937)


def test_an_epoch_sees_each_image_once():
    schedule = _schedule(set_images=23, epochs=2)
    tasks = list(schedule.batches(_Images(23), 0))
    assert [task.epoch for task in tasks] == [0, 0, 1, 1]
    assert [task.first for task in tasks] == [0, 10, 0, 10]
    assert len(np.unique(np.concatenate([task.indices for task in tasks[:2]]))) == 20


def test_processes_share_what_one_would_take():
    fields = {"set_images": 50, "epochs": 2}
    whole = [task.indices for task in _schedule(batch=20, accumulate=1, **fields).batches(_Images(50), 0)]
    shares = [
        [task.indices for task in _schedule(processes=2, batch=10, **fields).batches(_Images(50), rank)]
        for rank in (0, 1)
    ]
    for one, first, second in zip(whole, *shares, strict=True):
        assert np.array_equal(one, np.concatenate([first, second]))


def test_a_run_goes_on_with_the_batches_that_are_left():
    schedule = _schedule(epochs=3, accumulate=2)
    every = list(schedule.batches(_Images(100), 0))
    rest = list(schedule.batches(_Images(100), 0, start=4))
    assert len(rest) == len(every) - 8
    for one, other in zip(rest, every[8:], strict=True):
        assert np.array_equal(one.indices, other.indices)
        assert one[1:] == other[1:]
