from __future__ import annotations

from dataclasses import astuple

import pytest

from qtoolkit.data.rendering.body import ADULT, TODDLER, draw_shape
from qtoolkit.data.rendering.draws import Draws


@pytest.mark.parametrize("shape", [ADULT, TODDLER], ids=["adult", "toddler"])
def test_parts_add_up_to_the_stature(shape):
    assert shape.standing_height == pytest.approx(1.0, abs=1e-9)


def test_a_toddler_has_a_larger_head_and_shorter_legs():
    assert TODDLER.head_half_height > 1.5 * ADULT.head_half_height
    assert TODDLER.thigh + TODDLER.shank < 0.85 * (ADULT.thigh + ADULT.shank)


def test_drawn_bodies_are_plausible():
    shapes = [draw_shape(Draws(seed)) for seed in range(300)]
    for shape in shapes:
        assert min(astuple(shape)) > 0
        assert 0.9 < shape.standing_height < 1.1
        assert 0.8 < shape.forearm / shape.upper_arm * ADULT.upper_arm / ADULT.forearm < 1.25
        assert 0.7 < shape.girth < 1.6
        assert shape.hip_half < shape.shoulder_half
    children = sum(shape.head_half_height > 1.12 * ADULT.head_half_height for shape in shapes)
    assert 0.05 < children / len(shapes) < 0.25
