"""Light on a painted body: from a map of what each pixel is made of to colours that look round."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.flesh import Label
from qtoolkit.data.rendering.kinematics import PosedBody, Vector
from qtoolkit.data.rendering.outfit import Material, Outfit
from qtoolkit.data.rendering.textures import cut_texture

__all__ = ["Light", "shade_paints"]

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Light:
    """Where light comes from: a unit vector in the image (x right, y down), and how strongly it models bodies, 0–1."""

    direction: tuple[float, float]
    strength: float


def shade_paints(
    paints: Bytes, body: PosedBody, outfit: Outfit, stature_px: float, light: Light, draws: Draws
) -> Bytes:
    """The colours (h, w, 3) uint8 BGR of a map of paints (h, w) uint8; ``stature_px`` in pixels of that map.

    Parts are rounded off towards their edges and lit from one side; cloth has folds, hair has strands.
    """
    limb = 0.034 * stature_px
    # Shading is soft: for a large person, half the resolution shows the same.
    step = 2 if limb > 4.5 else 1
    small = paints[::step, ::step] if step > 1 else paints
    limb /= step
    groups = cv2.LUT(small, _group_table(body))
    inner = (small != 0).view(np.uint8) * np.uint8(255)
    inner[:, 1:] *= (groups[:, 1:] == groups[:, :-1]).view(np.uint8)
    inner[1:] *= (groups[1:] == groups[:-1]).view(np.uint8)
    reach = max(1, round(0.55 * limb))
    if reach > 1:
        inner = np.asarray(cv2.erode(inner, np.ones((1 + reach // 2, 1 + reach // 2), np.uint8)), np.uint8)
    soft = cv2.GaussianBlur(inner, (4 * reach + 1, 4 * reach + 1), 0)
    shift_x, shift_y = (round(reach * value) for value in light.direction)
    pad = reach + 1
    framed = cv2.copyMakeBorder(soft, pad, pad, pad, pad, cv2.BORDER_REPLICATE).astype(np.int16)
    height, width = soft.shape
    towards = framed[pad + shift_y : pad + shift_y + height, pad + shift_x : pad + shift_x + width]
    away = framed[pad - shift_y : pad - shift_y + height, pad - shift_x : pad - shift_x + width]
    level = (away - towards) * round(96 * light.strength) // 256
    level += (soft.astype(np.int16) >> 3) + round(126 - 24 * light.strength)
    folds = cut_texture(draws, "folds", (width, height), max(0.3, limb / 12.0)).astype(np.int16) - 128
    level += folds * np.asarray(cv2.LUT(small, _FOLDS), np.uint8) >> 7
    shade = np.clip(level, 20, 230).astype(np.uint8)
    if step > 1:
        shade = np.asarray(cv2.resize(shade, paints.shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT), np.uint8)
    colours = np.tile(np.array(outfit.colours, np.uint8), (16, 1)).reshape(256, 1, 3)
    flat = cv2.applyColorMap(paints, colours)
    # A power of two as the factor keeps the product exact, so that rounding is the same everywhere.
    return np.asarray(cv2.multiply(flat, cv2.merge((shade, shade, shade)), scale=1.0 / 128.0), np.uint8)


_FOLDS = np.array(
    [{Material.SKIN: 0, Material.SHIRT: 40, Material.SHIRT_MARK: 40, Material.TROUSERS: 34, Material.HAIR: 60}.get(
        paint & 15, 6) for paint in range(256)],
    np.uint8,
)  # fmt: skip
"""How strongly folds (or strands of hair) show, by paint."""


def _group_table(body: PosedBody) -> Bytes:
    """Paint → number; where neighbours differ is an edge. A limb that is nearly straight has none at its joint."""
    labels = np.arange(256) >> 4
    table = labels.astype(np.uint8)
    for side in (0, 1):
        arm = (body.shoulders[side], body.elbows[side], body.wrists[side])
        leg = (body.hips[side], body.knees[side], body.ankles[side])
        for joints, upper in ((arm, Label.LEFT_UPPER_ARM + side), (leg, Label.LEFT_THIGH + side)):
            if _bend_cosine(*joints) > 0.3:
                table[labels == upper + 2] = upper
    return table


def _bend_cosine(first: Vector, middle: Vector, last: Vector) -> float:
    """1 where the two bones go on straight, −1 where one is folded back onto the other."""
    a = [m - f for f, m in zip(first, middle, strict=True)]
    b = [k - m for m, k in zip(middle, last, strict=True)]
    sizes = math.sqrt(sum(v * v for v in a) * sum(v * v for v in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / sizes
