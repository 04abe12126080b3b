"""Prepare training batches ahead of the network, and put them on its device."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import cv2
import torch
from torch import Tensor

from qtoolkit.training.dataset import Batch, TrainingSet
from qtoolkit.training.losses import Targets
from qtoolkit.training.schedule import BatchTask

__all__ = ["batch_to_device", "load_batches"]


def load_batches(images: TrainingSet, tasks: Iterable[BatchTask], workers: int) -> Generator[Batch, None, None]:
    """The batches of ``tasks`` in their order, prepared by ``workers`` threads, two of them ahead of each thread.

    Threads suffice: nearly all of the work is OpenCV's, which runs without Python's lock. ``workers`` 0 prepares each
    batch when it is asked for. Raises what preparing a batch raises (DataSetError). OpenCV's own threads are off
    meanwhile: they would take the cores that the network computes on.
    """
    if workers == 0:
        yield from (images.batch(*task) for task in tasks)
        return
    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    waiting = iter(tasks)
    with ThreadPoolExecutor(workers, thread_name_prefix="batch") as pool:
        try:
            ahead: deque[Future[Batch]] = deque(
                pool.submit(images.batch, *task) for task in islice(waiting, 2 * workers)
            )
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(images.batch, *task) for task in islice(waiting, 1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
            cv2.setNumThreads(threads_before)


def batch_to_device(batch: Batch, device: torch.device, channels_last: bool) -> tuple[Tensor, Targets]:
    """Images (B, 3, S, S) float32 RGB 0–1 and their people, on ``device``.

    Bytes travel, a quarter of the floats; they become floats on the device. The batch is channels-last as it is made.
    """

    def move(array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        if device.type == "cuda":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    images = move(batch.images).permute(0, 3, 1, 2)
    if not channels_last:
        images = images.contiguous()
    targets = Targets(
        person_image=move(batch.person_image),
        boxes=move(batch.boxes),
        keypoints=move(batch.keypoints),
        labelled=move(batch.labelled),
        crowd_image=move(batch.crowd_image),
        crowds_xyxy=move(batch.crowds_xyxy),
    )
    return images.to(torch.float32).div_(255), targets
