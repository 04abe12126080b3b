"""Object keypoint similarity: how near two poses are, in units of what people can tell apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError

__all__ = ["oks"]


def oks(
    keypoints_a: NDArray[np.floating],
    keypoints_b: NDArray[np.floating],
    areas: NDArray[np.floating],
    visibility: NDArray[np.generic],
    sigmas: NDArray[np.floating],
) -> NDArray[np.float64]:
    """OKS (N, M) float64, 0–1, of M poses against N reference poses.

    ::

        OKS[n, m] = mean over the keypoints i that are labelled in n of exp(−d² / (2 · area[n] · (2·sigma[i])²))

    keypoints_a  (N, K, 2 or 3) reference poses: x, y, and a third column that is not read; pixels of any one frame
    keypoints_b  (M, K, 2 or 3) poses to compare; the same frame
    areas        (N,) area of each reference person, pixels²
    visibility   (N, K) > 0 or True where the reference keypoint is labelled
    sigmas       (K,) tolerance of each keypoint

    A reference person without a labelled keypoint has OKS 0 with everyone. (COCO measures the distance to its box
    instead, only to decide what to ignore; ``coco_ap`` leaves that to pycocotools.) Source: cocodataset.org,
    keypoint evaluation, and pycocotools' ``COCOeval.computeOks``, machine epsilon on the area included. Raises
    UsageError where shapes contradict each other.
    """
    _check_shapes(keypoints_a, keypoints_b, areas, visibility, sigmas)
    n, k = keypoints_a.shape[:2]
    a = np.asarray(keypoints_a, np.float64)[:, None, :, :2]
    b = np.asarray(keypoints_b, np.float64)[None, :, :, :2]
    squared_distance = np.square(a - b).sum(axis=-1)
    # Divided one after the other, not by a product, as pycocotools does: equal to its figures to the last digits.
    exponent = squared_distance / np.square(2 * np.asarray(sigmas, np.float64))
    exponent /= (np.asarray(areas, np.float64) + np.spacing(1))[:, None, None]
    labelled = (np.asarray(visibility) > 0).reshape(n, 1, k)
    similar = np.where(labelled, np.exp(-exponent / 2), 0.0).sum(axis=-1)
    return np.asarray(similar / np.maximum(labelled.sum(axis=-1), 1), np.float64)


def _check_shapes(
    keypoints_a: NDArray[np.floating],
    keypoints_b: NDArray[np.floating],
    areas: NDArray[np.floating],
    visibility: NDArray[np.generic],
    sigmas: NDArray[np.floating],
) -> None:
    shapes = [np.shape(array) for array in (keypoints_a, keypoints_b, areas, visibility, sigmas)]
    a, b = shapes[:2]
    poses = len(a) == len(b) == 3 and a[2] in (2, 3) and b[2] in (2, 3) and a[1] == b[1]
    if not poses or shapes[2:] != [a[:1], a[:2], a[1:2]]:
        names = ("keypoints_a", "keypoints_b", "areas", "visibility", "sigmas")
        raise UsageError(
            "the arrays given to oks do not fit each other",
            expected="keypoints_a (N, K, 2 or 3), keypoints_b (M, K, 2 or 3), areas (N), visibility (N, K), sigmas (K)",
            found=", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True)),
            do="compare poses of one skeleton, with one area per reference pose",
        )
