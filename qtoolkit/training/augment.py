"""Make a training image out of one or four: mosaic, scale, translate, mirror, colour. numpy and OpenCV only.

Nothing here has a state: what comes out depends on the images and on the random numbers handed in, so that a training
that was stopped goes on with the very same images. Coordinates are pixels with 0 at the edge of the image, so the
centre of the first pixel lies at 0.5. After edgeai-yolov5's ``load_mosaic`` and ``random_perspective``, whose two steps
are one here: each tile is drawn straight into the training image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.letterbox import PAD_VALUE
from qtoolkit.data.skeletons import COCO17
from qtoolkit.training.labels import ImageLabels
from qtoolkit.training.recipe import Augmentation

__all__ = ["Placement", "Tile", "TrainingImage", "change_colours", "mosaic_placements", "one_placement", "paint"]

# What YOLOv5 keeps of a person cut by the frame: sides over 2 pixels, a tenth of the area, no thinner than 1 : 20.
_MIN_SIDE_PX, _MIN_AREA_SHARE, _MAX_ASPECT = 2.0, 0.1, 20.0
# Ends that are whole pixels but for the rounding of floats stay whole.
_ROUNDING = 1e-6
_FLIP_ORDER = list(COCO17.flip_order)


class Placement(NamedTuple):
    """x of a tile → ``scale_xy[0] · x + offset_xy[0]`` in the training image, y likewise; a negative scale mirrors."""

    scale_xy: tuple[float, float]
    offset_xy: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Tile:
    """A source image (h, w, 3) uint8 BGR, its labels in pixels of the label file, ``ratio_xy`` = pixels of the image
    per pixel of the labels."""

    image: NDArray[np.uint8]
    labels: ImageLabels
    ratio_xy: tuple[float, float]


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """A training image (S, S, 3) uint8 BGR and the people in it, in its pixels.

    Labels as ``ImageLabels``, clipped to the image; a keypoint outside it has visibility 0.
    """

    image: NDArray[np.uint8]
    labels: ImageLabels


def mosaic_placements(
    sizes_wh: Sequence[tuple[int, int]], size: int, long_side: int, options: Augmentation, random: np.random.Generator
) -> list[Placement]:
    """Where four tiles of ``sizes_wh`` lie in an image of ``size``² pixels, as if their longer sides were ``size``.

    ``long_side``: their longer side now, pixels. The tiles meet in a point drawn from the middle half of a canvas twice
    as large, which is then scaled and moved as a whole; the image is the middle of it.
    """
    centre = random.uniform(0.5 * size, 1.5 * size, 2)
    scale, shift, mirrored = _whole_change(size, options, random)
    placements = []
    for corner, (w, h) in enumerate(sizes_wh):
        to_canvas = size / long_side
        # Left and top tiles end at the centre, the others begin there.
        left = centre[0] - (w * to_canvas if corner % 2 == 0 else 0.0)
        top = centre[1] - (h * to_canvas if corner < 2 else 0.0)
        offset = (scale * (left - size) + shift[0], scale * (top - size) + shift[1])
        placements.append(_placement(scale * to_canvas, offset, size, mirrored))
    return placements


def one_placement(
    size_wh: tuple[int, int], size: int, long_side: int, options: Augmentation, random: np.random.Generator
) -> Placement:
    """Where one tile lies without a mosaic: centred, its longer side ``size``, then scaled, moved and mirrored."""
    scale, shift, mirrored = _whole_change(size, options, random)
    whole = scale * size / long_side
    offset = (shift[0] - whole * size_wh[0] / 2, shift[1] - whole * size_wh[1] / 2)
    return _placement(whole, offset, size, mirrored)


def paint(tiles: Sequence[Tile], placements: Sequence[Placement], size: int) -> TrainingImage:
    """Draw the tiles into a grey image of ``size``² pixels and bring their labels along.

    A person of whom less than a tenth of the box stays inside, or a side of 2 pixels or less, is left out. Keypoints
    swap left and right in a mirrored tile.
    """
    canvas = np.full((size, size, 3), PAD_VALUE, np.uint8)
    parts = []
    for tile, placement in zip(tiles, placements, strict=True):
        drawn = _draw(canvas, tile.image, placement)
        parts.append(_moved(tile.labels, drawn, tile.ratio_xy, size))
    if len(parts) == 1:
        return TrainingImage(canvas, parts[0])
    labels = ImageLabels(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("boxes_xyxy", "keypoints", "labelled", "crowds_xyxy")
        )
    )
    return TrainingImage(canvas, labels)


def change_colours(
    image_bgr: NDArray[np.uint8], options: Augmentation, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Random hue, saturation and value; (h, w, 3) uint8 BGR in, RGB out: what the network takes."""
    gains = 1 + random.uniform(-1, 1, 3) * (options.hue, options.saturation, options.value)
    steps = np.arange(256)
    tables = np.empty((1, 256, 3), np.uint8)
    tables[0, :, 0] = (steps * gains[0]) % 180  # OpenCV keeps hues of bytes as half degrees
    tables[0, :, 1:] = np.clip(steps[:, None] * gains[1:], 0, 255)
    hsv: Any = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2HSV)
    changed: Any = cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB)
    result: NDArray[np.uint8] = changed
    return result


def _whole_change(
    size: int, options: Augmentation, random: np.random.Generator
) -> tuple[float, NDArray[np.float64], bool]:
    """Scale of the whole picture, where its centre comes to lie in pixels (2,), and whether it is mirrored."""
    scale = random.uniform(1 - options.scale, 1 + options.scale)
    shift = random.uniform(0.5 - options.translate, 0.5 + options.translate, 2) * size
    return scale, shift, bool(random.random() < options.flip)


def _placement(scale: float, offset: tuple[float, float], size: int, mirrored: bool) -> Placement:
    if mirrored:
        return Placement((-scale, scale), (size - offset[0], offset[1]))
    return Placement((scale, scale), offset)


def _draw(canvas: NDArray[np.uint8], tile: NDArray[np.uint8], placement: Placement) -> Placement:
    """Draw the tile into the part of the canvas that it covers, and return where exactly it came to lie.

    Whole pixels of the tile fill whole pixels of the canvas, so that a resize serves, which takes a third of the time
    of a warp; against ``placement`` the tile is off by a pixel at most.
    """
    h, w = tile.shape[:2]
    (scale_x, scale_y), (x, y) = placement
    low = np.minimum((x, y), (x + scale_x * w, y + scale_y * h))
    high = np.maximum((x, y), (x + scale_x * w, y + scale_y * h))
    left, top = np.clip(np.rint(low), 0, canvas.shape[0]).astype(int)
    right, bottom = np.clip(np.rint(high), 0, canvas.shape[0]).astype(int)
    if right <= left or bottom <= top:
        return placement
    columns, drawn_x = _whole_pixels(scale_x, x, int(left), int(right), w)
    rows, drawn_y = _whole_pixels(scale_y, y, int(top), int(bottom), h)
    drawn = cv2.resize(tile[rows, columns], (int(right - left), int(bottom - top)), interpolation=cv2.INTER_LINEAR)
    # numpy copies pixels of three bytes backwards one by one, which takes 20 times as long.
    canvas[top:bottom, left:right] = cv2.flip(drawn, 1) if scale_x < 0 else drawn
    return Placement((drawn_x[0], drawn_y[0]), (drawn_x[1], drawn_y[1]))


def _whole_pixels(scale: float, offset: float, low: int, high: int, length: int) -> tuple[slice, tuple[float, float]]:
    """Which of a tile's ``length`` pixels along an axis fill ``low`` … ``high`` of the canvas, and the scale and offset
    with which they do."""
    ends = sorted(((low - offset) / scale, (high - offset) / scale))
    first = min(max(0, math.floor(ends[0] + _ROUNDING)), length - 1)
    last = max(min(length, math.ceil(ends[1] - _ROUNDING)), first + 1)
    exact = (high - low) / (last - first)
    return slice(first, last), (exact, low - exact * first) if scale > 0 else (-exact, low + exact * last)


def _moved(labels: ImageLabels, placement: Placement, ratio_xy: tuple[float, float], size: int) -> ImageLabels:
    scale = np.array(placement.scale_xy, np.float32) * np.array(ratio_xy, np.float32)
    offset = np.array(placement.offset_xy, np.float32)
    boxes, whole = _moved_boxes(labels.boxes_xyxy, scale, offset, size)
    sides = boxes[:, 2:] - boxes[:, :2]
    before = np.prod(whole[:, 2:] - whole[:, :2], axis=1)
    aspect = sides.max(axis=1, initial=0) / np.maximum(sides.min(axis=1, initial=np.inf), 1e-9)
    kept = (sides > _MIN_SIDE_PX).all(axis=1) & (np.prod(sides, axis=1) > _MIN_AREA_SHARE * before)
    kept &= aspect < _MAX_ASPECT
    keypoints = labels.keypoints[kept].copy()
    keypoints[..., :2] = keypoints[..., :2] * scale + offset
    inside = ((keypoints[..., :2] >= 0) & (keypoints[..., :2] < size)).all(axis=-1)
    keypoints[~inside, 2] = 0
    if scale[0] < 0:
        keypoints = keypoints[:, _FLIP_ORDER]
    crowds = _moved_boxes(labels.crowds_xyxy, scale, offset, size)[0]
    return ImageLabels(boxes[kept], keypoints, labels.labelled[kept], crowds)


def _moved_boxes(
    boxes_xyxy: NDArray[np.float32], scale: NDArray[np.float32], offset: NDArray[np.float32], size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes in the training image, clipped to it, and the same before clipping."""
    corners = boxes_xyxy.reshape(-1, 2, 2) * scale + offset
    whole = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return np.clip(whole, 0, size), whole
