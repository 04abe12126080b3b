"""Batches of a fine-tuning: the same in every run, cut into parts with their own people."""

from __future__ import annotations

import cv2
import pytest
import torch

from qtoolkit.data.sources import open_data_source
from qtoolkit.training import tuning_batches
from qtoolkit.training.dataset import TrainingSet, read_labelled_images
from qtoolkit.training.image_cache import ImageCache
from qtoolkit.training.recipe import Augmentation
from qtoolkit.training.tuning_batches import LabelledBatches, PlainBatches, TuningBatch


@pytest.fixture
def batches(make_people, tmp_path):
    """``batches(kind)``: two images a batch, 64 × 64 pixels."""
    data = make_people()
    found = read_labelled_images(open_data_source(data))

    def make(kind):
        if kind == "plain":
            return PlainBatches([sample.path for sample in found.samples], 2, 0, (64, 64))
        cache = ImageCache(found.samples, 64, tmp_path).__enter__()
        return LabelledBatches(TrainingSet(cache, found.labels, Augmentation(mosaic=0.0), 64, 0), 2, 64)

    return make


@pytest.mark.parametrize("kind", ["plain", "labelled"])
def test_a_run_that_starts_later_sees_the_same_batches(batches, kind):
    whole = list(batches(kind).batches(0, 6))
    rest = list(batches(kind).batches(3, 6))
    assert len(whole) == 6
    for wanted, found in zip(whole[3:], rest, strict=True):
        assert wanted.images.shape == (2, 3, 64, 64)
        assert torch.equal(wanted.images, found.images)
        assert (wanted.targets is None) == (kind == "plain")
        if wanted.targets is not None:
            assert torch.equal(wanted.targets.keypoints, found.targets.keypoints)
    assert not torch.equal(whole[0].images, whole[1].images)


def test_for_a_gpu_many_threads_prepare_the_same_batches(make_people, monkeypatch):
    paths = sorted((make_people() / "train").iterdir())
    pinned = []
    monkeypatch.setattr(TuningBatch, "pinned", lambda batch: pinned.append(batch) or batch)
    monkeypatch.setattr(tuning_batches, "logical_cores", lambda: 5)
    threads = cv2.getNumThreads()
    wanted = list(PlainBatches(paths, 2, 0, (64, 64)).batches(2, 40))
    assert not pinned
    found = list(PlainBatches(paths, 2, 0, (64, 64), torch.device("cuda")).batches(2, 40))
    assert len(found) == len(pinned) == 38
    assert all(torch.equal(one.images, other.images) for one, other in zip(wanted, found, strict=True))
    assert cv2.getNumThreads() == threads


def test_no_more_wait_than_memory_allows(make_people, monkeypatch):
    paths = sorted((make_people() / "train").iterdir())
    made = []
    monkeypatch.setattr(TuningBatch, "pinned", lambda batch: made.append(batch) or batch)
    monkeypatch.setattr(tuning_batches, "logical_cores", lambda: 16)
    monkeypatch.setattr(tuning_batches, "_AHEAD_BYTES", 4 * 2 * 3 * 64 * 64 * 4)
    waiting = PlainBatches(paths, 2, 0, (64, 64), torch.device("cuda")).batches(0, 100)
    next(waiting)
    waiting.close()
    # Four ahead, and the one that took the place of the first.
    assert len(made) <= 5


def test_a_batch_moves_with_its_people(batches):
    moved = batches("labelled").batch(0).to(torch.device("meta"))
    assert moved.images.device.type == moved.targets.keypoints.device.type == "meta"
    assert batches("plain").batch(0).to(torch.device("meta")).images.device.type == "meta"


def test_labelled_images_are_bytes_from_0_to_1_with_people_inside(batches):
    batch = batches("labelled").batch(0)
    assert 0 <= batch.images.min() < batch.images.max() <= 1
    assert len(batch.targets.boxes) > 0
    assert batch.targets.boxes.min() >= 0
    assert batch.targets.boxes.max() <= 64


def test_every_labelled_image_comes_before_any_comes_again(batches):
    some = batches("labelled")
    seen = []
    some._images.batch = lambda chosen, *_: seen.extend(chosen.tolist())
    whole_batches = len(some._images) // 2
    for index in range(whole_batches):
        with pytest.raises((TypeError, AttributeError)):
            some.batch(index)
    assert len(seen) == len(set(seen)) == 2 * whole_batches


def test_parts_keep_their_own_people(batches):
    batch = batches("labelled").batch(1)
    parts = batch.parts(1)
    assert [len(part) for part in parts] == [1, 1]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    for index, part in enumerate(parts):
        own = batch.targets.person_image == index
        assert torch.equal(part.targets.boxes, batch.targets.boxes[own])
        assert torch.equal(part.targets.keypoints, batch.targets.keypoints[own])
        assert not part.targets.person_image.any()


def test_plain_parts_have_no_people(batches):
    assert [part.targets for part in batches("plain").batch(0).parts(1)] == [None, None]
