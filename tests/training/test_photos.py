"""Batches of photos: a function of seed and index, and views that lie where the matrix says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from qtoolkit.data.letterbox import PAD_VALUE
from qtoolkit.errors import DataSetError
from qtoolkit.training import photos as photos_module
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
    assert first.batch(4, (64, 64)).shape == (3, 64, 64, 3)
    again.batch(0, (64, 64))
    np.testing.assert_array_equal(first.batch(4, (64, 64)), again.batch(4, (64, 64)))
    assert not np.array_equal(first.batch(4, (64, 64)), other.batch(4, (64, 64)))
    assert not np.array_equal(first.batch(4, (64, 64)), first.batch(5, (64, 64)))


def test_values_are_zero_to_one_and_no_two_views_are_alike(photos):
    batch = PhotoBatches(photos[:1], 6, 0).batch(0, (48, 48))
    assert batch.dtype == np.float32
    assert 0 <= batch.min() < batch.max() <= 1
    assert all(not np.array_equal(batch[0], view) for view in batch[1:])


def test_every_photo_comes_before_any_comes_again(photos):
    batches = PhotoBatches(photos, 5, 3)
    seen = []
    batches._photo = lambda index: seen.append(index) or np.zeros((4, 4, 3), np.uint8)
    batches.batch(0, (32, 32))
    batches.batch(1, (32, 32))
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]


def test_letterboxed_photos_are_what_a_network_sees(photos):
    images = letterboxed(photos[:2], (32, 32))
    assert images.shape == (2, 3, 32, 32)
    np.testing.assert_allclose(images[:, :, 0], 114 / 255)
    bgr = cv2.resize(cv2.imread(str(photos[0])), (32, 21), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(images[0, :, 5:26].transpose(1, 2, 0), bgr[..., ::-1] / 255, atol=1.01 / 255)


@pytest.mark.parametrize("size_wh", [(64, 64), (96, 48)], ids=["square", "wide"])
def test_a_dot_lands_where_the_matrix_says(size_wh):
    image = np.zeros((40, 60, 3), np.uint8)
    image[12:15, 40:43] = 255
    mirrored = set()
    for seed in range(12):
        matrix = photos_module._view_matrix((60, 40), size_wh, np.random.default_rng(seed))
        view = np.full((size_wh[1], size_wh[0], 3), np.nan, np.float32)
        photos_module._draw_view(image, np.random.default_rng(seed), view)
        x, y = matrix @ (41, 13, 1)
        if not (3 < x < size_wh[0] - 3 and 3 < y < size_wh[1] - 3):
            continue
        mirrored.add(bool(matrix[0, 0] < 0))
        inside = cv2.warpAffine(np.ones_like(image), matrix, size_wh)
        weight = np.where(inside.min(2) > 0, view.mean(2), 0)
        weight = np.where(weight > 0.6 * weight.max(), weight, 0)
        rows, columns = np.indices(weight.shape)
        assert abs((weight * columns).sum() / weight.sum() - x) < 0.75
        assert abs((weight * rows).sum() / weight.sum() - y) < 0.75
    assert mirrored == {True, False}


def test_light_and_colour_are_those_of_every_level():
    """Contrast, gain a channel and brightness of each pixel, cut at black and white."""
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    for seed in range(6):
        random = np.random.default_rng(seed)
        matrix = photos_module._view_matrix((60, 40), (64, 48), random)
        moved = cv2.warpAffine(image, matrix, (64, 48), flags=cv2.INTER_LINEAR, borderValue=(PAD_VALUE,) * 3)
        gain = (random.uniform(0.7, 1.3) * random.uniform(0.92, 1.08, 3)).astype(np.float32)
        expected = np.clip(moved * gain + np.float32(random.uniform(-20, 20)), 0, 255) / np.float32(255)
        view = np.empty((48, 64, 3), np.float32)
        photos_module._draw_view(image, np.random.default_rng(seed), view)
        np.testing.assert_array_equal(view, expected)
        assert view.dtype == np.float32 and view.min() >= 0 and view.max() <= 1


def test_decoded_photos_are_kept_up_to_a_limit(photos, monkeypatch):
    monkeypatch.setattr(photos_module, "_CACHE_BYTES", 2 * 40 * 60 * 3)
    batches = PhotoBatches(photos, 5, 0)
    first = batches.batch(0, (32, 32))
    assert len(batches._decoded) == 2
    np.testing.assert_array_equal(batches.batch(0, (32, 32)), first)


def test_a_photo_that_cannot_be_read(photos):
    photos[0].write_bytes(b"no image")
    with pytest.raises(DataSetError, match=r"0\.png"):
        PhotoBatches(photos[:1], 1, 0).batch(0, (32, 32))


def test_threads_may_ask_at_once(photos, monkeypatch):
    monkeypatch.setattr(photos_module, "_CACHE_BYTES", 2 * 40 * 60 * 3)
    wanted = [PhotoBatches(photos, 4, 0).batch(index, (32, 32)) for index in range(40)]
    shared = PhotoBatches(photos, 4, 0)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: shared.batch(index, (32, 32)), range(40)))
    np.testing.assert_array_equal(wanted, found)
    assert shared._decoded_bytes == sum(image.nbytes for image in shared._decoded.values()) <= 2 * 40 * 60 * 3
