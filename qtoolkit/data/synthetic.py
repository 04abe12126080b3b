"""Rendered people as data: one image with its labels by (seed, part, index), and what ``synthetic:N@seed`` means.

An image depends on the renderer's version, the part, the seed, its index and the size alone: image 7 of a hundred is
image 7 of a million. The parts val, calib and train share no image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.images import decode_image
from qtoolkit.data.rendering.draws import Draws
from qtoolkit.data.rendering.scene import DIFFICULTIES, SceneOptions, draw_scene
from qtoolkit.errors import UsageError

__all__ = [
    "DEFAULT_DIFFICULTY",
    "DEFAULT_SIZE",
    "MAX_IMAGES",
    "PARTS",
    "RENDERER_VERSION",
    "SIZES",
    "RenderedImage",
    "SyntheticSpec",
    "checked_size",
    "is_synthetic",
    "parse_spec",
    "render",
]

RENDERER_VERSION = 4
"""Goes up with every change of a pixel or a label: rendered sets of another version are other data."""

PARTS = ("val", "calib", "train")

DEFAULT_SIZE = 320
"""Long side in pixels."""

DEFAULT_DIFFICULTY = "usual"
"""A key of ``scene.DIFFICULTIES``."""

SIZES = (64, 2048)
"""Smallest and largest long side."""

MAX_IMAGES = 1_000_000

_PREFIX = "synthetic:"
_SPEC = re.compile(r"synthetic:([1-9]\d{0,6})(?:@(\d{1,9}))?(?:/([1-9]\d{0,4}))?(?::(hard))?")


@dataclass(frozen=True, eq=False)
class RenderedImage:
    """One image and its N people, in pixels of the image, 0 at its edge.

    jpeg        the file; its pixels are what it decodes to
    size_wh     width and height
    boxes_xywh  (N, 4) float64   left, top, width, height around the visible pixels
    areas       (N,) float64     visible pixels
    keypoints   (N, 17, 3) float64 x, y, visibility 0 absent, 1 hidden, 2 visible
    """

    jpeg: bytes
    size_wh: tuple[int, int]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    keypoints: NDArray[np.float64]

    @property
    def image(self) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 BGR, decoded anew at every call."""
        return decode_image(self.jpeg, "a rendered image")

    def annotations(self) -> list[dict[str, Any]]:
        """One COCO annotation per person, without ids; numbers are those of the arrays, exactly."""
        records = []
        for box, area, keypoints in zip(self.boxes_xywh, self.areas, self.keypoints, strict=True):
            flat: list[float] = []
            for x, y, visibility in keypoints.tolist():
                flat += [x, y, int(visibility)]
            records.append(
                {
                    "category_id": 1,
                    "bbox": [int(value) for value in box],
                    "area": int(area),
                    "iscrowd": 0,
                    "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                    "keypoints": flat,
                    "segmentation": [],
                }
            )
        return records


def render(
    seed: int, index: int, part: str = "val", size: int = DEFAULT_SIZE, options: SceneOptions | None = None
) -> RenderedImage:
    """Render image ``index`` (≥ 0) of a part; ``size`` is its long side in pixels, ``options`` how hard it is.

    Raises UsageError for an unknown part, a negative seed or index, or a size outside ``SIZES``.
    """
    if part not in PARTS or min(seed, index) < 0:
        raise UsageError(
            "there is no such rendered image",
            expected=f"a part of {', '.join(PARTS)}, and seed and index of at least 0",
            found=f"part {part!r}, seed {seed}, index {index}",
            do="correct them",
        )
    draws = Draws(RENDERER_VERSION, PARTS.index(part), seed, index)
    scene = draw_scene(draws, checked_size(size), options or SceneOptions())
    people = scene.people
    return RenderedImage(
        jpeg=scene.jpeg,
        size_wh=scene.size_wh,
        boxes_xywh=np.array([person.box_xywh for person in people], np.float64).reshape(-1, 4),
        areas=np.array([person.area for person in people], np.float64),
        keypoints=np.array([person.keypoints for person in people], np.float64).reshape(-1, 17, 3),
    )


@dataclass(frozen=True)
class SyntheticSpec:
    """``synthetic:COUNT@SEED/SIZE:hard``: how many images to evaluate on, of which seed, how large and how hard."""

    count: int
    seed: int = 0
    size: int = DEFAULT_SIZE
    difficulty: str = DEFAULT_DIFFICULTY

    @property
    def options(self) -> SceneOptions:
        """How the images are drawn."""
        return DIFFICULTIES[self.difficulty]

    @property
    def name(self) -> str:
        """The shortest text that means the same."""
        size = "" if self.size == DEFAULT_SIZE else f"/{self.size}"
        return f"{_PREFIX}{self.count}@{self.seed}{size}" + (":hard" if self.difficulty == "hard" else "")


def is_synthetic(text: str | Path) -> bool:
    """Whether this asks for rendered people, rightly or not, and is no path."""
    return str(text).startswith(_PREFIX)


def parse_spec(text: str) -> SyntheticSpec:
    """Read ``synthetic:N``, with ``@seed``, ``/SIZE`` and ``:hard`` behind it. Raises UsageError for anything else."""
    found = _SPEC.fullmatch(text)
    if not found or int(found[1]) > MAX_IMAGES:
        raise UsageError(
            "rendered people are asked for in a way that is not understood",
            expected="synthetic:N@seed, with /SIZE or :hard behind it, for example synthetic:200@1 "
            f"(at most {MAX_IMAGES} images)",
            found=text,
            do="give the number of images and a seed",
        )
    size = checked_size(int(found[3] or DEFAULT_SIZE))
    return SyntheticSpec(int(found[1]), int(found[2] or 0), size, found[4] or DEFAULT_DIFFICULTY)


def checked_size(size: int) -> int:
    """``size`` itself. Raises UsageError where images are not rendered so small or so large."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise UsageError(
            "images of this size are not rendered",
            expected=f"a long side of {SIZES[0]} to {SIZES[1]} pixels",
            found=str(size),
            do="give another size",
        )
    return size
