"""One person, drawn into an image: painted part by part, shaded, and written into the map of who owns which pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.rendering.body import BodyShape
from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.flesh import Label, Part, build_parts, paint_of
from qtoolkit.data.rendering.head import EAR, EYE, NOSE, HeadView, draw_head
from qtoolkit.data.rendering.kinematics import PosedBody, Vector
from qtoolkit.data.rendering.outfit import Material, Outfit
from qtoolkit.data.rendering.shading import Light, shade_paints

__all__ = ["GRID", "Person", "keypoints_of", "owner_of", "paint_person", "person_extent"]

Bytes = NDArray[np.uint8]

GRID = 16
"""Coordinates are rounded to 1/16 pixel before anything is drawn or labelled: the last bit of a sine is nothing."""

_SHIFT = 4
_SEEN_TWICE_BELOW_PX = 14_000
_CIRCLE = np.array([(math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)) for k in range(16)])
# Labels that may show a keypoint, its own limbs first; the torso and the skirt only from the side where it is.
_OWN_LABELS: tuple[tuple[int, ...], ...] = (
    *(((Label.HEAD,),) * 5),
    (Label.LEFT_UPPER_ARM,),
    (Label.RIGHT_UPPER_ARM,),
    (Label.LEFT_UPPER_ARM, Label.LEFT_FOREARM),
    (Label.RIGHT_UPPER_ARM, Label.RIGHT_FOREARM),
    (Label.LEFT_FOREARM,),
    (Label.RIGHT_FOREARM,),
    (Label.LEFT_THIGH,),
    (Label.RIGHT_THIGH,),
    (Label.LEFT_THIGH, Label.LEFT_SHANK),
    (Label.RIGHT_THIGH, Label.RIGHT_SHANK),
    (Label.LEFT_SHANK,),
    (Label.RIGHT_SHANK,),
)
_SHARED_LABELS = {5: (Label.TORSO,), 6: (Label.TORSO,), 11: (Label.TORSO, Label.SKIRT), 12: (Label.TORSO, Label.SKIRT),
                  13: (Label.SKIRT,), 14: (Label.SKIRT,)}  # fmt: skip
_LEAST_FACING = {0: -0.2, 1: 0.05, 2: 0.05, 3: -0.2, 4: -0.2}


@dataclass(frozen=True)
class Person:
    """A body in its clothes at its place: ``height_px`` is the stature in pixels, ``origin`` where the pelvis is."""

    body: PosedBody
    shape: BodyShape
    outfit: Outfit
    height_px: float
    origin: tuple[float, float]


def owner_of(index: int, label: int) -> int:
    """The byte of the owner map for a part of person ``index`` (0–11); 0 is nobody."""
    return index * Label.COUNT + label


def person_extent(body: PosedBody, shape: BodyShape) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a body around its pelvis, in statures, y down."""
    points = [
        body.head,
        *body.elbows,
        *body.wrists,
        *body.finger_tips,
        *body.hips,
        *body.knees,
        *body.heels,
        *body.toes,
    ]
    xs, ys = [point[0] for point in points], [-point[1] for point in points]
    head, flesh = shape.head_half_height * 1.1, 0.03
    return (
        min(min(xs) - flesh, body.head[0] - head, -0.1 * shape.girth),
        min(min(ys) - flesh, -body.head[1] - head),
        max(max(xs) + flesh, body.head[0] + head, 0.1 * shape.girth),
        max(max(ys) + flesh, -body.head[1] + head),
    )


def keypoints_of(person: Person) -> tuple[NDArray[np.float64], list[tuple[int, ...]]]:
    """Where the 17 keypoints are, (17, 2) pixels of the image on the grid of 1/16, and which labels can show each."""
    body, view = person.body, _head_view(person, (0.0, 0.0), 1)
    places = [NOSE, EYE, (-EYE[0], EYE[1], EYE[2]), EAR, (-EAR[0], EAR[1], EAR[2])]
    points = [view.at(place) for place in places]
    for pair in (body.shoulders, body.elbows, body.wrists, body.hips, body.knees, body.ankles):
        points += [_seen_at(person, joint) for joint in pair]
    shown: list[tuple[int, ...]] = []
    for number, own in enumerate(_OWN_LABELS):
        if number in _LEAST_FACING:
            shown.append(own if view.facing(places[number]) > _LEAST_FACING[number] else ())
            continue
        side = 1 if number % 2 else -1
        frame = body.chest_frame if number in (5, 6) else body.pelvis_frame
        # Outward is left or right; seen straight from the other side, the far joint is behind the body.
        near = side * frame[6] > -0.55
        shown.append(own + _SHARED_LABELS.get(number, ()) if near else own)
    return np.rint(np.array(points) * GRID) / GRID, shown


def paint_person(image: Bytes, owner: Bytes, index: int, person: Person, light: Light, draws: Draws) -> None:
    """Draw a person over ``image`` (h, w, 3) uint8 BGR and its labels over ``owner`` (h, w) uint8, both in place.

    Small people are drawn at twice the size and brought down, so that thin arms are not ragged.
    """
    height, width = owner.shape
    left, top, right, bottom = person_extent(person.body, person.shape)
    margin = 0.04 * person.height_px + 2
    x0 = max(0, int(person.origin[0] + left * person.height_px - margin))
    y0 = max(0, int(person.origin[1] + top * person.height_px - margin))
    x1 = min(width, int(person.origin[0] + right * person.height_px + margin) + 1)
    y1 = min(height, int(person.origin[1] + bottom * person.height_px + margin) + 1)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    times = 2 if (x1 - x0) * (y1 - y0) < _SEEN_TWICE_BELOW_PX else 1
    paints = np.zeros(((y1 - y0) * times, (x1 - x0) * times), np.uint8)
    _paint_body(paints, person, (x0, y0), times)
    _paint_pattern(paints, person, draws, times)
    place = np.s_[y0:y1, x0:x1]
    behind = image[place]
    if times == 2:
        behind = np.asarray(cv2.resize(behind, paints.shape[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
    drawn = shade_paints(paints, person.body, person.outfit, person.height_px * times, light, draws)
    cv2.copyTo(behind, (paints == 0).view(np.uint8), drawn)
    if times == 2:
        drawn = np.asarray(cv2.resize(drawn, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA), np.uint8)
        paints = np.ascontiguousarray(paints[1::2, ::2])
    image[place] = drawn
    owners = cv2.LUT(paints, _owner_table(index))
    cv2.copyTo(owners, (paints != 0).view(np.uint8), owner[place])


def _owner_table(index: int) -> Bytes:
    labels = np.arange(256) >> 4
    return np.where(labels > 0, index * Label.COUNT + labels, 0).astype(np.uint8)


def _seen_at(person: Person, point: Vector) -> tuple[float, float]:
    return person.origin[0] + person.height_px * point[0], person.origin[1] - person.height_px * point[1]


def _head_view(person: Person, corner: tuple[float, float], times: int) -> HeadView:
    """The head in pixels of a canvas that starts at ``corner`` of the image and is ``times`` as large."""
    shape, frame = person.shape, person.body.head_frame
    x, y = _seen_at(person, person.body.head)
    scale = person.height_px * times

    directions = [(frame[column], -frame[3 + column], frame[6 + column]) for column in range(3)]
    half = (shape.head_half_width * scale, shape.head_half_height * scale, shape.head_half_depth * scale)
    return HeadView(((x - corner[0]) * times, (y - corner[1]) * times), directions, half)


def _paint_body(paints: Bytes, person: Person, corner: tuple[int, int], times: int) -> None:
    """Parts from far to near; the head takes its turn by the depth of its centre."""
    parts = build_parts(person.body, person.shape, person.outfit)
    stations = np.array([station for part in parts for station in part.stations])
    scale = person.height_px * times
    # Pixel centres have whole coordinates in OpenCV, hence the half pixel between the image's edge and its drawing.
    start = [(person.origin[axis] - corner[axis]) * times - 0.5 for axis in (0, 1)]
    flip = np.array((1.0, -1.0))
    centres = stations[:, None, 0:2] * flip
    halves = stations[:, None, 2:].reshape(-1, 1, 2, 2) * flip
    rims = centres + _CIRCLE[None, :, :1] * halves[:, :, 0] + _CIRCLE[None, :, 1:] * halves[:, :, 1]
    fixed = np.rint((rims * scale + start) * (1 << _SHIFT)).astype(np.int32)
    view = _head_view(person, (corner[0] + 0.5 / times, corner[1] + 0.5 / times), times)
    head_depth, head_drawn = person.body.head[2] + 0.02, False
    at = 0
    for part in parts:
        if not head_drawn and part.depth > head_depth:
            draw_head(paints, view, person.outfit)
            head_drawn = True
        _fill_part(paints, fixed[at : at + len(part.stations)], part)
        at += len(part.stations)
    if not head_drawn:
        draw_head(paints, view, person.outfit)


def _fill_part(paints: Bytes, rims: NDArray[np.int32], part: Part) -> None:
    """``rims`` (S, 16, 2) are the outlines of its stations, in 1/16 pixel."""
    first, last = 0, len(part.paints)
    while first < last:
        end = first + 1
        while part.bulging and end < last and part.paints[end] == part.paints[first]:
            end += 1
        hull = cv2.convexHull(rims[first : end + 1].reshape(-1, 2))
        cv2.fillConvexPoly(paints, hull, part.paints[first], cv2.LINE_8, _SHIFT)
        first = end


def _paint_pattern(paints: Bytes, person: Person, draws: Draws, times: int) -> None:
    """Stripes, bars, checks, dots or a print on the shirt, along the spine as it is seen."""
    pattern = person.outfit.pattern
    if pattern == "plain":
        return
    bottom, top = _seen_at(person, person.body.pelvis), _seen_at(person, person.body.shoulder_middle)
    spine = (top[0] - bottom[0], top[1] - bottom[1])
    length = math.sqrt(spine[0] ** 2 + spine[1] ** 2) or 1.0
    period = max(3.0, draws.between(0.022, 0.06) * person.height_px) * times
    turn = (4096.0 / period) / length
    rows, columns = np.arange(paints.shape[0], dtype=np.int32), np.arange(paints.shape[1], dtype=np.int32)
    along = np.add.outer(rows * round(spine[1] * turn), columns * round(spine[0] * turn))
    across = np.add.outer(rows * round(-spine[0] * turn), columns * round(spine[1] * turn))
    along, across = along & 4095, across & 4095
    share = draws.integer(1000, 2400)
    marked = {
        "stripes": lambda: along < share,
        "bars": lambda: across < share,
        "checks": lambda: (along < share) ^ (across < share),
        "dots": lambda: (along - 2048) ** 2 + (across - 2048) ** 2 < 1100**2,
        "print": lambda: _print_area(paints, person, times),
    }[pattern]()
    for label in (Label.TORSO, Label.LEFT_UPPER_ARM, Label.RIGHT_UPPER_ARM, Label.LEFT_FOREARM, Label.RIGHT_FOREARM):
        if pattern == "print" and label != Label.TORSO:
            break
        paints[(paints == paint_of(label, Material.SHIRT)) & marked] = paint_of(label, Material.SHIRT_MARK)


def _print_area(paints: Bytes, person: Person, times: int) -> NDArray[np.bool_]:
    """A badge on the chest, where the chest is seen."""
    area = np.zeros(paints.shape, np.uint8)
    frame = person.body.chest_frame
    if frame[8] > 0.15:
        rows, columns = np.nonzero(paints == paint_of(Label.TORSO, Material.SHIRT))
        if len(rows):
            centre = (int(columns.mean()), int(rows.mean() - 0.02 * person.height_px * times))
            radius = max(1, round(0.05 * person.height_px * times))
            cv2.ellipse(area, centre, (max(1, round(radius * frame[8])), radius), 0, 0, 360, 1, -1)
    return area > 0
