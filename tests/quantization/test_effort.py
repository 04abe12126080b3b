from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from qtoolkit.backends.targets import find_target
from qtoolkit.quantization.effort import quantizer_of
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.run import Run


@pytest.fixture
def made(pose, calibrated):
    def make(effort: str) -> Quantizer:
        recipe = SimpleNamespace(ranges="mse", effort=effort)
        run = SimpleNamespace(model=pose, target=find_target("ort-cpu"), recipe=recipe)
        return quantizer_of(cast(Run, cast(Any, run)), calibrated(pose), {"x": np.zeros(3)})

    return make


def test_fast_is_what_there_was_before(made):
    quantizer = made("fast")
    assert (quantizer.pairs_silu, quantizer.tolerance) == (False, 1.0)
    assert list(quantizer.means) == ["x"]


def test_balanced_searches_pairs_and_counts_energetic_images(made):
    quantizer = made("balanced")
    assert (quantizer.pairs_silu, quantizer.tolerance) == (True, 4.0)


def test_stages_that_follow_tell_efforts_apart(made):
    assert made("fast").statistics.key != made("balanced").statistics.key
