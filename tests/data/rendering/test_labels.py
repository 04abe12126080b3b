from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.figure import keypoints_of, paint_person
from qtoolkit.data.rendering.labels import label_people
from qtoolkit.data.rendering.pose import Arm, Leg, Pose
from qtoolkit.data.rendering.props import Brush
from qtoolkit.data.rendering.shading import Light

SPREAD = Pose("spread", left_arm=Arm(0, 60, 0, 0), right_arm=Arm(0, 60, 0, 0), left_leg=Leg(0, 15, 0, 0),
              right_leg=Leg(0, 15, 0, 0))  # fmt: skip
NOSE, LEFT_ELBOW, LEFT_WRIST, RIGHT_WRIST, LEFT_KNEE, LEFT_ANKLE, RIGHT_ANKLE = 0, 7, 9, 10, 13, 15, 16


def scene(*people, size=200):
    image, owner = np.full((size, size, 3), 128, np.uint8), np.zeros((size, size), np.uint8)
    for index, person in enumerate(people):
        paint_person(image, owner, index, person, Light((0.0, -1.0), 0.5), Draws(1))
    return image, owner


def hide(image, owner, person, keypoint, half):
    x, y = keypoints_of(person)[0][keypoint]
    corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    Brush(image, owner).polygon(corners, (0, 0, 255))


def labels(owner, *people, least_area=1, least_labelled=1):
    return label_people(people, owner, least_area, least_labelled)


def test_all_of_a_person_who_faces_the_camera_with_spread_arms_is_seen(somebody):
    person = somebody(pose=SPREAD)
    _, owner = scene(person)
    (label,) = labels(owner, person)
    assert (label.keypoints[:, 2] == 2).all()
    assert label.area == (owner > 0).sum()
    rows, columns = np.nonzero(owner)
    left, top, width, height = label.box_xywh
    assert (left, top, left + width - 1, top + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())


def test_a_joint_behind_a_thing_is_hidden_and_its_pixels_are_lost(somebody):
    person = somebody(pose=SPREAD)
    image, owner = scene(person)
    (before,) = labels(owner, person)
    hide(image, owner, person, LEFT_WRIST, 4)
    (label,) = labels(owner, person)
    expected = np.full(17, 2.0)
    expected[LEFT_WRIST] = 1
    assert (label.keypoints[:, 2] == expected).all()
    assert (label.keypoints[:, :2] == before.keypoints[:, :2]).all()
    assert before.area - 81 <= label.area < before.area


def test_a_joint_behind_another_person_is_hidden(somebody):
    far = somebody(pose=SPREAD)
    near = somebody(origin=(100.0 + 0.28 * 160, 100.0), seed=5)
    _, owner = scene(far, near)
    first, second = labels(owner, far, near)
    x, y = keypoints_of(far)[0][LEFT_ELBOW]
    assert owner[int(y), int(x)] >= 13, "the near person stands over the elbow of the far one"
    assert first.keypoints[LEFT_ELBOW, 2] == 1
    assert first.keypoints[RIGHT_WRIST, 2] == 2
    assert (second.keypoints[5:, 2] > 0).all()


def test_a_joint_behind_the_own_body_is_hidden(somebody):
    person = somebody(yaw=90.0, pose=Pose("hands behind", left_arm=Arm(0, 0, 0, 0), right_arm=Arm(0, 0, 0, 0)))
    _, owner = scene(person)
    (label,) = labels(owner, person)
    assert label.keypoints[6, 2] == 2  # the right side is the near one
    assert label.keypoints[5, 2] == label.keypoints[11, 2] == label.keypoints[LEFT_WRIST, 2] == 1
    assert label.keypoints[1, 2] == label.keypoints[3, 2] == 1  # the eye and the ear of the far side
    assert label.keypoints[2, 2] == label.keypoints[4, 2] == 2


def test_a_joint_outside_the_image_is_absent(somebody):
    person = somebody(pose=SPREAD, origin=(100.0, 170.0))
    _, owner = scene(person)
    (label,) = labels(owner, person)
    assert (label.keypoints[[LEFT_KNEE, LEFT_ANKLE, RIGHT_ANKLE]] == 0).all()
    assert label.keypoints[NOSE, 2] == 2
    assert label.box_xywh[1] + label.box_xywh[3] == 200


def test_what_is_hidden_with_all_around_it_is_not_guessed(somebody):
    person = somebody(pose=SPREAD)
    image, owner = scene(person)
    for keypoint in (LEFT_KNEE, LEFT_ANKLE):
        hide(image, owner, person, keypoint, 12)
    (label,) = labels(owner, person)
    assert label.keypoints[LEFT_KNEE, 2] == 1  # next to the hip, which is seen
    assert (label.keypoints[LEFT_ANKLE] == 0).all()


def test_who_is_too_small_has_a_box_and_no_keypoints_and_who_is_hardly_seen_nothing(somebody):
    small, gone = somebody(height_px=30.0, origin=(40.0, 100.0)), somebody(height_px=30.0, origin=(150.0, 100.0))
    image, owner = scene(small, gone)
    hide(image, owner, gone, 11, 20)
    found = labels(owner, small, gone, least_area=40, least_labelled=10_000)
    assert len(found) == 1
    assert (found[0].keypoints == 0).all()
    assert found[0].box_xywh[0] < 45


@pytest.mark.parametrize("keypoint", [5, 6, 11, 12])
def test_hips_and_shoulders_are_seen_through_clothes_from_both_sides(somebody, keypoint):
    for yaw in (0.0, 180.0):
        person = somebody(yaw=yaw, pose=SPREAD)
        _, owner = scene(person)
        assert labels(owner, person)[0].keypoints[keypoint, 2] == 2
