"""Things: furniture, plants, bars, balls, clothes on a line … behind people to mislead, before them to hide them.

Each is drawn with ``Brush``, which also takes the pixels away from whoever owned them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.outfit import Colour, draw_colour, scaled_colour
from qtoolkit.data.rendering.textures import cut_texture

__all__ = ["DISTRACTORS", "OCCLUDERS", "Brush", "ramp"]

Bytes = NDArray[np.uint8]
Point = tuple[float, float]

_SHIFT = 4
_LEAF = ((0.0, 0.0), (0.25, 0.13), (0.6, 0.16), (1.0, 0.0), (0.6, -0.16), (0.25, -0.13))


class Brush:
    """Fills shapes in an image (h, w, 3) uint8 BGR; the owner map (h, w) uint8, where given, becomes 0 there."""

    def __init__(self, image: Bytes, owner: Bytes | None = None) -> None:
        self.image = image
        self.owner = owner

    @property
    def size_wh(self) -> tuple[int, int]:
        """Of the image, in pixels."""
        return self.image.shape[1], self.image.shape[0]

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a convex polygon; points in pixels, 0 at the image's edge."""
        fixed = np.rint((np.array(points) - 0.5) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_8, _SHIFT)
        if self.owner is not None:
            cv2.fillConvexPoly(self.owner, fixed, 0, cv2.LINE_8, _SHIFT)

    def ellipse(self, centre: Point, half: Point, colour: Colour, degrees: float = 0.0) -> None:
        """Fill an ellipse with half-axes ``half``, turned by ``degrees``."""
        angle = math.radians(degrees)
        c, s = math.cos(angle), math.sin(angle)
        turns = [(math.cos(k * math.pi / 9), math.sin(k * math.pi / 9)) for k in range(18)]
        points = [
            (centre[0] + c * half[0] * a - s * half[1] * b, centre[1] + s * half[0] * a + c * half[1] * b)
            for a, b in turns
        ]
        self.polygon(points, colour)

    def rod(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """A round bar between two points: its three stripes are lit like a cylinder."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = math.sqrt(dx * dx + dy * dy) or 1.0
        nx, ny = -dy / length * width / 2, dx / length * width / 2
        for lo, hi, light in ((-1.0, 1.0, 0.75), (-0.8, 0.45, 1.0), (-0.45, -0.05, 1.18)):
            corners = [(start, lo), (end, lo), (end, hi), (start, hi)]
            self.polygon([(p[0] + nx * t, p[1] + ny * t) for p, t in corners], scaled_colour(colour, light))

    def panel(self, box: tuple[float, float, float, float], colour: Colour, draws: Draws, texture: str) -> None:
        """A textured rectangle (left, top, right, bottom)."""
        width, height = self.size_wh
        x0, y0 = max(0, round(box[0])), max(0, round(box[1]))
        x1, y1 = min(width, round(box[2])), min(height, round(box[3]))
        if x1 - x0 < 1 or y1 - y0 < 1:
            return
        grey = cut_texture(draws, texture, (x1 - x0, y1 - y0), draws.between(0.6, 1.4) * max(width, height) / 320)
        self.image[y0:y1, x0:x1] = cv2.applyColorMap(
            grey, ramp(scaled_colour(colour, 0.72), scaled_colour(colour, 1.2))
        )
        if self.owner is not None:
            self.owner[y0:y1, x0:x1] = 0


def ramp(dark: Colour, light: Colour) -> Bytes:
    """(256, 1, 3) uint8: the colours from ``dark`` to ``light`` in equal steps, in whole numbers."""
    greys = np.arange(256)[:, None]
    low, high = np.array(dark), np.array(light)
    return np.asarray(low + (high - low) * greys // 255, np.uint8).reshape(256, 1, 3)


def _pole(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    """A lamp post, a column, a tree trunk: through the whole height of the image."""
    width = size * draws.between(0.04, 0.14)
    lean = draws.around(0.0, 0.04) * size
    brush.rod((foot[0] + lean, -2.0), (foot[0], foot[1]), width, draw_colour(draws))


def _bars(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    """A railing or a fence: uprights with one or two rails."""
    colour = draw_colour(draws)
    width, height = size * draws.between(0.8, 1.8), size * draws.between(0.3, 0.55)
    left, top, step = foot[0] - width / 2, foot[1] - height, size * draws.between(0.10, 0.2)
    thin = max(1.5, size * draws.between(0.012, 0.03))
    for k in range(int(width / step) + 1):
        brush.rod((left + k * step, foot[1]), (left + k * step, top), thin, colour)
    for share in draws.pick(((0.0,), (0.0, 0.85), (0.0, 0.45))):
        y = top + share * height
        brush.rod((left, y), (left + width, y), 1.6 * thin, colour)


def _box(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    """A crate, a counter, a cupboard: front and top."""
    width, height, deep = (
        size * draws.between(0.3, 0.8),
        size * draws.between(0.2, 0.5),
        size * draws.between(0.03, 0.1),
    )
    colour = draw_colour(draws)
    left, right, top = foot[0] - width / 2, foot[0] + width / 2, foot[1] - height
    skew = draws.around(0.0, 0.05) * size
    lid = [(left, top), (right, top), (right + skew, top - deep), (left + skew, top - deep)]
    brush.polygon(lid, scaled_colour(colour, 1.2))
    brush.panel((left, top, right, foot[1]), colour, draws, draws.pick(("planks", "rough", "weave", "tiles")))


def _table(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    colour = draw_colour(draws)
    width, height, deep = (
        size * draws.between(0.5, 1.1),
        size * draws.between(0.36, 0.46),
        size * draws.between(0.04, 0.12),
    )
    left, right, top = foot[0] - width / 2, foot[0] + width / 2, foot[1] - height
    leg = max(2.0, 0.03 * size)
    for x in (left + leg, right - leg):
        brush.rod((x, top), (x, foot[1]), leg, scaled_colour(colour, 0.8))
    brush.polygon([(left, top), (right, top), (right - deep, top - deep), (left + deep, top - deep)], colour)
    edge = top + max(1.5, 0.03 * size)
    brush.polygon([(left, top), (right, top), (right, edge), (left, edge)], scaled_colour(colour, 0.75))
    for _ in range(draws.integer(0, 3)):
        x = draws.between(left + 0.1 * width, right - 0.1 * width)
        brush.rod((x, top - 0.3 * deep), (x, top - 0.3 * deep - size * draws.between(0.04, 0.12)),
                  size * draws.between(0.02, 0.06), draw_colour(draws))  # fmt: skip


def _chair(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    colour = draw_colour(draws)
    width, seat, back = size * draws.between(0.2, 0.27), size * 0.25, size * draws.between(0.42, 0.55)
    thin = max(1.5, 0.02 * size)
    left, right = foot[0] - width / 2, foot[0] + width / 2
    for x in (left, right):
        brush.rod((x, foot[1]), (x, foot[1] - back), thin, colour)
    high, low = foot[1] - seat, foot[1] - seat + 2 * thin
    brush.polygon([(left, high), (right, high), (right + thin, low), (left - thin, low)], scaled_colour(colour, 1.1))
    high, low = foot[1] - back, foot[1] - 0.65 * back
    brush.polygon([(left, high), (right, high), (right, low), (left, low)], colour)


def _plant(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    """Leaves around a stem, in a pot half of the time."""
    green = (draws.integer(20, 70), draws.integer(80, 150), draws.integer(30, 90))
    tall, wide = size * draws.between(0.25, 0.6), size * draws.between(0.12, 0.3)
    for _ in range(draws.integer(14, 26)):
        up, side = draws.unit(), draws.between(-1.0, 1.0)
        x, y = foot[0] + 0.4 * side * wide, foot[1] - (0.25 + 0.7 * up) * tall
        angle, length = math.radians(-90 + 80 * side + draws.between(-25, 25)), size * draws.between(0.08, 0.2)
        c, s = math.cos(angle) * length, math.sin(angle) * length
        brush.polygon([(x + a * c - b * s, y + a * s + b * c) for a, b in _LEAF],
                      scaled_colour(green, draws.between(0.6, 1.3)))  # fmt: skip
    if draws.chance(0.5):
        pot, top, low = draw_colour(draws), 0.09 * size, 0.065 * size
        x, high = foot[0], foot[1] - 0.3 * tall
        brush.polygon([(x - top, high), (x + top, high), (x + low, foot[1]), (x - low, foot[1])], pot)


def _ball(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    """A ball, a balloon, a round lamp, as large as a head or larger: lit from above."""
    radius, colour = size * draws.between(0.05, 0.13), draw_colour(draws)
    x, y = foot[0], foot[1] - radius - (size * draws.between(0.0, 1.0) if draws.chance(0.5) else 0.0)
    for share, light in ((1.0, 0.65), (0.88, 0.82), (0.7, 1.0), (0.45, 1.15), (0.2, 1.3)):
        off = (1.0 - share) * radius * 0.5
        brush.ellipse((x - off, y - off), (share * radius, share * radius), scaled_colour(colour, light))


def _limbs(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    """Sticks and rolls in the colours of skin and cloth, jointed like arms and legs, but of no body."""
    colour = draws.pick(((118, 150, 205), (187, 206, 240), (52, 78, 125), draw_colour(draws)))
    x, y = foot[0], foot[1] - size * draws.between(0.0, 0.8)
    for _ in range(draws.integer(1, 3)):
        angle, length = draws.between(0.0, 2 * math.pi), size * draws.between(0.12, 0.3)
        width = size * draws.between(0.03, 0.08)
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        brush.ellipse((x, y), (width / 2, width / 2), scaled_colour(colour, 0.85))
        brush.rod((x, y), end, width, colour)
        x, y = end


def _hung_clothes(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    """A shirt on a hanger, with nobody in it."""
    colour = draw_colour(draws)
    x, top, half = foot[0], foot[1] - size * draws.between(0.5, 0.95), size * draws.between(0.1, 0.14)
    down = size * draws.between(0.25, 0.4)
    brush.polygon(
        [(x - half, top), (x + half, top), (x + 0.9 * half, top + down), (x - 0.9 * half, top + down)], colour
    )
    for side in (-1, 1):
        outline = ((1.0, 0.0), (1.7, 0.5), (1.4, 0.6), (0.8, 0.25))
        brush.polygon(
            [(x + side * half * a, top + down * b) for a, b in outline],
            scaled_colour(colour, 0.85 if side > 0 else 1.1),
        )
    brush.ellipse((x, top), (0.3 * half, 0.12 * half), scaled_colour(colour, 0.5))


def _vehicle(brush: Brush, draws: Draws, foot: Point, size: float) -> None:
    colour, glass = draw_colour(draws), (90, 80, 70)
    width, height = size * draws.between(1.2, 2.2), size * draws.between(0.5, 0.8)
    left, top = foot[0] - width / 2, foot[1] - height
    outline = ((0.2, 0.45), (0.3, 0.0), (0.75, 0.0), (0.88, 0.45))
    cabin = [(left + a * width, top + b * height) for a, b in outline]
    brush.polygon(cabin, scaled_colour(colour, 0.9))
    brush.polygon([(p[0] + 0.04 * (foot[0] - p[0]), p[1] + 0.06 * height) for p in cabin], glass)
    low, high = foot[1] - 0.16 * height, top + 0.45 * height
    brush.polygon([(left, high), (left + width, high + 0.04 * height), (left + width, low), (left, low)], colour)
    for share in (0.2, 0.8):
        centre = (left + share * width, low)
        brush.ellipse(centre, (0.2 * height, 0.2 * height), (30, 30, 32))
        brush.ellipse(centre, (0.1 * height, 0.1 * height), (150, 150, 152))


Prop = Callable[[Brush, Draws, Point, float], None]

OCCLUDERS: tuple[tuple[Prop, float], ...] = (
    (_pole, 1.2), (_bars, 1.2), (_box, 1.6), (_table, 1.4), (_plant, 1.6), (_chair, 1.0), (_ball, 0.6), (_limbs, 0.3),
    (_vehicle, 0.25),
)  # fmt: skip
"""What may stand before people, with weights: called with (brush, draws, place on the ground, stature there)."""

DISTRACTORS: tuple[tuple[Prop, float], ...] = (
    (_pole, 1.5), (_bars, 0.8), (_box, 1.2), (_table, 0.8), (_plant, 1.2), (_chair, 0.8), (_ball, 1.2), (_limbs, 1.3),
    (_hung_clothes, 0.8), (_vehicle, 0.6),
)  # fmt: skip
"""What may stand behind people, with weights."""
