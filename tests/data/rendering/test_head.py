from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.rendering.figure import keypoints_of
from qtoolkit.data.rendering.flesh import Label, paint_of
from qtoolkit.data.rendering.head import EAR, EYE, NOSE, HeadView, draw_head
from qtoolkit.data.rendering.outfit import Material

FRONT = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
BACK = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
LEFT_PROFILE = ((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0))  # looks to the right of the image


def view(directions):
    return HeadView((50.0, 50.0), directions, (20.0, 28.0, 24.0))


def materials(paints):
    return set((paints[paints > 0] & 15).tolist())


def drawn(directions, somebody):
    paints = np.zeros((100, 100), np.uint8)
    draw_head(paints, view(directions), somebody().outfit)
    return paints


def test_places_and_what_faces_the_camera():
    front = view(FRONT)
    assert front.at((0, 0, 0)) == (50.0, 50.0)
    assert front.at(EYE)[0] == pytest.approx(58.0)
    assert front.at(NOSE)[1] > 50.0  # below the centre
    assert front.facing((0, 0, 1)) == 1.0
    assert front.facing(EAR) == pytest.approx(0.0, abs=0.1)
    assert view(BACK).facing(EYE) < -0.5
    right_eye = (-EYE[0], EYE[1], EYE[2])
    assert view(LEFT_PROFILE).facing(right_eye) > 0.2 > -0.2 > view(LEFT_PROFILE).facing(EYE)


def test_a_face_has_eyes_and_a_mouth_and_the_back_of_a_head_has_not(somebody):
    face = materials(drawn(FRONT, somebody))
    assert {Material.SKIN, Material.HAIR, Material.EYE, Material.IRIS, Material.LIP} <= face
    back = materials(drawn(BACK, somebody))
    assert Material.HAIR in back
    assert not back & {Material.EYE, Material.IRIS, Material.LIP}


def test_a_profile_has_one_eye_on_the_side_it_looks_to(somebody):
    paints = drawn(LEFT_PROFILE, somebody)
    rows, columns = np.nonzero(paints == paint_of(Label.HEAD, Material.IRIS))
    assert len(rows) and columns.min() > 55


def test_keypoints_of_the_head_are_shown_by_the_head_or_not_at_all(somebody):
    _, front = keypoints_of(somebody(yaw=0.0))
    assert all(front[:3])
    _, back = keypoints_of(somebody(yaw=180.0))
    assert back[0] == back[1] == back[2] == ()
    assert back[3] == back[4] == (Label.HEAD,)
    _, side = keypoints_of(somebody(yaw=90.0))  # its right side is the near one
    assert side[1] == side[3] == ()
    assert side[2] == side[4] == (Label.HEAD,)
