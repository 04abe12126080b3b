from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.figure import GRID, keypoints_of, owner_of, paint_person, person_extent
from qtoolkit.data.rendering.flesh import Label
from qtoolkit.data.rendering.pose import draw_pose
from qtoolkit.data.rendering.shading import Light

LIGHT = Light((-0.7, -0.7), 0.8)


def painted(*people, size=200):
    image, owner = np.full((size, size, 3), 128, np.uint8), np.zeros((size, size), np.uint8)
    for index, person in enumerate(people):
        paint_person(image, owner, index, person, LIGHT, Draws(1))
    return image, owner


@pytest.mark.parametrize("yaw", [0, 60, 90, 180, -120])
@pytest.mark.parametrize("height_px", [60.0, 160.0, 190.0])
def test_every_keypoint_of_a_lone_standing_person_lies_on_its_body(somebody, yaw, height_px):
    person = somebody(yaw=yaw, height_px=height_px)
    _, owner = painted(person)
    points, _ = keypoints_of(person)
    for x, y in points:
        # Ears and the tip of the nose stand out; at 60 px they are half a pixel.
        assert owner[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].any()


def test_left_and_right_of_a_person_who_faces_the_camera(somebody):
    person = somebody()
    _, owner = painted(person)
    points, _ = keypoints_of(person)
    for left in range(1, 17, 2):
        assert points[left, 0] > points[left + 1, 0]
    left_arm = np.nonzero(owner == owner_of(0, Label.LEFT_FOREARM))[1]
    right_arm = np.nonzero(owner == owner_of(0, Label.RIGHT_FOREARM))[1]
    assert left_arm.min() > right_arm.max()


def test_from_behind_left_is_left(somebody):
    points, _ = keypoints_of(somebody(yaw=180.0))
    for left in range(5, 17, 2):
        assert points[left, 0] < points[left + 1, 0]


def test_the_image_changes_where_the_owner_is_and_hardly_elsewhere(somebody):
    image, owner = painted(somebody())
    changed = (image != 128).any(axis=2)
    assert (changed & (owner > 0)).sum() > 0.97 * (owner > 0).sum()
    # Half covered pixels of the rim have a colour of their own, and may have no owner.
    assert (changed & (owner == 0)).sum() < 0.12 * (owner > 0).sum()


def test_who_is_painted_later_covers(somebody):
    _, alone = painted(somebody())
    _, both = painted(somebody(), somebody(origin=(110.0, 100.0)))
    first = (both > 0) & (both < Label.COUNT)
    assert first.sum() < 0.7 * (alone > 0).sum()
    assert ((both > owner_of(1, 0)) & (both < owner_of(2, 0))).sum() == pytest.approx((alone > 0).sum(), rel=0.02)


def test_light_from_the_left_makes_the_left_brighter(somebody):
    person = somebody(height_px=190.0)
    image, owner = painted(person)
    thigh = owner == owner_of(0, Label.LEFT_THIGH)
    rows, columns = np.nonzero(thigh)
    row = int(np.median(rows))
    across = columns[rows == row]
    grey = image[row].astype(int).sum(axis=1)
    third = max(1, len(across) // 3)
    assert grey[across[:third]].mean() > grey[across[-third:]].mean()


@pytest.mark.parametrize("seed", range(12))
def test_the_extent_holds_the_whole_body(somebody, seed):
    person = somebody(yaw=37.0 * seed, pose=draw_pose(Draws(seed)), height_px=90.0)
    _, owner = painted(person)
    rows, columns = np.nonzero(owner)
    left, top, right, bottom = (90.0 * value for value in person_extent(person.body, person.shape))
    x, y = person.origin
    assert x + left - 3 <= columns.min() and columns.max() <= x + right + 3
    assert y + top - 3 <= rows.min() and rows.max() <= y + bottom + 3


def test_a_person_outside_the_image_changes_nothing(somebody):
    image, owner = painted(somebody(origin=(-400.0, 100.0)))
    assert (image == 128).all() and not owner.any()


def test_coordinates_are_on_the_grid(somebody):
    points, _ = keypoints_of(somebody(yaw=33.3, height_px=123.4, origin=(71.7, 99.1)))
    assert (points * GRID == np.rint(points * GRID)).all()
