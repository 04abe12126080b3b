"""Photos decoded once."""

from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.images import read_image
from qtoolkit.data.sources import open_data_source
from qtoolkit.training import image_cache
from qtoolkit.training.dataset import read_labelled_images
from qtoolkit.training.image_cache import ImageCache, fitted_size_wh


@pytest.fixture
def samples(make_people):
    return read_labelled_images(open_data_source(make_people(train=4))).samples


@pytest.mark.parametrize(
    ("size_wh", "fitted"),
    [((640, 480), (320, 240)), ((480, 640), (240, 320)), ((100, 1), (320, 3)), ((999, 1), (320, 1))],
)
def test_the_longer_side_fits(size_wh, fitted):
    assert fitted_size_wh(size_wh, 320) == fitted


def test_a_photo_of_the_right_size_is_kept_as_it_is(samples, tmp_path):
    with ImageCache(samples, 96, tmp_path) as cache:
        assert np.array_equal(cache[2], read_image(samples[2].path))
        assert cache.ratio_xy(2) == (1, 1)


def test_a_photo_is_decoded_once(samples, tmp_path):
    with ImageCache(samples, 48, tmp_path) as cache:
        first = cache[1].copy()
        samples[1].path.unlink()
        assert np.array_equal(cache[1], first)
        assert first.shape == (36, 48, 3)
        assert cache.ratio_xy(1) == (0.5, 0.5)


def test_a_file_holds_what_memory_would(samples, tmp_path, monkeypatch):
    with ImageCache(samples, 64, tmp_path) as cache:
        in_memory = [cache[i].copy() for i in range(len(cache))]
    monkeypatch.setattr(image_cache, "_RAM_BYTES", 0)
    with ImageCache(samples, 64, tmp_path) as cache:
        assert (tmp_path / ".images.u8").exists()
        for i in (3, 0, 2, 1, 0):
            assert np.array_equal(cache[i], in_memory[i])
    assert not (tmp_path / ".images.u8").exists()


def test_beyond_the_limit_photos_are_decoded_every_time(samples, tmp_path):
    limit_gib = 2.5 * 48 * 36 * 3 / 2**30
    with ImageCache(samples, 48, tmp_path, limit_gib) as cache:
        before = [cache[i].copy() for i in range(4)]
        samples[1].path.unlink()
        samples[2].path.unlink()
        assert np.array_equal(cache[1], before[1])
        with pytest.raises(Exception, match=r"3\.png cannot be used"):
            cache[2]
