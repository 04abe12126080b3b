"""What the keypoints of a person are called, how they are joined, and how exactly each can be placed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError

__all__ = ["COCO17", "Skeleton"]


@dataclass(frozen=True, eq=False)
class Skeleton:
    """The K keypoints of one labelling convention.

    ``sigmas`` (K,) float64, read-only: per-keypoint tolerance, in units of the square root of the person's area, as OKS
    uses it. ``links`` and ``flip_pairs`` hold pairs of keypoint indices counted from 0: the lines that are drawn, and
    the keypoints that trade places when an image is mirrored. Raises UsageError where the parts contradict each other.
    """

    name: str
    keypoint_names: tuple[str, ...]
    sigmas: NDArray[np.float64]
    links: tuple[tuple[int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        sigmas = np.array(self.sigmas, np.float64)
        if sigmas.shape != (self.keypoint_count,) or not (sigmas > 0).all():
            raise UsageError(
                f"the sigmas of skeleton {self.name!r} do not fit its keypoints",
                expected=f"{self.keypoint_count} values above 0",
                found=f"shape {sigmas.shape}, lowest {sigmas.min() if sigmas.size else 'none'}",
                do="give one tolerance per keypoint name",
            )
        # A pair that points outside would only show up later, as a wrong keypoint in a mirrored image.
        outside = [pair for pair in self.links + self.flip_pairs if not all(0 <= k < self.keypoint_count for k in pair)]
        if outside:
            raise UsageError(
                f"skeleton {self.name!r} joins keypoints that it does not have",
                expected=f"indices from 0 to {self.keypoint_count - 1}",
                found=str(outside[0]),
                do="count keypoints from 0",
            )
        sigmas.setflags(write=False)
        object.__setattr__(self, "sigmas", sigmas)

    @property
    def keypoint_count(self) -> int:
        """K."""
        return len(self.keypoint_names)

    @property
    def flip_order(self) -> tuple[int, ...]:
        """Index of length K that puts the keypoints of a mirrored image back in this skeleton's order."""
        order = list(range(self.keypoint_count))
        for first, second in self.flip_pairs:
            order[first], order[second] = second, first
        return tuple(order)


# Names, links and their order: categories[0] of person_keypoints_val2017.json, links counted from 0 here.
# Sigmas: cocodataset.org/#keypoints-eval, the values of pycocotools' Params.kpt_oks_sigmas.
COCO17 = Skeleton(
    name="coco17",
    keypoint_names=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    sigmas=np.array(
        (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89)
    )
    / 10.0,
    links=(
        (15, 13),
        (13, 11),
        (16, 14),
        (14, 12),
        (11, 12),
        (5, 11),
        (6, 12),
        (5, 6),
        (5, 7),
        (6, 8),
        (7, 9),
        (8, 10),
        (1, 2),
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (4, 6),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
)
