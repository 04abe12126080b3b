"""Keep the people a network found on a data set: a compressed npz, ids and flat arrays."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from qtoolkit.artifacts.files import atomic_path
from qtoolkit.data.people import People
from qtoolkit.errors import InputFileError, UsageError

__all__ = ["read_predictions", "write_predictions"]

# What numpy, zipfile and People raise for a file that is cut off, has wrong bytes somewhere, or is something else.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, IndexError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, UsageError),
)


def write_predictions(path: str | os.PathLike[str], predictions: Mapping[int, People]) -> None:
    """Write image id → People. All people must have the same number of keypoints."""
    ids = np.array(list(predictions), np.int64)
    everybody = list(predictions.values())
    counts = np.array([len(people) for people in everybody], np.int64)
    k = everybody[0].keypoint_count if everybody else 0
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            ids=ids,
            counts=counts,
            boxes_xyxy=np.concatenate([np.zeros((0, 4), np.float32), *(people.boxes_xyxy for people in everybody)]),
            scores=np.concatenate([np.zeros(0, np.float32), *(people.scores for people in everybody)]),
            keypoints=np.concatenate([np.zeros((0, k, 3), np.float32), *(people.keypoints for people in everybody)]),
        )


def read_predictions(path: str | os.PathLike[str]) -> dict[int, People]:
    """Read what ``write_predictions`` wrote. Raises InputFileError for a missing or damaged file."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            ends = np.cumsum(arrays["counts"])
            boxes, scores, keypoints = arrays["boxes_xyxy"], arrays["scores"], arrays["keypoints"]
            if int(arrays["counts"].sum()) != len(scores):
                raise ValueError(f"{int(arrays['counts'].sum())} people counted, {len(scores)} stored")
            spans = zip(arrays["ids"], ends - arrays["counts"], ends, strict=True)
            return {int(i): People(boxes[a:b], scores[a:b], keypoints[a:b]) for i, a, b in spans}
    except _UNREADABLE as error:
        raise InputFileError(
            f"the predictions {path} cannot be read",
            expected="an npz file that qtool wrote",
            found=" ".join(str(error).split())[:200] or type(error).__name__,
            do="delete it and run the evaluation again",
        ) from error
