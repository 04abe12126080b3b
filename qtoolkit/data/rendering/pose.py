"""What bodies do: joint angles of standing, walking, running, sitting … people, and how far joints can turn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qtoolkit.data.rendering.draws import Draws

__all__ = ["JOINT_LIMITS", "POSE_KINDS", "POSE_WEIGHTS", "Arm", "Leg", "Pose", "draw_pose", "within_limits"]


@dataclass(frozen=True)
class Arm:
    """Degrees; all 0: hanging down, palm to the thigh. Flexion lifts forward, abduction sideways; rotation turns the
    bend of the elbow from the front (0) to in front of the belly (positive)."""

    flexion: float = 5.0
    abduction: float = 8.0
    rotation: float = 10.0
    elbow: float = 12.0


@dataclass(frozen=True)
class Leg:
    """Degrees; all 0: straight down. Flexion lifts forward, abduction sideways, rotation turns the knee inward; the
    ankle points the toes down."""

    flexion: float = 2.0
    abduction: float = 4.0
    rotation: float = -5.0
    knee: float = 4.0
    ankle: float = 0.0


@dataclass(frozen=True)
class Pose:
    """Degrees. ``pitch`` tips the whole body forward, ``roll`` to its left; the spine and the head are relative to what
    carries them: flexion forward, side to the left, twist and yaw to the left."""

    kind: str
    pitch: float = 0.0
    roll: float = 0.0
    spine_flexion: float = 3.0
    spine_side: float = 0.0
    spine_twist: float = 0.0
    head_yaw: float = 0.0
    head_pitch: float = 0.0
    head_roll: float = 0.0
    left_arm: Arm = Arm()
    right_arm: Arm = Arm()
    left_leg: Leg = Leg()
    right_leg: Leg = Leg()


JOINT_LIMITS: dict[str, tuple[float, float]] = {
    "spine_flexion": (-22.0, 65.0),
    "spine_side": (-28.0, 28.0),
    "spine_twist": (-40.0, 40.0),
    "head_yaw": (-75.0, 75.0),
    "head_pitch": (-40.0, 45.0),
    "head_roll": (-30.0, 30.0),
    "flexion": (-50.0, 178.0),
    "abduction": (-25.0, 175.0),
    "rotation": (-70.0, 95.0),
    "elbow": (0.0, 150.0),
    "leg flexion": (-35.0, 125.0),
    "leg abduction": (-22.0, 65.0),
    "leg rotation": (-45.0, 40.0),
    "knee": (0.0, 148.0),
    "ankle": (-25.0, 50.0),
}
"""Lowest and highest angle in degrees, about the normal range of adults; ``leg …`` where an arm has the same name."""


def within_limits(pose: Pose) -> Pose:
    """The same pose, every joint moved into its limits; ``pitch`` and ``roll`` of the whole body have none."""
    return Pose(
        pose.kind,
        pose.pitch,
        pose.roll,
        _clamped("spine_flexion", pose.spine_flexion),
        _clamped("spine_side", pose.spine_side),
        _clamped("spine_twist", pose.spine_twist),
        _clamped("head_yaw", pose.head_yaw),
        _clamped("head_pitch", pose.head_pitch),
        _clamped("head_roll", pose.head_roll),
        _arm_within(pose.left_arm),
        _arm_within(pose.right_arm),
        _leg_within(pose.left_leg),
        _leg_within(pose.right_leg),
    )


def _arm_within(arm: Arm) -> Arm:
    return Arm(
        _clamped("flexion", arm.flexion),
        _clamped("abduction", arm.abduction),
        _clamped("rotation", arm.rotation),
        _clamped("elbow", arm.elbow),
    )


def _leg_within(leg: Leg) -> Leg:
    return Leg(
        _clamped("leg flexion", leg.flexion),
        _clamped("leg abduction", leg.abduction),
        _clamped("leg rotation", leg.rotation),
        _clamped("knee", leg.knee),
        _clamped("ankle", leg.ankle),
    )


def _clamped(key: str, value: float) -> float:
    lo, hi = JOINT_LIMITS[key]
    return lo if value < lo else hi if value > hi else float(value)


def draw_pose(draws: Draws, kind: str | None = None) -> Pose:
    """A pose of the given kind, one of ``POSE_KINDS``, or of one drawn by their weights; within the limits."""
    chosen = kind or draws.weighted(POSE_WEIGHTS)
    pose = POSE_KINDS[chosen](draws)
    looking = draws.around(0.0, 18.0)
    moved = replace(
        pose,
        spine_side=pose.spine_side + draws.around(0.0, 3.0),
        spine_twist=pose.spine_twist + draws.around(0.0, 6.0),
        head_yaw=pose.head_yaw + looking,
        head_pitch=pose.head_pitch + draws.around(3.0, 8.0),
        head_roll=pose.head_roll + draws.around(0.0, 5.0),
        left_arm=_shaken(draws, pose.left_arm),
        right_arm=_shaken(draws, pose.right_arm),
    )
    return within_limits(moved)


def _shaken(draws: Draws, arm: Arm) -> Arm:
    return Arm(
        arm.flexion + draws.around(0.0, 5.0),
        arm.abduction + draws.around(0.0, 4.0),
        arm.rotation + draws.around(0.0, 6.0),
        arm.elbow + draws.around(0.0, 6.0),
    )


# Lowest and highest flexion, abduction, rotation and elbow of what an arm does that has nothing to do, with weights.
_IDLE_ARMS: tuple[tuple[tuple[tuple[float, float], ...], float], ...] = (
    (((-14, 18), (4, 14), (0, 30), (5, 30)), 5.0),  # hangs
    (((-25, 0), (35, 55), (30, 60), (85, 115)), 1.0),  # hand on the hip
    (((20, 45), (0, 15), (50, 80), (80, 110)), 1.0),  # folded before the chest
    (((40, 75), (15, 50), (10, 40), (125, 145)), 0.7),  # a phone at the ear, a cup at the mouth
    (((15, 50), (0, 15), (0, 40), (60, 100)), 1.0),  # carries something
    (((0, 40), (80, 130), (-60, 0), (50, 110)), 0.6),  # waves
    (((60, 100), (0, 60), (0, 30), (0, 25)), 0.6),  # points
)


def _idle_arm(draws: Draws) -> Arm:
    return Arm(*(draws.between(lo, hi) for lo, hi in draws.weighted(_IDLE_ARMS)))


def _arms(draws: Draws) -> tuple[Arm, Arm]:
    left = _idle_arm(draws)
    return (left, left) if draws.chance(0.3) else (left, _idle_arm(draws))


def _standing(draws: Draws) -> Pose:
    left, right = _arms(draws)
    shift, bent = draws.around(0.0, 4.0), draws.between(0.0, 22.0) if draws.chance(0.4) else 3.0
    spread = draws.between(1.0, 13.0)
    legs = (Leg(2.0, spread + shift, -8.0, 3.0), Leg(2.0 + 0.6 * bent, spread - shift, -8.0, bent))
    return Pose("standing", roll=0.5 * shift, spine_side=-0.6 * shift, left_arm=left, right_arm=right,
                left_leg=legs[0], right_leg=legs[1])  # fmt: skip


def _stride(draws: Draws, kind: str, swing: float, lift: float, elbow: float, lean: float) -> Pose:
    """Legs and arms in opposite swing at some moment of a step."""
    phase = draws.between(0.0, 2.0 * math.pi)
    amplitude = swing * draws.between(0.7, 1.15)

    def leg(angle: float) -> Leg:
        # The knee bends most while its leg swings forward: a quarter of a step before the leg is in front.
        bend = lift * max(0.0, math.cos(angle)) + 6.0
        return Leg(amplitude * math.sin(angle) + 0.35 * bend, 3.0, -4.0, bend, 8.0 - 12.0 * math.sin(angle))

    def arm(angle: float) -> Arm:
        return Arm(0.9 * amplitude * math.sin(angle), draws.between(6, 16), 20.0, elbow + 18.0 * math.sin(angle))

    return Pose(
        kind,
        pitch=lean + draws.around(0.0, 2.0),
        spine_twist=-0.2 * amplitude * math.sin(phase),
        left_arm=arm(phase + math.pi),
        right_arm=arm(phase),
        left_leg=leg(phase),
        right_leg=leg(phase + math.pi),
    )


def _walking(draws: Draws) -> Pose:
    pose = _stride(draws, "walking", 26.0, 42.0, 20.0, 3.0)
    return replace(pose, left_arm=_idle_arm(draws)) if draws.chance(0.25) else pose


def _running(draws: Draws) -> Pose:
    return _stride(draws, "running", 46.0, 95.0, 88.0, 11.0)


def _sitting(draws: Draws) -> Pose:
    hips, spread = draws.between(75.0, 98.0), draws.between(2.0, 20.0)
    lean = draws.between(-14.0, 22.0)
    lap = Arm(draws.between(15, 45), draws.between(2, 15), draws.between(10, 40), draws.between(40, 80))
    left, right = (lap, lap) if draws.chance(0.5) else _arms(draws)
    legs = [
        Leg(hips + draws.around(0, 4), spread, draws.around(0, 6), draws.between(70, 100), draws.between(-8, 8))
        for _ in range(2)
    ]
    if draws.chance(0.2):  # one leg over the other
        legs[0] = Leg(hips + 14.0, -10.0, 0.0, draws.between(60, 85), 10.0)
    return Pose("sitting", pitch=-0.4 * lean, spine_flexion=max(0.0, lean), left_arm=left, right_arm=right,
                left_leg=legs[0], right_leg=legs[1])  # fmt: skip


def _arms_raised(draws: Draws) -> Pose:
    def arm() -> Arm:
        forward = draws.chance(0.5)
        high = draws.between(115, 172)
        return Arm(high if forward else 5.0, draws.between(0, 35) if forward else high, draws.around(0, 20),
                   draws.between(5, 70))  # fmt: skip

    base = _standing(draws)
    both = draws.chance(0.65)
    return replace(base, kind="arms raised", left_arm=arm(), right_arm=arm() if both else base.right_arm)


def _bending(draws: Draws) -> Pose:
    pitch = draws.between(22.0, 62.0)
    spine = draws.between(15.0, 45.0)
    reach = Arm(
        pitch + spine + draws.between(-30, 20), draws.between(0, 20), draws.between(0, 30), draws.between(5, 45)
    )
    bent = draws.between(5.0, 35.0)
    leg = Leg(pitch + 0.6 * bent, draws.between(2, 14), -6.0, bent)
    return Pose("bending", pitch=pitch, spine_flexion=spine, head_pitch=-0.3 * pitch, left_arm=reach,
                right_arm=reach if draws.chance(0.6) else _idle_arm(draws), left_leg=leg, right_leg=leg)  # fmt: skip


def _crouching(draws: Draws) -> Pose:
    lean = draws.between(5.0, 30.0)
    spread = draws.between(5.0, 28.0)
    knee = draws.between(115.0, 142.0)
    leg = Leg(draws.between(98, 118) + 0.3 * lean, spread, -12.0, knee, -15.0)
    other = Leg(draws.between(10, 25) + lean, 4.0, 0.0, draws.between(85, 105), 40.0) if draws.chance(0.35) else leg
    reach = Arm(draws.between(30, 70), draws.between(4, 25), draws.between(0, 40), draws.between(20, 90))
    return Pose("crouching", pitch=lean, spine_flexion=draws.between(8, 35), head_pitch=-lean, left_arm=reach,
                right_arm=reach if draws.chance(0.5) else _idle_arm(draws), left_leg=leg, right_leg=other)  # fmt: skip


def _sports(draws: Draws) -> Pose:
    """A kick, a throw or serve, a jump, a lunge, or everything stretched out; mirrored half of the time."""
    free = Arm(draws.between(-20, 40), draws.between(30, 95), 0.0, draws.between(5, 50))
    high = Arm(draws.between(90, 165), draws.between(5, 50), draws.between(-30, 20), draws.between(0, 80))
    ready = Leg(draws.between(15, 40), draws.between(5, 25), -8.0, draws.between(25, 60), -8.0)
    back = Leg(draws.between(-28, -5), draws.between(2, 15), 0.0, draws.between(5, 60), 25.0)
    kick = Leg(draws.between(50, 95), draws.between(0, 25), 0.0, draws.between(0, 35), 25.0)
    star = Leg(5.0, draws.between(22, 45), -5.0, draws.between(0, 15), 15.0)
    deep = Leg(draws.between(60, 85), 4.0, 0.0, draws.between(70, 95))
    arms, legs, pitch, twist = draws.pick(
        (
            ((free, free), (kick, Leg(4.0, 3.0, -8.0, 18.0)), draws.between(-18, 0), 12.0),
            ((high, free), (ready, back), draws.between(-8, 15), draws.between(-25, 25)),
            ((high, high), (star, star), draws.around(0, 6), 0.0),
            ((free, Arm(60.0, 10.0, 20.0, 70.0)), (deep, back), draws.between(5, 25), 10.0),
            ((high, high), (ready, back), draws.between(-12, 10), 0.0),
        )
    )
    order = 1 if draws.chance(0.5) else -1
    left, right = arms[::order]
    left_leg, right_leg = legs[::order]
    return Pose("sports", pitch=pitch, roll=draws.around(0, 6), spine_twist=twist * order, left_arm=left,
                right_arm=right, left_leg=left_leg, right_leg=right_leg)  # fmt: skip


def _lying(draws: Draws) -> Pose:
    left, right = _arms(draws)
    bent = draws.between(0.0, 60.0)
    legs = (Leg(0.7 * bent, 6.0, -8.0, bent, 25.0), Leg(draws.between(0, 20), 8.0, -8.0, draws.between(0, 25), 25.0))
    return Pose("lying", pitch=draws.pick((-85.0, 85.0)) + draws.around(0, 4), left_arm=left, right_arm=right,
                left_leg=legs[0], right_leg=legs[1])  # fmt: skip


POSE_KINDS = {
    "standing": _standing,
    "walking": _walking,
    "running": _running,
    "sitting": _sitting,
    "arms raised": _arms_raised,
    "bending": _bending,
    "crouching": _crouching,
    "sports": _sports,
    "lying": _lying,
}
"""Kind → what draws a pose of it."""

POSE_WEIGHTS = (
    ("standing", 38.0),
    ("walking", 22.0),
    ("running", 8.0),
    ("sitting", 11.0),
    ("arms raised", 9.0),
    ("bending", 3.0),
    ("crouching", 2.5),
    ("sports", 5.5),
    ("lying", 1.0),
)
"""(kind, weight): how often people do each where nothing else is asked for, as on hard images."""
