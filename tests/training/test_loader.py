"""Batches prepared ahead, in order."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from qtoolkit.errors import DataSetError
from qtoolkit.training.dataset import Batch
from qtoolkit.training.loader import batch_to_device, load_batches
from qtoolkit.training.schedule import BatchTask


class _Images:
    """Stands for a TrainingSet: a batch of one grey level; ``asked`` counts."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken
        self.asked = 0

    def batch(self, indices, epoch, first, size, mosaic) -> Batch:
        self.asked += 1
        if first == self.broken:
            raise DataSetError("the image cannot be used")
        none = np.zeros((0, 4), np.float32)
        images = np.full((len(indices), size, size, 3), first, np.uint8)
        points, people = np.zeros((0, 17, 3), np.float32), np.zeros(0, np.int64)
        return Batch(images, people, none, points, np.zeros(0, np.bool_), people, none)


def _tasks(count):
    return [BatchTask(np.arange(2), 0, first, 4, True) for first in range(count)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_batches_in_order(workers):
    found = [int(batch.images[0, 0, 0, 0]) for batch in load_batches(_Images(), _tasks(20), workers)]
    assert found == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_is_raised_where_its_batch_is_due(workers):
    loader = load_batches(_Images(broken=3), _tasks(9), workers)
    assert [int(next(loader).images[0, 0, 0, 0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataSetError, match="cannot be used"):
        next(loader)


def test_a_loader_that_is_closed_stops_and_gives_opencv_its_threads_back():
    before = cv2.getNumThreads()
    images = _Images()
    loader = load_batches(images, _tasks(1000), 2)
    next(loader)
    loader.close()
    assert cv2.getNumThreads() == before
    assert images.asked < 20


@pytest.mark.parametrize("channels_last", [True, False])
def test_bytes_become_the_input_of_the_network(channels_last):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    empty = np.zeros((0, 4), np.float32)
    people = np.array([1])
    batch = Batch(
        images,
        people,
        np.ones((1, 4), np.float32),
        np.ones((1, 17, 3), np.float32),
        np.array([True]),
        people[:0],
        empty,
    )
    tensor, targets = batch_to_device(batch, torch.device("cpu"), channels_last)
    assert torch.equal(tensor, torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))) / 255)
    assert tensor.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert targets.person_image.tolist() == [1]
    assert targets.labelled.dtype == torch.bool
