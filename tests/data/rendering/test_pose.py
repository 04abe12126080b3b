from __future__ import annotations

import pytest

from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.pose import JOINT_LIMITS, POSE_KINDS, Arm, Leg, Pose, draw_pose, within_limits


def angles(pose):
    yield from ((name, getattr(pose, name)) for name in JOINT_LIMITS if hasattr(pose, name))
    for arm in (pose.left_arm, pose.right_arm):
        yield from vars(arm).items()
    for leg in (pose.left_leg, pose.right_leg):
        for name, value in vars(leg).items():
            yield (name if name in JOINT_LIMITS and name in ("knee", "ankle") else f"leg {name}"), value


@pytest.mark.parametrize("kind", POSE_KINDS)
def test_every_pose_is_within_the_limits_of_the_joints(kind):
    for seed in range(60):
        pose = draw_pose(Draws(seed), kind)
        assert pose.kind == kind
        for name, value in angles(pose):
            lo, hi = JOINT_LIMITS[name]
            assert lo <= value <= hi, (name, value)


def test_every_limit_is_enforced():
    wild = Pose(
        "wild", 10, 20, *[999.0] * 6, Arm(*[999.0] * 4), Arm(*[-999.0] * 4), Leg(*[999.0] * 5), Leg(*[-999.0] * 5)
    )
    held = within_limits(wild)
    assert (held.pitch, held.roll) == (10, 20)
    assert held.left_arm.elbow == JOINT_LIMITS["elbow"][1]
    assert held.right_leg.knee == JOINT_LIMITS["knee"][0] == 0
    for name, value in angles(held):
        assert value in JOINT_LIMITS[name]


def test_all_kinds_are_drawn_and_standing_most_often():
    kinds = [draw_pose(Draws(1, seed)).kind for seed in range(600)]
    assert set(kinds) == set(POSE_KINDS)
    assert max(set(kinds), key=kinds.count) == "standing"


def test_people_who_sit_have_bent_hips_and_knees():
    for seed in range(30):
        pose = draw_pose(Draws(seed), "sitting")
        assert min(pose.left_leg.flexion, pose.right_leg.flexion) > 55
        assert min(pose.left_leg.knee, pose.right_leg.knee) > 50
