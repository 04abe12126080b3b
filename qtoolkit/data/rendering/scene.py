"""A whole image: how many people, where, behind and before what, and the labels that come of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.rendering.background import draw_background
from qtoolkit.data.rendering.body import ADULT, BodyShape, draw_shape
from qtoolkit.data.rendering.camera import CameraOptions, encode_jpeg, take_photo
from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.figure import Person, paint_person, person_extent
from qtoolkit.data.rendering.kinematics import PosedBody, pose_body
from qtoolkit.data.rendering.labels import PersonLabel, label_people
from qtoolkit.data.rendering.outfit import Outfit, draw_colour, draw_outfit, scaled_colour
from qtoolkit.data.rendering.pose import POSE_WEIGHTS, draw_pose
from qtoolkit.data.rendering.props import DISTRACTORS, OCCLUDERS, Brush
from qtoolkit.data.rendering.shading import Light

__all__ = ["DIFFICULTIES", "MAX_PEOPLE", "DrawnScene", "SceneOptions", "draw_scene"]

Bytes = NDArray[np.uint8]

MAX_PEOPLE = 12

_TRIES = 5


@dataclass(frozen=True)
class SceneOptions:
    """How hard the images are. Heights are statures as shares of the image's long side; the rest are probabilities 0–1.

    people            (most people, weight): 1 to that many, from the entry before on
    heights           (lowest, highest, weight) of the tallest people of an image
    height_spread     how much smaller the others are, at most, as a share
    aspects           width over height of the image
    poses             (kind of pose, weight)
    turned_away       people whose yaw is drawn from all directions; the others face the camera more or less
    crowding          share of a person's box that another may cover before another place is tried
    occluders         before a person
    distractors       most things behind the people
    least_area_px     people with fewer visible pixels, at a long side of 320, are not drawn into the labels
    least_labelled_px people with fewer visible pixels, at 320, have a box but no keypoints
    """

    people: tuple[tuple[int, float], ...] = ((1, 78.0), (2, 16.0), (4, 5.0), (8, 0.7), (12, 0.3))
    heights: tuple[tuple[float, float, float], ...] = (
        (0.30, 0.55, 6.0),
        (0.55, 0.98, 87.0),
        (0.98, 1.3, 6.0),
        (1.3, 2.0, 1.0),
    )
    height_spread: float = 0.2
    aspects: tuple[float, ...] = (4 / 3, 4 / 3, 4 / 3, 3 / 2, 3 / 2, 1.0, 3 / 4, 3 / 4, 2 / 3, 16 / 9)
    poses: tuple[tuple[str, float], ...] = (
        ("standing", 54.0),
        ("walking", 28.0),
        ("running", 3.0),
        ("sitting", 2.5),
        ("arms raised", 10.0),
        ("bending", 0.5),
        ("crouching", 0.4),
        ("sports", 1.4),
        ("lying", 0.2),
    )
    turned_away: float = 0.03
    crowding: float = 0.04
    occluders: float = 0.04
    distractors: int = 3
    least_area_px: int = 40
    least_labelled_px: int = 256
    camera: CameraOptions = field(default_factory=CameraOptions)


_HARD = SceneOptions(
    people=((1, 44.0), (2, 32.0), (4, 18.0), (8, 4.0), (12, 2.0)),
    heights=((0.25, 0.50, 10.0), (0.50, 0.98, 74.0), (0.98, 1.4, 13.0), (1.4, 2.2, 3.0)),
    height_spread=0.25,
    poses=POSE_WEIGHTS,
    turned_away=0.15,
    crowding=0.12,
    occluders=0.12,
    distractors=4,
    camera=CameraOptions(motion_blur=0.08, longest_motion=0.015, defocus=0.12, noise=12.0),
)

DIFFICULTIES = {"usual": SceneOptions(), "hard": _HARD}
"""Name → options: what the default network is trained on, and people as hard as those of renderer 3."""


class DrawnScene(NamedTuple):
    """The photograph as a JPEG file, its (width, height), and the people that can be seen on it."""

    jpeg: bytes
    size_wh: tuple[int, int]
    people: tuple[PersonLabel, ...]


class _Figure(NamedTuple):
    """A person without a place; ``lifted`` off the ground, in statures, where it jumps."""

    body: PosedBody
    shape: BodyShape
    outfit: Outfit
    height_px: float
    kind: str
    lifted: float


class _Cast(NamedTuple):
    """A person with its place, and how it stands: the row of its lowest point and what it does."""

    person: Person
    ground: float
    kind: str
    box: tuple[float, float, float, float]


def draw_scene(draws: Draws, size: int, options: SceneOptions) -> DrawnScene:
    """Draw one image with a long side of ``size`` pixels."""
    aspect = draws.pick(options.aspects)
    size_wh = (size, max(16, round(size / aspect))) if aspect >= 1 else (max(16, round(size * aspect)), size)
    people, horizon = _place_people(draws, size_wh, options)
    image = draw_background(draws, size_wh, round(horizon))
    light = Light(draws.pick(((-0.75, -0.66), (0.75, -0.66), (0.0, -1.0), (-0.96, -0.28), (0.96, -0.28))),
                  draws.between(0.25, 1.0))  # fmt: skip
    _stand_behind(Brush(image), draws, people, horizon, options)
    _cast_shadows(image, people, light, draws)
    owner = np.zeros(size_wh[::-1], np.uint8)
    for index, cast in enumerate(people):
        if cast.kind == "sitting":
            _seat(Brush(image, owner), draws, cast)
        paint_person(image, owner, index, cast.person, light, draws)
        if draws.chance(options.occluders):
            _occlude(Brush(image, owner), draws, cast)
    photo = take_photo(image, draws, options.camera)
    scale = (size / 320) ** 2
    labels = label_people(
        [cast.person for cast in people], owner, options.least_area_px * scale, options.least_labelled_px * scale
    )
    return DrawnScene(encode_jpeg(photo, draws, options.camera), size_wh, labels)


def _place_people(draws: Draws, size_wh: tuple[int, int], options: SceneOptions) -> tuple[list[_Cast], float]:
    """People from far to near, and the row of the horizon, to which their feet are lower the nearer they are."""
    height = size_wh[1]
    lows = [1] + [most + 1 for most, _ in options.people]
    ranges = [((low, most), weight) for low, (most, weight) in zip(lows, options.people, strict=False)]
    count = min(MAX_PEOPLE, draws.integer(*draws.weighted(ranges)))
    lo, hi = draws.weighted([((lo, hi), weight) for lo, hi, weight in options.heights])
    tallest = draws.between(lo, hi) * max(size_wh)
    # Where the camera is held, in statures: at the horizon everybody is cut at that height.
    eye = draws.between(0.55, 1.25)
    pitch = min(40.0, max(-12.0, 30.0 * (eye - 0.9))) + draws.around(0.0, 3.0)
    feet = _feet_row(draws, height, tallest)
    horizon = feet - eye * tallest
    placed: list[_Cast] = []
    for number in range(count):
        share = 1.0 if number == 0 else 1.0 - options.height_spread * draws.unit()
        figure = _draw_figure(draws, share * tallest, pitch, options)
        for _ in range(_TRIES):
            cast = _placed(draws, figure, size_wh, horizon + eye * share * tallest)
            if all(_covered(cast.box, other.box) < options.crowding for other in placed):
                break
        placed.append(cast)
    return sorted(placed, key=lambda cast: cast.ground), horizon


def _feet_row(draws: Draws, height: int, tallest: float) -> float:
    """Row of the feet of the tallest person: on the ground if there is room, else with the head in the picture."""
    if tallest < 0.85 * height:
        return draws.between(max(0.62, 1.05 * tallest / height), 1.0) * height
    top = draws.between(-0.04, 0.25) if draws.chance(0.85) else draws.between(-0.5, 0.1)
    return tallest + top * height


def _draw_figure(draws: Draws, stature: float, pitch: float, options: SceneOptions) -> _Figure:
    shape = draw_shape(draws)
    child = shape.head_half_height > 1.12 * ADULT.head_half_height
    pose = draw_pose(draws, draws.weighted(options.poses))
    yaw = draws.between(-180.0, 180.0) if draws.chance(options.turned_away) else draws.around(0.0, 28.0)
    body = pose_body(shape, pose, yaw, pitch)
    # A child is smaller at the same place.
    height_px = stature * (draws.between(0.5, 0.85) if child else draws.between(0.93, 1.05))
    lifted = draws.between(0.0, 0.12) if pose.kind == "sports" and draws.chance(0.4) else 0.0
    return _Figure(body, shape, draw_outfit(draws, child=child), height_px, pose.kind, lifted)


def _placed(draws: Draws, figure: _Figure, size_wh: tuple[int, int], ground: float) -> _Cast:
    """The figure with its lowest point on row ``ground``, anywhere across the image where a part of it is inside."""
    width, height = size_wh
    tall = figure.height_px
    left, top, right, bottom = person_extent(figure.body, figure.shape)
    half = 0.5 * (right - left) * tall
    inside = min(0.35 * half if draws.chance(0.4) else 0.9 * half, 0.5 * width)
    x = draws.between(inside, width - inside) - 0.5 * (left + right) * tall
    y = ground - (bottom + figure.lifted) * tall
    # Those who sit, crouch or lie in a close-up would be below the picture.
    y -= max(0.0, y + top * tall - 0.62 * height)
    box = (x + left * tall, y + top * tall, x + right * tall, y + bottom * tall)
    person = Person(figure.body, figure.shape, figure.outfit, tall, (x, y))
    return _Cast(person, ground, figure.kind, box)


def _covered(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Share of the smaller of two boxes that the other covers."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return wide * high / min(areas)


def _stand_behind(brush: Brush, draws: Draws, people: list[_Cast], horizon: float, options: SceneOptions) -> None:
    """Things on the ground, further away than the furthest person, or floating where there is no ground."""
    width, _ = brush.size_wh
    nearest = people[0].ground if people else horizon
    tall = people[0].person.height_px if people else 0.5 * width
    for _ in range(draws.integer(0, options.distractors)):
        share = draws.between(0.45, 1.0)
        foot = (draws.between(-0.05, 1.05) * width, horizon + share * (nearest - horizon))
        draws.weighted(DISTRACTORS)(brush, draws, foot, share * tall)


def _occlude(brush: Brush, draws: Draws, cast: _Cast) -> None:
    """Something before this person and behind the next."""
    left, top, right, bottom = cast.box
    foot = (draws.between(left, right), bottom + draws.between(0.0, 0.08) * cast.person.height_px)
    size = cast.person.height_px
    # In a close-up what stands on the ground is out of the picture: let something be held or stand on a counter.
    if bottom > 1.15 * brush.size_wh[1]:
        foot = (foot[0], draws.between(max(0.6 * brush.size_wh[1], top), 1.1 * brush.size_wh[1]))
        size *= draws.between(0.3, 0.7)
    draws.weighted(OCCLUDERS)(brush, draws, foot, size)


def _seat(brush: Brush, draws: Draws, cast: _Cast) -> None:
    """A stool, a box or a bench under whoever sits."""
    size, (x, y) = cast.person.height_px, cast.person.origin
    half, top = size * draws.between(0.1, 0.4), y + 0.055 * size
    low = max(cast.box[3] - 0.02 * size, top + 0.05 * size)
    colour = draw_colour(draws)
    if draws.chance(0.5):
        brush.panel((x - half, top, x + half, low), colour, draws, draws.pick(("planks", "weave", "rough")))
    else:
        leg = max(1.5, 0.025 * size)
        for side in (-1, 1):
            brush.rod((x + side * (half - leg), top), (x + side * (half - leg), low), leg, colour)
        brush.panel((x - half, top, x + half, top + 0.05 * size), scaled_colour(colour, 1.1), draws, "weave")
    if draws.chance(0.35):
        brush.panel((x - half, top - 0.28 * size, x + half, top), scaled_colour(colour, 0.9), draws, "weave")


def _cast_shadows(image: Bytes, people: list[_Cast], light: Light, draws: Draws) -> None:
    """A soft dark patch on the ground under each person, away from the light."""
    strength = draws.integer(0, 110)
    height, width = image.shape[:2]
    step = max(2, round(max(width, height) / 160))
    mask = np.full((height // step + 1, width // step + 1), 128, np.uint8)
    for cast in people:
        if cast.ground > 1.1 * height or strength < 15:
            continue
        half = 0.5 * (cast.box[2] - cast.box[0])
        centre = (0.5 * (cast.box[0] + cast.box[2]) - 0.5 * light.direction[0] * half, cast.ground)
        points = (round(centre[0] / step), round(centre[1] / step))
        axes = (max(1, round(half / step)), max(1, round(0.07 * cast.person.height_px / step)))
        cv2.ellipse(mask, points, axes, 0, 0, 360, 128 - strength, -1)
    if int(mask.min()) < 128:
        soft = cv2.GaussianBlur(mask, (5, 5), 0)
        full: Any = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        cv2.multiply(image, cv2.merge((full, full, full)), image, scale=1.0 / 128.0)
