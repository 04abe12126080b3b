"""Times of what stands around an inference, on real photos: letterbox and normalise before, decode and NMS after."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.backends.runner import Runner
from qtoolkit.data.images import read_image
from qtoolkit.evaluation.pose_network import PoseNetwork, people_in_image

__all__ = ["NOISE_IMAGE_WH", "StageClock"]

NOISE_IMAGE_WH = (640, 480)
"""Size of the image of seeded noise that stands in where there are no photos."""


class StageClock:
    """Runs a pose network photo by photo as ``PoseNetwork.people`` does, with a clock between the stages.

    The photos are read and decoded once, beforehand: that is the camera's part. Raises HeadError where the network has
    no pose head, DataSetError for a photo that cannot be read.
    """

    def __init__(
        self, runner: Runner, paths: Sequence[Path], *, head: str | None, score_threshold: float, iou_threshold: float
    ) -> None:
        self._network = PoseNetwork.from_runner(runner, head, score_threshold, iou_threshold)
        self._images: list[NDArray[np.uint8]] = [read_image(path) for path in paths] or [_noise()]

    @property
    def head(self) -> str:
        """Kind of the pose head."""
        return self._network.head.kind

    @property
    def photos(self) -> int:
        """Number of photos, 1 for the image of noise."""
        return len(self._images)

    def time(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """Nanoseconds (before, inference, after) of ``count`` photos, from number ``first`` (modulo their number)."""
        network, clock = self._network, time.perf_counter_ns
        rows: list[tuple[int, int, int]] = []
        gc.disable()
        try:
            for index in range(first, first + count):
                image = self._images[index % len(self._images)]
                start = clock()
                feeds, letterbox = network.feeds(image)
                before = clock()
                outputs: dict[str, NDArray[Any]] = network.runner.infer(feeds, network.head.outputs)
                after = clock()
                people = people_in_image(
                    outputs,
                    network.head,
                    letterbox,
                    score_threshold=network.score_threshold,
                    iou_threshold=network.iou_threshold,
                    max_people=network.max_people,
                )
                rows.append((before - start, after - before, clock() - after))
                del feeds, outputs, people
        finally:
            gc.enable()
        return rows


def _noise() -> NDArray[np.uint8]:
    width, height = NOISE_IMAGE_WH
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
