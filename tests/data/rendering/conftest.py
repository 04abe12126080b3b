"""Somebody to draw."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qtoolkit.data.rendering.body import ADULT
from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.figure import Person
from qtoolkit.data.rendering.kinematics import pose_body
from qtoolkit.data.rendering.outfit import draw_outfit
from qtoolkit.data.rendering.pose import Pose

SomeBody = Callable[..., Person]


@pytest.fixture
def somebody() -> SomeBody:
    """``somebody(yaw, pose, height_px, origin)``: an adult in the clothes of one seed, with short hair."""

    def make(
        yaw: float = 0.0,
        pose: Pose | None = None,
        height_px: float = 160.0,
        origin: tuple[float, float] = (100.0, 100.0),
        seed: int = 3,
    ) -> Person:
        outfit = draw_outfit(Draws(seed))
        worn = type(outfit)(**{**vars(outfit), "hair": "short", "skirt": 0.0})
        return Person(pose_body(ADULT, pose or Pose("standing"), yaw), ADULT, worn, height_px, origin)

    return make
