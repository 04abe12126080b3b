"""Batches of photos: a function of seed and index, and views that lie where the matrix says."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from qtoolkit.errors import DataSetError
from qtoolkit.training.photos import PhotoBatches, letterboxed


@pytest.fixture
def photos(tmp_path):
    paths = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        image = np.random.default_rng(index).integers(0, 255, (40, 60, 3), np.uint8)
        cv2.imwrite(str(path), cv2.GaussianBlur(image, (9, 9), 0))
        paths.append(path)
    return paths


def test_a_batch_is_a_function_of_seed_and_index(photos):
    first, again, other = (PhotoBatches(photos, 3, seed) for seed in (7, 7, 8))
    assert first.batch(4, 64).shape == (3, 64, 64, 3)
    again.batch(0, 64)
    np.testing.assert_array_equal(first.batch(4, 64), again.batch(4, 64))
    assert not np.array_equal(first.batch(4, 64), other.batch(4, 64))
    assert not np.array_equal(first.batch(4, 64), first.batch(5, 64))


def test_a_run_that_starts_later_sees_the_same_batches(photos):
    whole = list(PhotoBatches(photos, 2, 1).batches(0, 6, [64] * 6))
    rest = list(PhotoBatches(photos, 2, 1).batches(3, 6, [64] * 6))
    assert len(whole) == 6
    for wanted, found in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(wanted, found)


def test_values_are_zero_to_one_and_no_two_views_are_alike(photos):
    batch = PhotoBatches(photos[:1], 6, 0).batch(0, 48)
    assert batch.dtype == np.float32
    assert 0 <= batch.min() < batch.max() <= 1
    assert all(not np.array_equal(batch[0], view) for view in batch[1:])


def test_every_photo_comes_before_any_comes_again(photos):
    batches = PhotoBatches(photos, 5, 3)
    seen = []
    batches._photo = lambda index: seen.append(index) or np.zeros((4, 4, 3), np.uint8)
    batches.batch(0, 32)
    batches.batch(1, 32)
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]


def test_letterboxed_photos_are_what_a_network_sees(photos):
    images = letterboxed(photos[:2], 32)
    assert images.shape == (2, 3, 32, 32)
    np.testing.assert_allclose(images[:, :, 0], 114 / 255)
    bgr = cv2.resize(cv2.imread(str(photos[0])), (32, 21), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(images[0, :, 5:26].transpose(1, 2, 0), bgr[..., ::-1] / 255, atol=1.01 / 255)


def test_a_photo_that_cannot_be_read(photos):
    photos[0].write_bytes(b"no image")
    with pytest.raises(DataSetError, match=r"0\.png"):
        PhotoBatches(photos[:1], 1, 0).batch(0, 32)
