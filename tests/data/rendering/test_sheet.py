from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.rendering.sheet import contact_sheet, draw_labels


def test_labels_are_drawn_on_a_copy():
    image = np.zeros((60, 60, 3), np.uint8)
    keypoints = np.zeros((1, 17, 3))
    keypoints[0, 5] = 40, 20, 2  # the left shoulder, seen
    keypoints[0, 6] = 20, 20, 1  # the right one, hidden
    drawn = draw_labels(image, np.array([[5.0, 5.0, 50.0, 50.0]]), keypoints)
    assert not image.any()
    assert drawn[5, 30].any() and drawn[54, 30].any() and not drawn[30, 30].any()
    assert drawn[20, 40, 1] > 200 and drawn[20, 40, 2] < 100  # green
    assert drawn[20, 20, 2] > 200 and drawn[20, 20, 1] < 100  # red


def test_nobody_is_drawn_as_nobody():
    image = np.full((8, 9, 3), 7, np.uint8)
    assert (draw_labels(image, np.zeros((0, 4)), np.zeros((0, 17, 3))) == image).all()


@pytest.mark.parametrize("count", [1, 5, 24])
def test_a_sheet_has_the_width_asked_for_and_shows_every_image(count):
    images = [np.full((30 + 7 * (k % 3), 40, 3), 1 + k, np.uint8) for k in range(count)]
    sheet = contact_sheet(images, 30, 160)
    assert sheet.shape[1] == 160
    assert {int(value) for value in np.unique(sheet)} == set(range(1, count + 1))
