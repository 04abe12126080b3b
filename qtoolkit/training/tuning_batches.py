"""The batches that a fine-tuning sees: plain photos, or photos with labels. The same in every run."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from qtoolkit.backends.cores import logical_cores
from qtoolkit.training.dataset import TrainingSet
from qtoolkit.training.loader import batch_to_device
from qtoolkit.training.losses import Targets
from qtoolkit.training.photos import PhotoBatches

__all__ = ["LabelledBatches", "PlainBatches", "TuningBatch", "TuningBatches"]

_AHEAD = 2
# Pinned memory comes in powers of two: what waits may take twice as much.
_AHEAD_BYTES = 1 << 29
_CPU = torch.device("cpu")

BatchT = TypeVar("BatchT")


@dataclass(frozen=True, eq=False)
class TuningBatch:
    """``images`` (B, 3, H, W) float32 RGB 0–1, and the people on them in pixels; None where nothing is labelled."""

    images: Tensor
    targets: Targets | None = None

    def __len__(self) -> int:
        return len(self.images)

    def parts(self, images: int) -> list[TuningBatch]:
        """The batch in parts of so many images, the last may have fewer."""
        starts = range(0, len(self), images)
        return [TuningBatch(self.images[s : s + images], self._people(s, s + images)) for s in starts]

    def pinned(self) -> TuningBatch:
        """The batch in memory that a GPU reads by itself."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> TuningBatch:
        """The batch on ``device``. A pinned one travels while the processor goes on."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, function: Callable[[Tensor], Tensor]) -> TuningBatch:
        people = self.targets
        if people is not None:
            people = Targets(**{field.name: function(getattr(people, field.name)) for field in fields(people)})
        return TuningBatch(function(self.images), people)

    def _people(self, start: int, stop: int) -> Targets | None:
        """The people on images ``start`` … ``stop`` − 1, which are counted from 0 again."""
        if (every := self.targets) is None:
            return None
        person = (every.person_image >= start) & (every.person_image < stop)
        crowd = (every.crowd_image >= start) & (every.crowd_image < stop)
        return Targets(
            person_image=every.person_image[person] - start,
            boxes=every.boxes[person],
            keypoints=every.keypoints[person],
            labelled=every.labelled[person],
            crowd_image=every.crowd_image[crowd] - start,
            crowds_xyxy=every.crowds_xyxy[crowd],
        )


class TuningBatches(Protocol):
    """Batch i is a function of i alone, so that a run goes on where it stopped."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the images, pixels."""

    def batch(self, index: int) -> TuningBatch:
        """Batch ``index``. Raises DataSetError for a photo that cannot be read."""

    def batches(self, start: int, stop: int) -> Iterator[TuningBatch]:
        """Batches ``start`` … ``stop`` − 1, prepared ahead by threads of their own."""


class PlainBatches:
    """Views of photos as ``PhotoBatches`` draws them, at ``size_wh`` pixels.

    For a network on CUDA, ``device``, every core prepares them, and ``batches`` gives them in pinned memory; elsewhere
    one thread does: the cores are the network's. The pixels are the same.
    """

    def __init__(
        self, paths: Sequence[Path], batch: int, seed: int, size_wh: tuple[int, int], device: torch.device = _CPU
    ) -> None:
        self.size_wh = size_wh
        self._photos = PhotoBatches(paths, batch, seed)
        self._batch_bytes = batch * 3 * size_wh[0] * size_wh[1] * 4
        self._device = device

    def batch(self, index: int) -> TuningBatch:
        """Batch ``index``, without labels."""
        views = self._photos.batch(index, self.size_wh)
        return TuningBatch(torch.from_numpy(views).permute(0, 3, 1, 2))

    def batches(self, start: int, stop: int) -> Iterator[TuningBatch]:
        """As ``TuningBatches`` says."""
        if self._device.type != "cuda":
            return _prepared_ahead(self.batch, start, stop)
        return _prepared_by_all_cores(lambda index: self.batch(index).pinned(), start, stop, self._batch_bytes)


class LabelledBatches:
    """Training images and their people, ``size``² pixels. Every image comes once before any comes again."""

    def __init__(self, images: TrainingSet, batch: int, size: int) -> None:
        self.size_wh = (size, size)
        self._images, self._batch = images, batch

    def batch(self, index: int) -> TuningBatch:
        """Batch ``index`` with its people."""
        epoch, step = divmod(index, max(1, len(self._images) // self._batch))
        first = step * self._batch
        chosen = self._images.order(epoch)[np.arange(first, first + self._batch) % len(self._images)]
        batch = self._images.batch(chosen, epoch, first, self.size_wh[0], False)
        return TuningBatch(*batch_to_device(batch, _CPU, True))

    def batches(self, start: int, stop: int) -> Iterator[TuningBatch]:
        """As ``TuningBatches`` says."""
        return _prepared_ahead(self.batch, start, stop)


def _prepared_by_all_cores(make: Callable[[int], BatchT], start: int, stop: int, batch_bytes: int) -> Iterator[BatchT]:
    """As ``_prepared_ahead`` by a thread on each core, two batches ahead of each as far as memory goes."""
    cores = logical_cores()
    ahead = max(_AHEAD, min(2 * cores, _AHEAD_BYTES // batch_bytes))
    threads_before = cv2.getNumThreads()
    # OpenCV's own threads would take the cores from each other.
    cv2.setNumThreads(1)
    try:
        yield from _prepared_ahead(make, start, stop, min(cores, ahead), ahead)
    finally:
        cv2.setNumThreads(threads_before)


def _prepared_ahead(
    make: Callable[[int], BatchT], start: int, stop: int, workers: int = 1, ahead: int = _AHEAD
) -> Iterator[BatchT]:
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="photos"))
        # What nobody waits for any more is not prepared.
        stack.callback(pool.shutdown, cancel_futures=True)
        waiting = deque(pool.submit(make, index) for index in range(start, min(start + ahead, stop)))
        for index in range(start, stop):
            ready = waiting.popleft().result()
            if index + ahead < stop:
                waiting.append(pool.submit(make, index + ahead))
            yield ready
