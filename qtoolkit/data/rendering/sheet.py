"""A contact sheet: many rendered images on one, with their labels drawn over them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.skeletons import COCO17

__all__ = ["contact_sheet", "draw_labels"]

Image = NDArray[np.uint8]

_FINE = 4
_SEEN, _HIDDEN, _BOX = (90, 230, 60), (60, 60, 250), (235, 220, 90)
_LEFT, _RIGHT, _MIDDLE = (60, 170, 255), (255, 150, 60), (230, 230, 230)


def draw_labels(image: Image, boxes_xywh: NDArray[np.float64], keypoints: NDArray[np.float64]) -> Image:
    """A copy of ``image`` (h, w, 3) uint8 BGR with N boxes (N, 4) and keypoints (N, 17, 3), in its pixels.

    Bones of the person's left are orange, of its right blue; visible keypoints green, hidden ones red.
    """
    drawn = image.copy()
    for box, points in zip(boxes_xywh, keypoints, strict=True):
        left, top, width, height = (int(value) for value in box)
        cv2.rectangle(drawn, (left, top), (left + width - 1, top + height - 1), _BOX, 1)
        # Pixel centres have whole coordinates in OpenCV.
        places = [(round((x - 0.5) * 2**_FINE), round((y - 0.5) * 2**_FINE)) for x, y, _ in points.tolist()]
        for first, second in COCO17.links:
            if points[first, 2] > 0 and points[second, 2] > 0:
                # Left keypoints have odd numbers, right ones even; the nose is 0.
                sides = {0 if number == 0 else 2 - number % 2 for number in (first, second)} - {0}
                colour = _MIDDLE if len(sides) > 1 else _LEFT if sides == {1} else _RIGHT
                cv2.line(drawn, places[first], places[second], colour, 1, cv2.LINE_AA, _FINE)
        for place, visibility in zip(places, points[:, 2], strict=True):
            if visibility > 0:
                cv2.circle(drawn, place, 28, _SEEN if visibility == 2 else _HIDDEN, -1, cv2.LINE_AA, _FINE)
    return np.asarray(drawn, np.uint8)


def contact_sheet(images: Sequence[Image], row_height: int, width: int) -> Image:
    """The images in order, in rows of about ``row_height`` pixels; each row is scaled to be ``width`` pixels wide."""
    total = sum(_wide(image, row_height) for image in images)
    count = max(1, round(total / width))
    rows: list[list[Image]] = [[] for _ in range(count)]
    passed = 0
    for image in images:
        wide = _wide(image, row_height)
        # By the middle of each image, so that all rows are about as full.
        rows[min(count - 1, (2 * passed + wide) * count // (2 * total))].append(image)
        passed += wide
    return np.concatenate([_row(row, row_height, width) for row in rows if row])


def _wide(image: Image, height: int) -> int:
    rows, columns = image.shape[:2]
    return int(2 * columns * height + rows) // int(2 * rows)


def _row(images: list[Image], row_height: int, width: int) -> Image:
    natural = sum(_wide(image, row_height) for image in images)
    height = max(1, row_height * width // natural)
    row = np.empty((height, width, 3), np.uint8)
    edge, passed = 0, 0
    for image in images:
        passed += _wide(image, row_height)
        end = passed * width // natural
        if end > edge:
            row[:, edge:end] = cv2.resize(image, (end - edge, height), interpolation=cv2.INTER_AREA)
        edge = end
    return row
