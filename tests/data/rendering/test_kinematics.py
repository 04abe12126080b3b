from __future__ import annotations

import math

import numpy as np
import pytest

from qtoolkit.data.rendering.body import ADULT, draw_shape
from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.kinematics import pose_body
from qtoolkit.data.rendering.pose import Arm, Leg, Pose, draw_pose

STRAIGHT = Pose(
    "straight", spine_flexion=0, left_arm=Arm(0, 0, 0, 0), right_arm=Arm(0, 0, 0, 0), left_leg=Leg(0, 0, 0, 0, 0),
    right_leg=Leg(0, 0, 0, 0, 0),
)  # fmt: skip


@pytest.mark.parametrize("seed", range(25))
def test_bones_keep_their_length_in_every_pose_and_view(seed):
    draws = Draws(9, seed)
    shape, pose = draw_shape(draws), draw_pose(draws)
    body = pose_body(shape, pose, draws.between(-180, 180), draws.between(-20, 40))
    for side in (0, 1):
        assert math.dist(body.shoulders[side], body.elbows[side]) == pytest.approx(shape.upper_arm)
        assert math.dist(body.elbows[side], body.wrists[side]) == pytest.approx(shape.forearm)
        assert math.dist(body.hips[side], body.knees[side]) == pytest.approx(shape.thigh)
        assert math.dist(body.knees[side], body.ankles[side]) == pytest.approx(shape.shank)
    assert math.dist(*body.hips) == pytest.approx(2 * shape.hip_half)
    assert math.dist(body.pelvis, body.waist) == pytest.approx(0.32 * shape.torso)
    for frame in (body.pelvis_frame, body.chest_frame, body.head_frame, *body.shank_frames):
        rotation = np.array(frame).reshape(3, 3)
        assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-9)
        assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_a_person_who_faces_the_camera_has_the_left_at_larger_x():
    body = pose_body(ADULT, STRAIGHT, 0.0)
    for pair in (body.shoulders, body.elbows, body.wrists, body.hips, body.knees, body.ankles):
        assert pair[0][0] > pair[1][0]
    assert body.head_frame[8] == pytest.approx(1.0)  # forward is towards the camera
    behind = pose_body(ADULT, STRAIGHT, 180.0)
    assert behind.shoulders[0][0] < behind.shoulders[1][0]
    assert behind.head_frame[8] == pytest.approx(-1.0)


def test_yaw_turns_to_the_own_left_and_the_camera_looks_down():
    body = pose_body(ADULT, STRAIGHT, 90.0)
    assert body.chest_frame[2] == pytest.approx(1.0)  # looks to the right of the image
    assert body.shoulders[0][2] < body.shoulders[1][2]  # its right shoulder is the near one
    above = pose_body(ADULT, STRAIGHT, 0.0, camera_pitch=30.0)
    assert above.head[2] > above.pelvis[2] > above.ankles[0][2]


def test_limbs_bend_the_way_limbs_bend():
    def with_left(arm=None, leg=None):
        from dataclasses import replace

        return pose_body(
            ADULT, replace(STRAIGHT, left_arm=arm or Arm(0, 0, 0, 0), left_leg=leg or Leg(0, 0, 0, 0, 0)), 0.0
        )

    body = with_left(arm=Arm(90, 0, 0, 0))
    assert body.wrists[0][2] > 0.3 and body.wrists[0][1] == pytest.approx(body.shoulders[0][1], abs=0.02)
    body = with_left(arm=Arm(0, 90, 0, 0))
    assert body.wrists[0][0] > body.shoulders[0][0] + 0.3
    body = with_left(arm=Arm(0, 0, 0, 90))
    assert body.wrists[0][2] == pytest.approx(ADULT.forearm)
    body = with_left(arm=Arm(0, 0, 90, 90))  # across the belly: towards its right
    assert body.wrists[0][0] < body.elbows[0][0] - 0.1
    body = with_left(leg=Leg(0, 0, 0, 90, 0))
    assert body.ankles[0][2] == pytest.approx(-ADULT.shank)
    body = with_left(leg=Leg(90, 0, 0, 90, 0))
    assert body.knees[0][2] == pytest.approx(ADULT.thigh)
    assert body.toes[0][2] > body.heels[0][2]
