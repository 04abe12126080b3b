"""Heads: skull and jaw, hair, ears and a face, each seen or not by the way the head is turned.

Places on a head are given in its own frame: left, up, forward, in units of its half-axes, so that (0, 0, 1) is on the
surface between the eyes. What is drawn goes into a map of paints (``flesh.paint_of``), not of colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.rendering.flesh import Label, paint_of
from qtoolkit.data.rendering.kinematics import Vector
from qtoolkit.data.rendering.outfit import Material, Outfit

__all__ = ["EAR", "EYE", "NOSE", "HeadView", "draw_head"]

NOSE = (0.0, -0.22, 1.12)
EYE = (0.40, 0.04, 0.90)
EAR = (1.0, -0.10, -0.06)
"""The left one; the right one has the opposite sign."""

SHIFT = 4
_CIRCLE = [(math.cos(k * math.pi / 10), math.sin(k * math.pi / 10)) for k in range(20)]
_COSINES, _SINES = np.array(_CIRCLE).T
_SMALLEST_FACE_PX = 5.0
_WHITES_FROM_PX = 11.0
# Azimuth and elevation in degrees of the left half of the face, from the hairline down to below the chin.
_FACE_HALF = ((0, 52), (28, 50), (52, 34), (64, 8), (66, -20), (58, -45), (40, -66), (0, -80))
_BEARD_HALF = ((0, -34), (18, -30), (50, -22), (66, -14), (66, -30), (58, -48), (40, -68), (0, -82))


class HeadView:
    """A head as the camera sees it, in pixels of the canvas (x right, y down).

    centre             (x, y)
    left, up, forward  the directions of the head as unit vectors (x, y, towards the camera)
    half               the head's half-axes along these, in pixels
    """

    def __init__(self, centre: tuple[float, float], directions: Sequence[Vector], half: Vector) -> None:
        self.centre = centre
        self.half = half
        self.depths = tuple(direction[2] for direction in directions)
        self.left, self.up, self.forward = (
            (direction[0] * size, direction[1] * size) for direction, size in zip(directions, half, strict=True)
        )
        self.radius = half[0]
        """Half the width of the head in pixels, whatever way it is turned."""

    def at(self, place: Sequence[float]) -> tuple[float, float]:
        """Where a place on the head is seen, in pixels."""
        a, b, c = place
        return (
            self.centre[0] + a * self.left[0] + b * self.up[0] + c * self.forward[0],
            self.centre[1] + a * self.left[1] + b * self.up[1] + c * self.forward[1],
        )

    def facing(self, place: Sequence[float]) -> float:
        """How much the surface there faces the camera: 1 straight on, 0 seen edge-on, below 0 from behind."""
        # The normal of an ellipsoid leans towards its short axes: place / length per axis.
        a, b, c = place[0] / self.half[0], place[1] / self.half[1], place[2] / self.half[2]
        depths = self.depths
        return (a * depths[0] + b * depths[1] + c * depths[2]) / math.sqrt(a * a + b * b + c * c)

    def onto_outline(self, place: Sequence[float]) -> tuple[float, float]:
        """The point of the head's outline nearest to a hidden place: its part that turns away is taken out."""
        depths = self.depths
        away = place[0] * depths[0] + place[1] * depths[1] + place[2] * depths[2]
        a, b, c = place[0] - away * depths[0], place[1] - away * depths[1], place[2] - away * depths[2]
        size = math.sqrt(a * a + b * b + c * c) or 1.0
        return self.at((a / size, b / size, c / size))


class _Ball(NamedTuple):
    """An ellipsoid of the head: centre in head units, half-axes relative to the head's."""

    centre: tuple[float, float, float]
    size: tuple[float, float, float]


_SKULL = _Ball((0.0, 0.16, -0.04), (1.0, 0.86, 1.0))
_JAW = _Ball((0.0, -0.48, 0.26), (0.70, 0.52, 0.62))
_HAIR = _Ball((0.0, 0.20, -0.07), (1.09, 0.90, 1.06))


def _border(half: Sequence[tuple[int, int]]) -> tuple[Vector, ...]:
    """Places on the unit sphere, from the azimuths and elevations of the left half of a patch."""
    both = [*half, *((-azimuth, elevation) for azimuth, elevation in reversed(half[1:-1]))]
    angles = [(math.radians(azimuth), math.radians(elevation)) for azimuth, elevation in both]
    return tuple((math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)) for a, e in angles)


_FACE, _BEARD = _border(_FACE_HALF), _border(_BEARD_HALF)


Points = Sequence[tuple[float, float]] | NDArray[np.float64]


class _Pen:
    """Draws on the map of paints with sub-pixel coordinates."""

    def __init__(self, paints: NDArray[np.uint8]) -> None:
        self.paints = paints

    def fill(self, points: Sequence[tuple[float, float]], material: int, label: int = Label.HEAD) -> None:
        fixed = np.rint(np.array(points) * (1 << SHIFT)).astype(np.int32)
        cv2.fillPoly(self.paints, [fixed], paint_of(label, material), cv2.LINE_8, SHIFT)

    def hull(self, points: Points, material: int, label: int = Label.HEAD) -> None:
        fixed = np.rint(np.array(points) * (1 << SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(self.paints, cv2.convexHull(fixed), paint_of(label, material), cv2.LINE_8, SHIFT)

    def dot(self, at: tuple[float, float], radius: float, material: int, label: int = Label.HEAD) -> None:
        centre = (round(at[0] * (1 << SHIFT)), round(at[1] * (1 << SHIFT)))
        cv2.circle(self.paints, centre, round(radius * (1 << SHIFT)), paint_of(label, material), -1, cv2.LINE_8, SHIFT)

    def line(self, points: Sequence[tuple[float, float]], width: float, material: int) -> None:
        fixed = np.rint(np.array(points) * (1 << SHIFT)).astype(np.int32)
        paint = paint_of(Label.HEAD, material)
        cv2.polylines(self.paints, [fixed], False, paint, max(1, round(width)), cv2.LINE_8, SHIFT)


def draw_head(paints: NDArray[np.uint8], view: HeadView, outfit: Outfit) -> None:
    """Draw a head on a map of paints (h, w) uint8, in place."""
    pen = _Pen(paints)
    skull, jaw = _outline(view, _SKULL), _outline(view, _JAW)
    if outfit.hair == "bun":
        pen.dot(view.at((0, 0.75, -0.85)), 0.45 * view.radius, Material.HAIR, Label.HAIR)
    pen.hull(np.concatenate((skull, jaw)), Material.SKIN)
    if outfit.hair != "bald":
        hair = _outline(view, _HAIR)
        pen.hull(hair, Material.HAIR)
    _fill_patch(pen, view, _FACE, Material.SKIN)
    if view.facing((0, -0.3, 1)) > -0.2:
        pen.hull(jaw, Material.SKIN)
    if outfit.beard:
        _fill_patch(pen, view, _BEARD, Material.BROW)
    _draw_ears(pen, view, outfit)
    if outfit.hair == "cap":
        _draw_cap(pen, view)
    if view.radius >= _SMALLEST_FACE_PX:
        _draw_face(pen, view, outfit)


def _outline(view: HeadView, ball: _Ball) -> NDArray[np.float64]:
    """The ellipse as which an ellipsoid is seen, (20, 2): the furthest points of its projection in 20 directions."""
    x, y = view.at(ball.centre)
    (a, b), (c, d), (e, f) = (
        (size * axis[0], size * axis[1])
        for size, axis in zip(ball.size, (view.left, view.up, view.forward), strict=True)
    )
    xx, xy, yy = a * a + c * c + e * e, a * b + c * d + e * f, b * b + d * d + f * f
    along, across = xx * _COSINES + xy * _SINES, xy * _COSINES + yy * _SINES
    reach = np.sqrt(np.maximum(1e-9, _COSINES * along + _SINES * across))
    return np.stack((x + along / reach, y + across / reach), axis=-1)


def _fill_patch(pen: _Pen, view: HeadView, border: Sequence[Vector], material: int) -> None:
    """A patch of the skull that is symmetric left and right; what is behind its edge is moved onto the outline."""
    if view.facing((0.0, -0.1, 1.0)) < -0.35:
        return
    points = [view.onto_outline(place) if view.facing(place) < 0 else view.at(place) for place in border]
    pen.fill(points, material)


def _draw_ears(pen: _Pen, view: HeadView, outfit: Outfit) -> None:
    for side in (1, -1):
        ear = (side * EAR[0], EAR[1], EAR[2])
        if view.facing(ear) < -0.3:
            continue
        x, y = view.at(ear)
        covered = outfit.hair == "long"
        label, material = (Label.HAIR, Material.HAIR) if covered else (Label.HEAD, Material.SKIN)
        up = (0.26 * view.up[0], 0.26 * view.up[1])
        back = (0.20 * view.forward[0] + 0.07 * view.left[0], 0.20 * view.forward[1] + 0.07 * view.left[1])
        outline = [(x + c * back[0] + s * up[0], y + c * back[1] + s * up[1]) for c, s in _CIRCLE[::2]]
        pen.hull([*outline, (x + 0.1 * view.radius, y), (x - 0.1 * view.radius, y)], material, label)
        if not covered and view.radius > _WHITES_FROM_PX and view.facing(ear) > 0.2:
            pen.hull([(x + 0.5 * (px - x), y + 0.5 * (py - y)) for px, py in outline], Material.SKIN_SHADE)


def _draw_cap(pen: _Pen, view: HeadView) -> None:
    """A crown over the upper half of the skull, and a peak where the front can be seen."""
    band = [(math.sin(math.radians(k)), 0.42, math.cos(math.radians(k))) for k in range(0, 360, 24)]
    crown = _outline(view, _HAIR)
    rim = [view.at((1.1 * a * 0.92, b, 1.08 * c * 0.92)) for a, b, c in band]
    # Above the band only: the points of the crown on its upper side, judged along the head's own up.
    x, y = view.at((0, 0.42, 0))
    upper = [p for p in crown if (p[0] - x) * view.up[0] + (p[1] - y) * view.up[1] > 0]
    pen.hull([*upper, *rim], Material.HAT)
    if view.facing((0, 0.3, 1)) > -0.4:
        pen.hull([view.at(p) for p in ((0.7, 0.44, 0.7), (-0.7, 0.44, 0.7), (-0.45, 0.36, 1.6), (0.45, 0.36, 1.6))],
                 Material.HAT)  # fmt: skip


def _draw_face(pen: _Pen, view: HeadView, outfit: Outfit) -> None:
    radius = view.radius
    large = radius >= _WHITES_FROM_PX
    for side in (1, -1):
        eye = (side * EYE[0], EYE[1], EYE[2])
        seen = view.facing(eye)
        if seen < 0.08:
            continue
        x, y = view.at(eye)
        if large:
            flat = 0.35 + 0.65 * seen
            pen.hull([(x + 0.2 * flat * radius * c, y + 0.11 * radius * s) for c, s in _CIRCLE[::2]], Material.EYE)
        pen.dot((x, y), 0.095 * radius if large else 0.13 * radius, Material.IRIS)
        brow = [view.at((side * a, b, c)) for a, b, c in ((0.20, 0.22, 0.97), (0.40, 0.28, 0.92), (0.58, 0.22, 0.80))]
        pen.line(brow, 0.09 * radius, Material.BROW)
    tip = view.at(NOSE)
    if view.facing((0, -0.1, 1)) > -0.05:
        wings = [view.at((0.17, -0.28, 0.98)), view.at((-0.17, -0.28, 0.98)), view.at((0, 0.0, 0.97))]
        # Lit like the rest of the face, the nose would not be seen from the front: its underside is darker.
        pen.hull([*wings, tip], Material.SKIN)
        pen.hull([wings[0], wings[1], view.at((0, -0.34, 1.06)), view.at((0, -0.24, 1.12))], Material.SKIN_SHADE)
        pen.dot(tip, 0.09 * radius, Material.SKIN)
    if view.facing((0, -0.5, 1)) > 0.05:
        lips = ((0.27, -0.56, 0.84), (0.0, -0.53, 0.95), (-0.27, -0.56, 0.84))
        pen.line([view.at(place) for place in lips], 0.11 * radius, Material.LIP)
    if outfit.glasses:
        _draw_glasses(pen, view)


def _draw_glasses(pen: _Pen, view: HeadView) -> None:
    width = 0.07 * view.radius
    for side in (1, -1):
        eye = (side * EYE[0], EYE[1], EYE[2] + 0.1)
        if view.facing(eye) < 0.05:
            continue
        rim = [view.at((eye[0] + 0.24 * c, eye[1] + 0.20 * s, eye[2])) for c, s in _CIRCLE[::2]]
        pen.line([*rim, rim[0]], width, Material.BROW)
        pen.line([view.at((eye[0] + 0.24 * side, eye[1], eye[2])), view.at((side, 0.02, 0.1))], width, Material.BROW)
    if view.facing((0, 0, 1)) > 0.2:
        pen.line([view.at((0.18, 0.05, 1.02)), view.at((-0.18, 0.05, 1.02))], width, Material.BROW)
