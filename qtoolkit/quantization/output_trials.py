"""What each layer quantized alone changes at the outputs: poses by OKS, and noise block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.people import People
from qtoolkit.evaluation.decode import decode, output_blocks
from qtoolkit.evaluation.heads import Head
from qtoolkit.evaluation.nms import non_maximum_suppression
from qtoolkit.evaluation.oks import oks
from qtoolkit.quantization.pose_terms import CONFIDENT, FOUND, labelled, person_areas

__all__ = ["OutputJudge"]


@dataclass
class OutputJudge:
    """Collects losses of every layer while trials run.

    ``reference`` and ``blocks`` are the float results of the photos of the current group alone; ``people`` counts the
    reference poses of all photos.
    """

    head: Head
    sigmas: NDArray[np.floating[Any]]
    wants_oks: bool
    reference: dict[int, People] = field(default_factory=dict)
    blocks: dict[int, dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    energies: dict[int, dict[str, float]] = field(default_factory=dict)
    oks_losses: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    noise: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    people: int = 0
    _trying: bool = False

    def __call__(self, photo: int, layer: str | None, outputs: Mapping[str, NDArray[Any]]) -> None:
        if layer is None:
            self._keep_reference(photo, outputs)
            return
        self._trying = True
        if self.wants_oks and len(self.reference[photo]):
            self.oks_losses.setdefault(layer, []).append(self._pose_losses(photo, outputs))
        # Every trial of a layer comes from one thread at a time, so its own entries need no lock.
        sums = self.noise.setdefault(layer, {})
        for name, block in output_blocks(outputs, self.head).items():
            difference = (block - self.blocks[photo][name]).ravel()
            pair = np.array([np.dot(difference, difference), self.energies[photo][name]], np.float64)
            sums[name] = sums.get(name, np.zeros(2)) + pair

    def _keep_reference(self, photo: int, outputs: Mapping[str, NDArray[Any]]) -> None:
        # A float run behind trials opens a new group: nothing is compared with the old one any more.
        if self._trying:
            self.reference.clear()
            self.blocks.clear()
            self.energies.clear()
            self._trying = False
        self.blocks[photo] = output_blocks(outputs, self.head)
        self.energies[photo] = {name: _energy(block) for name, block in self.blocks[photo].items()}
        if self.wants_oks:
            confident = self._people(outputs, CONFIDENT)
            # A pose without a single sure keypoint has no OKS.
            self.reference[photo] = confident.select(np.flatnonzero(labelled(confident).any(axis=1)))
            self.people += len(self.reference[photo])

    def _people(self, outputs: Mapping[str, NDArray[Any]], score: float) -> People:
        people = decode(outputs, self.head, score)
        if self.head.nms_inside or self.head.kind == "heatmap":
            return people
        return people.select(non_maximum_suppression(people.boxes_xyxy, people.scores))

    def _pose_losses(self, photo: int, outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        reference, found = self.reference[photo], self._people(outputs, FOUND)
        if not len(found):
            return np.ones(len(reference))
        areas = person_areas(reference)
        similar = oks(reference.keypoints, found.keypoints, areas, labelled(reference), self.sigmas)
        return np.asarray(1.0 - similar.max(axis=1), np.float64)

    def nmse(self, layer: str) -> float:
        """Mean over the blocks of noise energy / signal energy."""
        sums = self.noise.get(layer, {})
        ratios = [pair[0] / max(pair[1], 1e-30) for pair in sums.values()]
        return float(np.mean(ratios)) if ratios else 0.0

    def oks_loss(self, layer: str) -> float:
        """Mean of 1 − OKS over all people."""
        losses = self.oks_losses.get(layer, [])
        return float(np.concatenate(losses).mean()) if losses else 0.0


def _energy(block: NDArray[np.float32]) -> float:
    """Sum of squares."""
    flat = block.ravel()
    return float(np.dot(flat, flat))
