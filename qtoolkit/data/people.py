"""The people found in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError

__all__ = ["People"]


@dataclass(frozen=True, eq=False)
class People:
    """N people of one image, K keypoints each, in pixels of the original image (x right, y down, 0 at its edge).

    boxes_xyxy  (N, 4) float32    left, top, right, bottom
    scores      (N,) float32      confidence that this is a person, 0–1
    keypoints   (N, K, 3) float32 x, y, confidence 0–1

    Code that works in another frame (the network's input, before ``Letterbox.points_to_image``) says so where it does.
    Values of other types are converted to float32; shapes that contradict each other raise UsageError.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    keypoints: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name in ("boxes_xyxy", "scores", "keypoints"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float32))
        n = self.scores.shape[0] if self.scores.ndim == 1 else -1
        if n < 0 or self.boxes_xyxy.shape != (n, 4) or self.keypoints.ndim != 3 or self.keypoints.shape[::2] != (n, 3):
            raise UsageError(
                "the arrays of people do not fit each other",
                expected="boxes_xyxy (N, 4), scores (N,), keypoints (N, K, 3)",
                found=f"{self.boxes_xyxy.shape}, {self.scores.shape}, {self.keypoints.shape}",
                do="give one box, one score and K keypoints per person; People.empty(k) for nobody",
            )

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    @property
    def keypoint_count(self) -> int:
        """K, known even where N is 0."""
        return int(self.keypoints.shape[1])

    @classmethod
    def empty(cls, keypoint_count: int) -> People:
        """Nobody: N is 0, K is ``keypoint_count``."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, keypoint_count, 3), np.float32))

    def select(self, index: NDArray[np.intp] | NDArray[np.bool_] | Sequence[int] | slice) -> People:
        """The people at ``index``, in its order: integers (M,), a mask (N,) or a slice."""
        if not isinstance(index, (slice, np.ndarray)):
            # An empty list would otherwise become a float index, which numpy refuses.
            index = np.asarray(index, np.intp)
        return People(self.boxes_xyxy[index], self.scores[index], self.keypoints[index])

    def clipped(self, size_wh: tuple[int, int]) -> People:
        """The same people with boxes and keypoints moved into an image of ``size_wh`` pixels: 0 ≤ x ≤ w, 0 ≤ y ≤ h."""
        limit = np.array(size_wh, np.float32)
        keypoints = self.keypoints.copy()
        keypoints[..., :2] = np.clip(keypoints[..., :2], 0, limit)
        return People(np.clip(self.boxes_xyxy, 0, np.tile(limit, 2)), self.scores, keypoints)

    def to_records(self) -> list[dict[str, Any]]:
        """One dictionary per person, ready for JSON: box_xyxy (4), score, keypoints (K rows of x, y, confidence)."""
        return [
            {"box_xyxy": box, "score": score, "keypoints": keypoints}
            for box, score, keypoints in zip(
                self.boxes_xyxy.tolist(), self.scores.tolist(), self.keypoints.tolist(), strict=True
            )
        ]

    @classmethod
    def from_records(cls, records: Sequence[dict[str, Any]], keypoint_count: int) -> People:
        """People from what ``to_records`` gave, equal to the last bit; ``keypoint_count`` is K where N is 0."""
        if not records:
            return cls.empty(keypoint_count)
        return cls(
            np.array([record["box_xyxy"] for record in records], np.float32),
            np.array([record["score"] for record in records], np.float32),
            np.array([record["keypoints"] for record in records], np.float32),
        )
