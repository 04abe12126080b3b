"""Labels out of the map of who owns which pixel: box, area and the visibility of every keypoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.rendering.figure import Person, keypoints_of, owner_of
from qtoolkit.data.rendering.flesh import Label
from qtoolkit.data.skeletons import COCO17

__all__ = ["PersonLabel", "label_people"]

_HIDDEN, _SEEN = 1, 2


@dataclass(frozen=True, eq=False)
class PersonLabel:
    """One person as COCO labels it, in pixels of the image, 0 at its edge.

    box_xywh   left, top, width, height: tight around the visible pixels, whole numbers
    area       visible pixels
    keypoints  (17, 3) float64: x, y on a grid of 1/16 pixel, visibility 0, 1 or 2; x and y are 0 where visibility is
    """

    box_xywh: tuple[int, int, int, int]
    area: int
    keypoints: NDArray[np.float64]


def label_people(
    people: Sequence[Person], owner: NDArray[np.uint8], least_area: float, least_labelled: float
) -> tuple[PersonLabel, ...]:
    """Labels of the people who own at least ``least_area`` pixels of ``owner`` (h, w), in their order.

    A keypoint is 2 where its pixel shows its own part of the body, 1 behind another part of it, 0 outside the image.
    Behind another person or a thing it is 1 if a keypoint next to it on the body is seen, else 0: so do annotators, who
    guess a hidden elbow from the shoulder, but no leg from nothing. Whoever has fewer than ``least_labelled`` pixels or
    no visible keypoint keeps the box, and all visibilities are 0.
    """
    found = []
    for index, person in enumerate(people):
        mask = cv2.inRange(owner, owner_of(index, 1), owner_of(index, Label.COUNT - 1))
        area = cv2.countNonZero(mask)
        if area < max(1.0, least_area):
            continue
        left, top, width, height = cv2.boundingRect(mask)
        box = (left, top, width, height)
        keypoints = _keypoints(person, index, owner)
        if area < least_labelled or not (keypoints[:, 2] == _SEEN).any():
            keypoints = np.zeros((17, 3))
        found.append(PersonLabel(box, area, keypoints))
    return tuple(found)


def _keypoints(person: Person, index: int, owner: NDArray[np.uint8]) -> NDArray[np.float64]:
    points, shown = keypoints_of(person)
    height, width = owner.shape
    result = np.zeros((17, 3))
    covered = []
    for number, ((x, y), labels) in enumerate(zip(points.tolist(), shown, strict=True)):
        if 0 <= x < width and 0 <= y < height:
            label = int(owner[int(y), int(x)]) - owner_of(index, 0)
            result[number] = x, y, _SEEN if label in labels else _HIDDEN
            if not 0 < label < Label.COUNT:
                covered.append(number)
    visible = result[:, 2] == _SEEN
    for number in covered:
        if not visible[_NEIGHBOURS[number]].any():
            result[number] = 0.0
    return result


def _neighbours() -> tuple[list[int], ...]:
    """By the links of the skeleton; the five of the head all support each other."""
    found: list[set[int]] = [set() for _ in range(COCO17.keypoint_count)]
    for first, second in COCO17.links:
        found[first].add(second)
        found[second].add(first)
    for number in range(5):
        found[number] |= set(range(5)) - {number}
    return tuple(sorted(each) for each in found)


_NEIGHBOURS = _neighbours()
