"""From joints to a body: every part as a chain of ellipses around its bones, dressed, with its depth.

A part is drawn as the union of the convex hulls of neighbouring ellipses of its chain. That gives the right outline
from every side, also where a limb points at the camera.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qtoolkit.data.rendering.body import BodyShape
from qtoolkit.data.rendering.kinematics import Frame, PosedBody, Vector, blend, moved
from qtoolkit.data.rendering.outfit import Material, Outfit

__all__ = ["Label", "Part", "build_parts", "paint_of"]


class Label:
    """Which part of the body a pixel shows; 0 is nobody. Left and right are the person's own."""

    HEAD = 1
    HAIR = 2
    TORSO = 3
    SKIRT = 4
    LEFT_UPPER_ARM = 5
    RIGHT_UPPER_ARM = 6
    LEFT_FOREARM = 7
    RIGHT_FOREARM = 8
    LEFT_THIGH = 9
    RIGHT_THIGH = 10
    LEFT_SHANK = 11
    RIGHT_SHANK = 12
    COUNT = 13


def paint_of(label: int, material: int) -> int:
    """One byte for both: the label in the upper four bits, the material in the lower four."""
    return label << 4 | material


@dataclass
class Part:
    """A chain of ellipses in the view frame, and what is painted between each and the next.

    stations  (x, y, ax, ay, bx, by): centre, and two half-axes as they are seen; statures, y up
    paints    one byte per stretch between two stations
    depth     of the whole part, larger is nearer to the camera: the order of drawing
    bulging   whether all stretches of one paint in a row may be drawn as one hull: the part is nowhere waisted
    """

    depth: float
    bulging: bool = False
    stations: list[tuple[float, float, float, float, float, float]] = field(default_factory=list)
    paints: list[int] = field(default_factory=list)

    def ball(self, centre: Vector, radius: float, paint: int | None = None) -> None:
        """Add a sphere; ``paint`` for the stretch that leads to it, None for the first station."""
        self.stations.append((centre[0], centre[1], radius, 0.0, 0.0, radius))
        if paint is not None:
            self.paints.append(paint)

    def disc(self, centre: Vector, frame: Frame, half_width: float, half_depth: float, paint: int | None) -> None:
        """Add a cross-section, flat along the left and forward directions of ``frame``."""
        self.stations.append(
            (
                centre[0],
                centre[1],
                frame[0] * half_width,
                frame[3] * half_width,
                frame[2] * half_depth,
                frame[5] * half_depth,
            )
        )
        if paint is not None:
            self.paints.append(paint)


def build_parts(body: PosedBody, shape: BodyShape, outfit: Outfit) -> list[Part]:
    """All parts but the head, far ones first."""
    parts = [_torso(body, shape, outfit), _neck(body, shape)]
    for side in (0, 1):
        parts += _arm(body, shape, outfit, side)
        parts += _leg(body, shape, outfit, side)
    if outfit.skirt > 0:
        parts.append(_skirt(body, shape, outfit))
    parts += _hanging_hair(body, shape, outfit)
    return sorted(parts, key=lambda part: part.depth)


def _torso(body: PosedBody, shape: BodyShape, outfit: Outfit) -> Part:
    girth, waist = shape.girth, shape.girth * shape.waist
    cloth = 1.0 + 0.35 * (outfit.looseness - 1.0)
    legs = paint_of(Label.TORSO, Material.TROUSERS)
    shirt = paint_of(Label.TORSO, Material.SHIRT)
    shoulder, hip = shape.shoulder_half, shape.hip_half
    hips, middle, chest = body.pelvis_frame, body.waist_frame, body.chest_frame
    # Bent far, the front of the belly would leave a gap: a torso is one part, so the hulls close it.
    part = Part(0.45 * (body.pelvis[2] + body.shoulder_middle[2]) + 0.1 * body.waist[2] + 0.012)
    part.disc(moved(body.pelvis, hips, 0, -0.052, 0), hips, hip * 0.95, 0.045 * girth, None)
    part.disc(moved(body.pelvis, hips, 0, 0.005, -0.008), hips, hip + 0.030 * girth, 0.064 * girth, legs)
    hem = legs if outfit.hem < 0.02 or outfit.skirt > 0 else shirt
    part.disc(moved(body.pelvis, hips, 0, 0.052, 0), hips, (hip + 0.022 * waist) * cloth, 0.058 * waist * cloth, hem)
    part.disc(body.waist, middle, (0.45 * hip + 0.048 * waist) * cloth, 0.054 * waist * cloth, shirt)
    part.disc(body.chest, chest, (0.8 * shoulder + 0.008 * girth) * cloth, 0.064 * girth * cloth, shirt)
    part.disc(moved(body.shoulder_middle, chest, 0, -0.03, 0), chest, 0.92 * shoulder + 0.006, 0.058 * girth, shirt)
    part.disc(moved(body.shoulder_middle, chest, 0, 0.016, 0), chest, 0.80 * shoulder, 0.040 * girth, shirt)
    part.disc(moved(body.shoulder_middle, chest, 0, 0.042, 0), chest, 0.040 * girth, 0.036 * girth, shirt)
    return part


def _neck(body: PosedBody, shape: BodyShape) -> Part:
    """Over the shirt as seen from the front, which leaves an open collar; under it as seen from behind."""
    paint = paint_of(Label.TORSO, Material.SKIN)
    torso = 0.45 * (body.pelvis[2] + body.shoulder_middle[2]) + 0.1 * body.waist[2] + 0.012
    facing = body.chest_frame[8]
    radius = 0.58 * shape.head_half_width + 0.006 * shape.girth
    part = Part(torso + (0.002 if facing > -0.15 else -0.002))
    part.ball(moved(body.shoulder_middle, body.chest_frame, 0, 0.012, 0.008), radius * 0.9)
    part.ball(moved(body.shoulder_middle, body.chest_frame, 0, 0.03, 0.004), radius * 1.05, paint)
    part.ball(moved(body.head, body.head_frame, 0, -0.55 * shape.head_half_height, -0.008), radius, paint)
    return part


def _arm(body: PosedBody, shape: BodyShape, outfit: Outfit, side: int) -> list[Part]:
    upper_label, fore_label = Label.LEFT_UPPER_ARM + side, Label.LEFT_FOREARM + side
    shoulder, elbow, wrist = body.shoulders[side], body.elbows[side], body.wrists[side]
    tip = body.finger_tips[side]
    thick = 0.5 + 0.5 * shape.girth

    def dressed(label: int, reach: float, radius: float) -> tuple[int, float]:
        cloth = reach <= outfit.sleeve + 1e-9
        paint = paint_of(label, Material.SHIRT if cloth else Material.SKIN)
        return paint, radius * thick * (outfit.looseness if cloth else 1.0)

    upper = Part(0.5 * (shoulder[2] + elbow[2]) + 0.03, bulging=True)
    upper.ball(shoulder, 0.036 * thick * (1.05 if outfit.sleeve > 0 else 1.0))
    for share, radius in ((0.25, 0.034), (0.5, 0.031), (1.0, 0.0255)):
        paint, wide = dressed(upper_label, share, radius)
        upper.ball(blend(shoulder, elbow, share), wide, paint)
    fore = Part(0.5 * (elbow[2] + wrist[2]) + 0.036, bulging=True)
    fore.ball(elbow, dressed(fore_label, 1.0, 0.0255)[1])
    for share, radius in ((0.3, 0.0265), (0.5, 0.024), (1.0, 0.0165)):
        paint, wide = dressed(fore_label, 1.0 + share, radius)
        fore.ball(blend(elbow, wrist, share), wide, paint)
    skin = paint_of(fore_label, Material.SKIN)
    hand = Part(fore.depth + 0.0005, bulging=True)
    hand.ball(wrist, 0.0155 * thick)
    hand.ball(blend(wrist, tip, 0.45), 0.0205, skin)
    hand.ball(blend(wrist, tip, 0.92), 0.0115, skin)
    return [upper, fore, hand]


def _leg(body: PosedBody, shape: BodyShape, outfit: Outfit, side: int) -> list[Part]:
    thigh_label, shank_label = Label.LEFT_THIGH + side, Label.LEFT_SHANK + side
    hip, knee, ankle = body.hips[side], body.knees[side], body.ankles[side]
    girth = shape.girth
    covered = outfit.leg if outfit.skirt == 0 else 0.0

    def dressed(label: int, reach: float, radius: float) -> tuple[int, float]:
        cloth = reach <= covered + 1e-9
        paint = paint_of(label, Material.TROUSERS if cloth else Material.SKIN)
        return paint, radius * girth * (0.5 + 0.5 * outfit.looseness if cloth else 1.0)

    thigh = Part(0.5 * (hip[2] + knee[2]), bulging=True)
    thigh.ball(hip, 0.041 * girth)
    for share, radius in ((0.25, 0.048), (0.5, 0.045), (1.0, 0.0355)):
        paint, wide = dressed(thigh_label, share, radius)
        thigh.ball(blend(hip, knee, share), wide, paint)
    shank = Part(0.5 * (knee[2] + ankle[2]) - 0.004, bulging=True)
    shank.ball(knee, dressed(shank_label, 1.0, 0.036)[1])
    calf = moved(blend(knee, ankle, 0.3), body.shank_frames[side], 0, 0, -0.008)
    for share, radius, centre in ((0.3, 0.0365, calf), (0.7, 0.026, None), (1.0, 0.0205, None)):
        paint, wide = dressed(shank_label, 1.0 + share, radius)
        shank.ball(centre or blend(knee, ankle, share), wide, paint)
    shoe = paint_of(shank_label, Material.SHOE)
    sock = paint_of(shank_label, Material.SOCK)
    shank.ball(blend(ankle, body.heels[side], 0.3), 0.024 * girth, sock)
    shank.ball(body.heels[side], 0.0215 * (0.6 + 0.4 * girth), shoe)
    shank.ball(blend(body.heels[side], body.toes[side], 0.65), 0.0235, shoe)
    shank.ball(body.toes[side], 0.0165, shoe)
    return [thigh, shank]


def _skirt(body: PosedBody, shape: BodyShape, outfit: Outfit) -> Part:
    girth = shape.girth
    paint = paint_of(Label.SKIRT, Material.TROUSERS)
    # Always over both thighs, which it covers, however far one of them swings out.
    part = Part(max(0.5 * (body.hips[side][2] + body.knees[side][2]) for side in (0, 1)) + 0.002)
    frame = body.pelvis_frame
    part.disc(moved(body.pelvis, frame, 0, 0.06, 0), frame, shape.hip_half + 0.026 * girth, 0.06 * girth, None)
    part.disc(body.pelvis, frame, shape.hip_half + 0.052 * girth, 0.075 * girth, paint)
    for share in (0.5, 1.0):
        at = outfit.skirt * share
        ends = [
            blend(body.hips[side], body.knees[side], at)
            if at <= 1
            else blend(body.knees[side], body.ankles[side], at - 1)
            for side in (0, 1)
        ]
        centre = blend(ends[0], ends[1], 0.5)
        wide = 0.052 * girth * (1.0 + 0.5 * share)
        half = [0.5 * (ends[0][axis] - ends[1][axis]) for axis in (0, 1)]
        part.stations.append(
            (
                centre[0],
                centre[1],
                half[0] + frame[0] * wide,
                half[1] + frame[3] * wide,
                frame[2] * wide * 1.2,
                frame[5] * wide * 1.2,
            )
        )
        part.paints.append(paint)
    return part


def _hanging_hair(body: PosedBody, shape: BodyShape, outfit: Outfit) -> list[Part]:
    """Long hair down to the shoulder blades, or a tail; behind the head, so in front of the back as seen from there."""
    if outfit.hair not in ("long", "tail"):
        return []
    frame, half_width, half_height = body.head_frame, shape.head_half_width, shape.head_half_height
    paint = paint_of(Label.HAIR, Material.HAIR)
    nape = moved(body.head, frame, 0, -0.5 * half_height, -0.55 * shape.head_half_depth)
    end = moved(body.shoulder_middle, body.chest_frame, 0, -0.06 if outfit.hair == "long" else -0.02, -0.062)
    part = Part(0.5 * (nape[2] + end[2]))
    wide = 1.05 * half_width if outfit.hair == "long" else 0.35 * half_width
    part.disc(moved(body.head, frame, 0, 0.25 * half_height, -0.35 * shape.head_half_depth), frame, wide, 0.03, None)
    part.disc(nape, frame, wide, 0.55 * shape.head_half_depth if outfit.hair == "long" else 0.02, paint)
    part.disc(end, body.chest_frame, 0.8 * wide, 0.014, paint)
    return [part]
