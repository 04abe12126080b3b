"""Keep the people a network found on a data set: a compressed npz, ids and flat arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from qtoolkit.data.people import People
from qtoolkit.errors import InputFileError, UsageError
from qtoolkit.numerics.npz import read_npz, write_npz

__all__ = ["read_predictions", "write_predictions"]


def write_predictions(path: str | os.PathLike[str], predictions: Mapping[int, People]) -> None:
    """Write image id → People. All people must have the same number of keypoints."""
    ids = np.array(list(predictions), np.int64)
    everybody = list(predictions.values())
    counts = np.array([len(people) for people in everybody], np.int64)
    k = everybody[0].keypoint_count if everybody else 0
    boxes_xyxy = np.concatenate([np.zeros((0, 4), np.float32), *(people.boxes_xyxy for people in everybody)])
    scores = np.concatenate([np.zeros(0, np.float32), *(people.scores for people in everybody)])
    keypoints = np.concatenate([np.zeros((0, k, 3), np.float32), *(people.keypoints for people in everybody)])
    arrays = {"ids": ids, "counts": counts, "boxes_xyxy": boxes_xyxy, "scores": scores, "keypoints": keypoints}
    write_npz(path, arrays)


def read_predictions(path: str | os.PathLike[str]) -> dict[int, People]:
    """Read what ``write_predictions`` wrote. Raises InputFileError for a missing or damaged file."""
    try:
        arrays = read_npz(path)
        counts, boxes, scores, keypoints = (arrays[name] for name in ("counts", "boxes_xyxy", "scores", "keypoints"))
        ends = np.cumsum(counts)
        if int(counts.sum()) != len(scores):
            raise ValueError(f"{int(counts.sum())} people counted, {len(scores)} stored")
        spans = zip(arrays["ids"], ends - counts, ends, strict=True)
        return {int(i): People(boxes[a:b], scores[a:b], keypoints[a:b]) for i, a, b in spans}
    except (InputFileError, KeyError, ValueError, TypeError, IndexError, UsageError) as error:
        raise InputFileError(
            f"the predictions {path} cannot be read",
            expected="an npz file that qtool wrote",
            found=getattr(error, "found", None) or " ".join(str(error).split())[:200],
            do="delete it and run the evaluation again",
        ) from error
