"""How far a network's outputs lie from those of the float network, each kind of output relative to a noise of its own.

A head of rows (YOLOv8's and YOLOv5's) is judged behind its decoding, where a number has a unit: in front of it boxes
may be logits of bins, and which channel is a score only the head knows. Block by block (``decode.output_blocks``)::

    error = Σ_a w_a · Σ (Δ / size_a)²        w_a = score of row a in the float network + 0.01

with size_a the root of the row's box area (at least 16 pixels) for boxes and keypoints, 1 for confidences. Other heads
are judged by the outputs of the last layers, every value alike. ``loss`` is the mean over the blocks of error / noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.evaluation.decode import output_blocks
from qtoolkit.evaluation.head_layouts import Head

__all__ = ["OutputError"]

Outputs = Mapping[str, NDArray[Any]]
Errors = NDArray[np.float64]

_HAS_ROWS = frozenset({"yolov8-pose", "yolov5-pose"})
_BACKGROUND = 0.01
_SMALLEST_SIZE = 16.0


class OutputError:
    """The error of outputs on one photo; ``reference`` are the float network's.

    ``head`` of None, or one without rows: every tensor of ``reference`` is a block of its own.
    """

    def __init__(self, head: Head | None, reference: Outputs) -> None:
        self._head, self._reference = head, reference
        self._blocks = self._blocks_of(reference)
        self._weights = self._row_weights()

    @staticmethod
    def reads_rows(head: Head | None) -> bool:
        """Whether a head is judged behind its decoding; else the outputs of the last layers are needed."""
        return head is not None and head.kind in _HAS_ROWS

    def errors(self, outputs: Outputs) -> Errors:
        """Weighted squared error of each block, float64 (blocks,); tensors that are missing are the float ones."""
        found = self._blocks_of({**self._reference, **outputs})
        return np.array(
            [_weighted(found[name] - block, self._weights.get(name)) for name, block in self._blocks.items()]
        )

    def _blocks_of(self, outputs: Outputs) -> dict[str, NDArray[np.float32]]:
        if self._head is not None and self.reads_rows(self._head):
            return output_blocks(outputs, self._head)
        return {name: np.asarray(outputs[name], np.float32) for name in self._reference}

    def _row_weights(self) -> dict[str, NDArray[np.float32]]:
        """Weight of a squared difference in each row (A,), by block; none where every value counts alike."""
        if not self.reads_rows(self._head):
            return {}
        places = np.maximum(self._blocks["scores"], 0.0) + np.float32(_BACKGROUND)
        areas = np.maximum(self._blocks["boxes"][:, 2:].prod(axis=1), np.float32(_SMALLEST_SIZE**2))
        of_pixels = places / areas
        return {
            "boxes": of_pixels,
            "scores": places,
            "keypoints_xy": of_pixels,
            "keypoint_confidence": places,
        }


def _weighted(difference: NDArray[np.float32], weights: NDArray[np.float32] | None) -> float:
    if weights is None:
        return float(np.square(difference, dtype=np.float64).sum())
    by_row = np.square(difference).reshape(len(weights), -1).sum(axis=1, dtype=np.float64)
    return float(by_row @ weights)
