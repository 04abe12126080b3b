from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.rendering.background import PLACES, draw_background
from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.props import DISTRACTORS, OCCLUDERS, Brush


@pytest.mark.parametrize("place", [place for place, _ in PLACES], ids=lambda place: place.__name__)
@pytest.mark.parametrize("size_wh", [(96, 64), (64, 96)])
def test_every_place_fills_the_whole_image(place, size_wh):
    for seed in range(4):
        painted = []
        for fill in (0, 255):
            image = np.full((size_wh[1], size_wh[0], 3), fill, np.uint8)
            place(Brush(image), Draws(seed), size_wh[1] // 2)
            painted.append(image)
        assert (painted[0] == painted[1]).all(), "a pixel was left as it was"


def test_the_horizon_may_lie_outside():
    for horizon in (-500, 1000):
        assert draw_background(Draws(1), (90, 60), horizon).shape == (60, 90, 3)


@pytest.mark.parametrize(
    "prop", sorted({prop for prop, _ in (*OCCLUDERS, *DISTRACTORS)}, key=lambda prop: prop.__name__),
    ids=lambda prop: prop.__name__,
)  # fmt: skip
def test_every_thing_takes_the_pixels_it_covers(prop):
    for seed in range(3):
        image, owner = np.full((160, 160, 3), 1, np.uint8), np.full((160, 160), 9, np.uint8)
        prop(Brush(image, owner), Draws(seed), (80.0, 130.0), 100.0)
        changed = (image != 1).any(axis=2)
        assert changed.any()
        assert (owner[changed] == 0).all()
        assert (owner[~changed] == 9).mean() > 0.99


def test_a_polygon_covers_exactly_its_pixels():
    image, owner = np.zeros((20, 20, 3), np.uint8), np.ones((20, 20), np.uint8)
    Brush(image, owner).polygon([(4.5, 6.5), (9.5, 6.5), (9.5, 11.5), (4.5, 11.5)], (1, 2, 3))
    rows, columns = np.nonzero(owner == 0)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 11, 4, 9)
    assert (image[6:12, 4:10] == (1, 2, 3)).all()
