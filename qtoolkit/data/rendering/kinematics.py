"""From joint angles to places in space: forward kinematics of a body, seen from the camera.

View frame: x to the right of the image, y up, z towards the camera, in units of the stature. A body with yaw 0 faces
the camera, so that its own left is at larger x. Rotations are tuples of nine floats, row by row: for matrices this
small Python is faster than numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qtoolkit.data.rendering.body import BodyShape
from qtoolkit.data.rendering.pose import Arm, Leg, Pose

__all__ = ["Frame", "PosedBody", "Vector", "blend", "moved", "pose_body"]

Vector = tuple[float, float, float]
Frame = tuple[float, float, float, float, float, float, float, float, float]
"""A rotation; its columns are the directions left, up and forward of a part of the body, in the view frame."""


@dataclass(frozen=True)
class PosedBody:
    """Joints, in the order left, right where there are two, and the frames of the parts that need one."""

    pelvis: Vector
    waist: Vector
    chest: Vector
    shoulder_middle: Vector
    head: Vector
    shoulders: tuple[Vector, Vector]
    elbows: tuple[Vector, Vector]
    wrists: tuple[Vector, Vector]
    finger_tips: tuple[Vector, Vector]
    hips: tuple[Vector, Vector]
    knees: tuple[Vector, Vector]
    ankles: tuple[Vector, Vector]
    heels: tuple[Vector, Vector]
    toes: tuple[Vector, Vector]
    pelvis_frame: Frame
    waist_frame: Frame
    chest_frame: Frame
    head_frame: Frame
    shank_frames: tuple[Frame, Frame]


def pose_body(shape: BodyShape, pose: Pose, yaw: float, camera_pitch: float = 0.0) -> PosedBody:
    """Place every joint. ``yaw`` in degrees turns the body to its own left (0: faces the camera, 180: its back);
    ``camera_pitch`` > 0 looks down on it."""
    tilt = _turned(_about_x(camera_pitch), _about_y(yaw))
    pelvis_frame = _turned(tilt, _about_z(-pose.roll), _about_x(pose.pitch))
    half = [0.5 * each for each in (pose.spine_flexion, pose.spine_side, pose.spine_twist)]
    bend = _turned(_about_y(half[2]), _about_z(-half[1]), _about_x(half[0]))
    waist_frame = _turned(pelvis_frame, bend)
    chest_frame = _turned(waist_frame, bend)
    head_frame = _turned(chest_frame, _about_y(pose.head_yaw), _about_z(-pose.head_roll), _about_x(pose.head_pitch))
    pelvis = (0.0, 0.0, 0.0)
    waist = moved(pelvis, pelvis_frame, 0.0, 0.32 * shape.torso, 0.0)
    chest = moved(waist, waist_frame, 0.0, 0.33 * shape.torso, 0.0)
    middle = moved(chest, chest_frame, 0.0, 0.35 * shape.torso, 0.0)
    throat = moved(middle, chest_frame, 0.0, 0.6 * shape.neck, 0.006)
    head = moved(throat, head_frame, 0.0, 0.4 * shape.neck + shape.head_half_height, 0.012)
    arms = [_arm(shape, chest_frame, middle, arm, side) for arm, side in ((pose.left_arm, 1), (pose.right_arm, -1))]
    legs = [_leg(shape, pelvis_frame, pelvis, leg, side) for leg, side in ((pose.left_leg, 1), (pose.right_leg, -1))]
    return PosedBody(
        pelvis=pelvis,
        waist=waist,
        chest=chest,
        shoulder_middle=middle,
        head=head,
        shoulders=(arms[0][0], arms[1][0]),
        elbows=(arms[0][1], arms[1][1]),
        wrists=(arms[0][2], arms[1][2]),
        finger_tips=(arms[0][3], arms[1][3]),
        hips=(legs[0][0], legs[1][0]),
        knees=(legs[0][1], legs[1][1]),
        ankles=(legs[0][2], legs[1][2]),
        heels=(legs[0][3], legs[1][3]),
        toes=(legs[0][4], legs[1][4]),
        pelvis_frame=pelvis_frame,
        waist_frame=waist_frame,
        chest_frame=chest_frame,
        head_frame=head_frame,
        shank_frames=(legs[0][5], legs[1][5]),
    )


def _arm(shape: BodyShape, chest: Frame, middle: Vector, arm: Arm, side: int) -> tuple[Vector, Vector, Vector, Vector]:
    # The shoulder blade turns along once the arm is above the horizontal, and carries the joint up and inward.
    raised = max(0.0, max(arm.abduction, arm.flexion) - 70.0) / 100.0
    shoulder = moved(middle, chest, side * shape.shoulder_half * (1.0 - 0.16 * raised), 0.028 * raised, 0.0)
    upper = _turned(chest, _about_z(side * arm.abduction), _about_x(-arm.flexion), _about_y(-side * arm.rotation))
    fore = _turned(upper, _about_x(-arm.elbow))
    elbow = moved(shoulder, upper, 0.0, -shape.upper_arm, 0.0)
    wrist = moved(elbow, fore, 0.0, -shape.forearm, 0.0)
    return shoulder, elbow, wrist, moved(wrist, fore, 0.0, -0.92 * shape.hand, 0.12 * shape.hand)


def _leg(
    shape: BodyShape, pelvis_frame: Frame, pelvis: Vector, leg: Leg, side: int
) -> tuple[Vector, Vector, Vector, Vector, Vector, Frame]:
    hip = moved(pelvis, pelvis_frame, side * shape.hip_half, 0.0, 0.0)
    upper = _turned(
        pelvis_frame, _about_z(side * leg.abduction), _about_x(-leg.flexion), _about_y(-side * leg.rotation)
    )
    lower = _turned(upper, _about_x(leg.knee))
    foot = _turned(lower, _about_x(leg.ankle))
    knee = moved(hip, upper, 0.0, -shape.thigh, 0.0)
    ankle = moved(knee, lower, 0.0, -shape.shank, 0.0)
    sole = -0.55 * shape.ankle_height
    heel = moved(ankle, foot, 0.0, sole, -0.24 * shape.foot)
    return hip, knee, ankle, heel, moved(ankle, foot, 0.0, sole, 0.68 * shape.foot), lower


def moved(start: Vector, frame: Frame, left: float, up: float, forward: float) -> Vector:
    """The point ``left``, ``up`` and ``forward`` of ``start``, as ``frame`` has these directions."""
    return (
        start[0] + frame[0] * left + frame[1] * up + frame[2] * forward,
        start[1] + frame[3] * left + frame[4] * up + frame[5] * forward,
        start[2] + frame[6] * left + frame[7] * up + frame[8] * forward,
    )


def blend(first: Vector, second: Vector, share: float) -> Vector:
    """The point on the way from ``first`` (share 0) to ``second`` (share 1)."""
    rest = 1.0 - share
    return (
        rest * first[0] + share * second[0],
        rest * first[1] + share * second[1],
        rest * first[2] + share * second[2],
    )


def _about_x(degrees: float) -> Frame:
    """Tips up forward: up turns to forward."""
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    return (1.0, 0.0, 0.0, 0.0, c, -s, 0.0, s, c)


def _about_y(degrees: float) -> Frame:
    """Turns forward to the left."""
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    return (c, 0.0, s, 0.0, 1.0, 0.0, -s, 0.0, c)


def _about_z(degrees: float) -> Frame:
    """Turns down to the left."""
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    return (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0)


def _turned(first: Frame, *others: Frame) -> Frame:
    for b in others:
        a = first
        first = (
            a[0] * b[0] + a[1] * b[3] + a[2] * b[6],
            a[0] * b[1] + a[1] * b[4] + a[2] * b[7],
            a[0] * b[2] + a[1] * b[5] + a[2] * b[8],
            a[3] * b[0] + a[4] * b[3] + a[5] * b[6],
            a[3] * b[1] + a[4] * b[4] + a[5] * b[7],
            a[3] * b[2] + a[4] * b[5] + a[5] * b[8],
            a[6] * b[0] + a[7] * b[3] + a[8] * b[6],
            a[6] * b[1] + a[7] * b[4] + a[8] * b[7],
            a[6] * b[2] + a[7] * b[5] + a[8] * b[8],
        )
    return first
