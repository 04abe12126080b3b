"""Where people are: rooms, streets, landscapes, pitches, and places of nothing but colour and texture."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.outfit import Colour, draw_colour, scaled_colour
from qtoolkit.data.rendering.props import Brush, ramp
from qtoolkit.data.rendering.textures import TEXTURE_NAMES, cut_texture

__all__ = ["PLACES", "draw_background"]

Image = NDArray[np.uint8]


def draw_background(draws: Draws, size_wh: tuple[int, int], horizon: int) -> Image:
    """An empty place (h, w, 3) uint8 BGR; ``horizon`` is the row of its horizon, which may lie outside the image."""
    width, height = size_wh
    image = np.empty((height, width, 3), np.uint8)
    horizon = min(max(horizon, height // 8), height - height // 8)
    draws.weighted(PLACES)(Brush(image), draws, horizon)
    if draws.chance(0.45):
        size = 3 + 2 * round(draws.between(0.0, 2.4) * max(size_wh) / 320)
        image = np.asarray(cv2.GaussianBlur(image, (size, size), 0), np.uint8)
    return image


def _surface(brush: Brush, draws: Draws, rows: tuple[int, int], names: tuple[str, ...], colours: tuple[Colour, Colour],
             zoom: float = 1.0) -> None:  # fmt: skip
    """Cover rows top ≤ y < bottom with a texture in the colours from dark to light."""
    width, height = brush.size_wh
    top, bottom = max(0, rows[0]), min(height, rows[1])
    if bottom <= top:
        return
    scale = zoom * max(width, height) / 320
    grey = cut_texture(draws, draws.pick(names), (width, bottom - top), scale)
    brush.image[top:bottom] = cv2.applyColorMap(grey, ramp(*colours))


def _fading(brush: Brush, rows: tuple[int, int], above: Colour, below: Colour) -> None:
    """A vertical gradient over some rows."""
    top, bottom = max(0, rows[0]), min(brush.size_wh[1], rows[1])
    steps = np.arange(max(0, bottom - top))[:, None, None]
    first, last = np.array(above), np.array(below)
    brush.image[top:bottom] = first + (last - first) * steps // max(1, bottom - top)


def _shades(draws: Draws, colour: Colour, contrast: float) -> tuple[Colour, Colour]:
    half = draws.between(0.3, 1.0) * contrast
    return scaled_colour(colour, 1.0 - half), scaled_colour(colour, 1.0 + half)


def _room(brush: Brush, draws: Draws, horizon: int) -> None:
    """A wall with what hangs on it and stands before it, and a floor."""
    height = brush.size_wh[1]
    floor = min(height, horizon + draws.integer(height // 10, height // 2))
    wall = draws.pick(
        ((205, 215, 222), (190, 190, 188), (150, 160, 150), (170, 140, 120), (120, 150, 190), draw_colour(draws))
    )
    _surface(
        brush, draws, (0, floor), ("clouds", "rough", "bricks", "blinds", "tiles", "weave"), _shades(draws, wall, 0.3)
    )
    ground = draws.pick(((70, 105, 150), (110, 125, 140), (90, 90, 95), (60, 70, 110), draw_colour(draws)))
    _surface(brush, draws, (floor, height), ("planks", "tiles", "rough", "weave"), _shades(draws, ground, 0.35), 1.3)
    skirting = max(1, height // 60)
    if draws.chance(0.6):
        brush.image[max(0, floor - skirting) : floor] = scaled_colour(wall, 1.15)
    for _ in range(draws.integer(1, 5)):
        _wall_thing(brush, draws, floor)


def _wall_thing(brush: Brush, draws: Draws, floor: int) -> None:
    """A window, a picture, a door, a shelf or a cupboard."""
    width, _ = brush.size_wh
    w, h = draws.between(0.1, 0.35) * width, draws.between(0.2, 0.6) * floor
    x, y = draws.between(-0.1, 1.0) * width, draws.between(0.02, 0.5) * floor
    if draws.chance(0.35):
        y = floor - h
    frame = draw_colour(draws)
    brush.polygon([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], frame)
    edge = 0.05 * w
    inner = (x + edge, y + edge, x + w - edge, y + h - edge)
    kind = draws.integer(0, 3)
    if kind == 0:
        brush.panel(inner, (225, 215, 200), draws, "clouds")
        brush.rod((x + w / 2, y), (x + w / 2, y + h), edge, frame)
    elif kind == 1:
        brush.panel(inner, draw_colour(draws), draws, draws.pick(("foliage", "crowd", "clouds", "grass")))
    elif kind == 2:
        brush.panel(inner, scaled_colour(frame, 0.9), draws, "planks")
    else:
        for k in range(draws.integer(2, 5)):
            brush.panel((inner[0], y + k * h / 5, inner[2], y + k * h / 5 + h / 7), draw_colour(draws), draws, "crowd")


def _sky(brush: Brush, draws: Draws, horizon: int) -> None:
    zenith = draws.pick(
        ((225, 165, 95), (230, 190, 140), (190, 185, 180), (215, 205, 200), (120, 90, 60), (150, 160, 215))
    )
    if draws.chance(0.6):
        _surface(brush, draws, (0, horizon), ("clouds",), (zenith, (240, 238, 235)), 1.5)
    else:
        _fading(brush, (0, horizon), zenith, (235, 228, 220))


def _landscape(brush: Brush, draws: Draws, horizon: int) -> None:
    """Sky, a line of hills or trees, grass, sand or snow."""
    width, height = brush.size_wh
    _sky(brush, draws, horizon)
    for depth in range(draws.integer(1, 3)):
        hill = (draws.integer(40, 130), draws.integer(70, 130), draws.integer(40, 110))
        left, right = (horizon - draws.between(0.02, 0.3) * horizon for _ in range(2))
        peak = (draws.between(0.1, 0.9) * width, horizon - draws.between(0.1, 0.5) * horizon / (depth + 1))
        brush.polygon([(-5, horizon + 5), (-5, left), peak, (width + 5, right), (width + 5, horizon + 5)], hill)
    ground = draws.pick(((50, 120, 90), (60, 140, 100), (130, 180, 205), (225, 222, 220), (70, 100, 130)))
    _surface(brush, draws, (horizon, height), ("grass", "rough", "clouds"), _shades(draws, ground, 0.45), 1.2)
    for _ in range(draws.integer(0, 4)):
        _tree(brush, draws, horizon)


def _tree(brush: Brush, draws: Draws, horizon: int) -> None:
    width, height = brush.size_wh
    foot = (draws.between(0.0, 1.0) * width, horizon + draws.between(0.0, 0.25) * (height - horizon))
    tall = draws.between(0.25, 0.7) * height
    bark, leaf = (40, 60, 80), (draws.integer(20, 60), draws.integer(70, 130), draws.integer(30, 90))
    brush.rod(foot, (foot[0], foot[1] - 0.6 * tall), 0.07 * tall, bark)
    for _ in range(3):
        end = (foot[0] + draws.between(-0.3, 0.3) * tall, foot[1] - draws.between(0.5, 0.9) * tall)
        brush.rod((foot[0], foot[1] - 0.4 * tall), end, 0.035 * tall, bark)
    for _ in range(draws.integer(5, 12)):
        at = (foot[0] + draws.between(-0.25, 0.25) * tall, foot[1] - draws.between(0.5, 1.0) * tall)
        half = draws.between(0.08, 0.18) * tall
        brush.ellipse(at, (half, 0.8 * half), scaled_colour(leaf, draws.between(0.7, 1.3)))


def _street(brush: Brush, draws: Draws, horizon: int) -> None:
    """Houses with windows side by side, a pavement and a road."""
    width, height = brush.size_wh
    _sky(brush, draws, horizon + 1)
    foot = min(height, horizon + draws.integer(0, height // 8))
    x = -draws.between(0.0, 0.2) * width
    while x < width:
        wide, tall = draws.between(0.15, 0.45) * width, draws.between(0.4, 1.3) * foot
        _house(brush, draws, (x, foot - tall, x + wide, float(foot)))
        x += wide
    _surface(
        brush, draws, (foot, height), ("rough", "tiles", "bricks", "clouds"), _shades(draws, (115, 118, 120), 0.3), 1.2
    )
    if draws.chance(0.5):
        y = foot + draws.between(0.2, 0.7) * (height - foot)
        _surface(brush, draws, (round(y), height), ("rough",), ((60, 60, 62), (95, 95, 98)), 1.2)
        brush.polygon([(0, y), (width, y), (width, y + 0.02 * height), (0, y + 0.02 * height)], (150, 150, 150))


def _house(brush: Brush, draws: Draws, box: tuple[float, float, float, float]) -> None:
    wall = draws.pick(((150, 170, 190), (90, 110, 160), (130, 130, 135), (190, 200, 205), draw_colour(draws)))
    brush.panel(box, wall, draws, draws.pick(("bricks", "rough", "clouds", "tiles")))
    left, top, right, bottom = box
    columns, rows = draws.integer(2, 5), draws.integer(2, 6)
    glass = draws.pick(((70, 60, 50), (190, 170, 140), (110, 130, 150)))
    step_x, step_y = (right - left) / columns, (bottom - top) / rows
    for row in range(rows):
        for column in range(columns):
            x, y = left + (column + 0.25) * step_x, top + (row + 0.2) * step_y
            corners = [(x, y), (x + 0.5 * step_x, y), (x + 0.5 * step_x, y + 0.6 * step_y), (x, y + 0.6 * step_y)]
            brush.polygon(corners, glass)


def _pitch(brush: Brush, draws: Draws, horizon: int) -> None:
    """A field or a hall with lines, and spectators or a fence behind."""
    width, height = brush.size_wh
    _surface(brush, draws, (0, horizon), ("crowd", "foliage", "clouds"), ((50, 50, 55), (190, 185, 185)))
    if draws.chance(0.6):
        brush.panel(
            (0, 0.75 * horizon, width, horizon), draw_colour(draws), draws, draws.pick(("blinds", "weave", "rough"))
        )
    ground = draws.pick(((60, 140, 75), (70, 120, 60), (90, 90, 190), (160, 110, 50), (110, 160, 200)))
    _surface(brush, draws, (horizon, height), ("grass", "rough", "planks", "clouds"), _shades(draws, ground, 0.2), 1.2)
    for _ in range(draws.integer(1, 3)):
        y, thick = draws.between(horizon, height), max(1.5, 0.012 * height)
        tilt = draws.around(0.0, 0.1) * height
        brush.polygon([(0, y), (width, y + tilt), (width, y + tilt + thick), (0, y + thick)], (235, 235, 235))


def _texture_only(brush: Brush, draws: Draws, horizon: int) -> None:
    """No place at all: one texture, or patches of several, in any colours."""
    width, height = brush.size_wh
    _surface(brush, draws, (0, height), TEXTURE_NAMES, _shades(draws, draw_colour(draws), 0.5), draws.between(0.7, 2.5))
    for _ in range(draws.integer(0, 7)):
        x, y = draws.between(-0.2, 1.0) * width, draws.between(-0.2, 1.0) * height
        box = (x, y, x + draws.between(0.1, 0.6) * width, y + draws.between(0.1, 0.6) * height)
        if draws.chance(0.5):
            brush.panel(box, draw_colour(draws), draws, draws.pick(TEXTURE_NAMES))
        else:
            points = [(draws.between(box[0], box[2]), draws.between(box[1], box[3])) for _ in range(3)]
            brush.polygon(points, draw_colour(draws))


def _studio(brush: Brush, draws: Draws, horizon: int) -> None:
    """A paper backdrop that fades into its floor."""
    height = brush.size_wh[1]
    colour = draws.pick(((225, 225, 225), (120, 120, 120), (60, 60, 60), draw_colour(draws)))
    fold = min(height - 1, horizon + height // 5)
    _fading(brush, (0, fold), scaled_colour(colour, 0.85), scaled_colour(colour, 1.1))
    _fading(brush, (fold, height), scaled_colour(colour, 1.1), scaled_colour(colour, 0.8))


Place = Callable[[Brush, Draws, int], None]

PLACES: tuple[tuple[Place, float], ...] = (
    (_room, 3.0), (_street, 2.0), (_landscape, 2.0), (_pitch, 1.5), (_texture_only, 1.5), (_studio, 0.7),
)  # fmt: skip
"""Kinds of places, with weights: called with (brush over the image, draws, row of the horizon)."""
