from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.images import decode_image
from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.scene import MAX_PEOPLE, SceneOptions, draw_scene


@pytest.mark.parametrize("index", range(20))
def test_labels_fit_the_image_and_each_other(index):
    scene = draw_scene(Draws(3, index), 160, SceneOptions())
    width, height = scene.size_wh
    assert max(scene.size_wh) == 160
    assert decode_image(scene.jpeg, "it").shape == (height, width, 3)
    assert len(scene.people) <= MAX_PEOPLE
    for person in scene.people:
        left, top, wide, high = person.box_xywh
        assert left >= 0 and top >= 0 and left + wide <= width and top + high <= height
        assert 0 < person.area <= wide * high
        x, y, visibility = person.keypoints.T
        assert set(visibility) <= {0.0, 1.0, 2.0}
        assert ((x >= 0) & (x < width) & (y >= 0) & (y < height)).all()
        assert (person.keypoints[visibility == 0] == 0).all()
        seen = visibility == 2  # what is seen lies in the box of what is seen
        assert (x[seen] >= left).all() and (x[seen] <= left + wide).all()
        assert (y[seen] >= top).all() and (y[seen] <= top + high).all()


def test_the_number_of_people_follows_the_options():
    alone = SceneOptions(people=((1, 1.0),), occluders=0.0)
    crowd = SceneOptions(people=((9, 0.0), (12, 1.0)), heights=((0.3, 0.5, 1.0),), occluders=0.0)
    assert all(len(draw_scene(Draws(1, index), 96, alone).people) <= 1 for index in range(10))
    assert np.mean([len(draw_scene(Draws(1, index), 96, crowd).people) for index in range(6)]) > 6


def test_statures_follow_the_options():
    tall = SceneOptions(people=((1, 1.0),), heights=((0.8, 0.81, 1.0),), aspects=(1.0,), occluders=0.0)
    low = SceneOptions(people=((1, 1.0),), heights=((0.2, 0.21, 1.0),), aspects=(1.0,), occluders=0.0)
    heights = [
        np.median([max(p.box_xywh[3] for p in draw_scene(Draws(2, index), 200, each).people) for index in range(12)])
        for each in (tall, low)
    ]
    assert heights[0] > 3 * heights[1]


def test_everything_scales_with_the_size():
    """The same draws give the same scene at any size, but for the texture of what is drawn."""
    options = SceneOptions(people=((2, 1.0),), aspects=(1.0,), occluders=0.0, distractors=0, heights=((0.5, 0.8, 1.0),))
    small, large = (draw_scene(Draws(5), size, options).people for size in (160, 320))
    assert len(small) == len(large) == 2
    for one, two in zip(small, large, strict=True):
        assert np.array(two.box_xywh) == pytest.approx(2 * np.array(one.box_xywh), abs=4)
        assert two.area == pytest.approx(4 * one.area, rel=0.1)
