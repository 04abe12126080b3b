from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from qtoolkit.data.rendering.camera import CameraOptions, encode_jpeg, take_photo
from qtoolkit.data.rendering.draws import Draws

CLEAN = CameraOptions(motion_blur=0, defocus=0, uneven_light=0, noise=0, grey=0)


@pytest.fixture
def edge():
    image = np.full((60, 80, 3), 60, np.uint8)
    image[:, 40:] = 180
    return image


def test_a_photo_has_the_shape_of_its_scene_and_does_not_change_it(edge):
    kept = edge.copy()
    for seed in range(20):
        photo = take_photo(edge, Draws(seed), CameraOptions(motion_blur=0.5, defocus=0.5))
        assert photo.shape == edge.shape and photo.dtype == np.uint8
    assert (edge == kept).all()


def test_noise_has_about_the_deviation_asked_for(edge):
    clean = take_photo(edge, Draws(4), CLEAN).astype(int)
    noisy = take_photo(edge, Draws(4), replace(CLEAN, noise=20.0)).astype(int)
    flat = (noisy - clean)[5:55, 5:30]
    assert 0.5 < flat.std() < 21.0
    assert abs(flat.mean()) < 1.5


def test_blur_softens_the_edge(edge):
    sharp = take_photo(edge, Draws(8), CLEAN)
    # The same seed draws other numbers for the tones once a blur is drawn: compare shares of the whole step.
    soft = take_photo(edge, Draws(8), replace(CLEAN, defocus=1.0))

    def steepest(photo):
        row = photo[30, :, 1].astype(int)
        return np.abs(np.diff(row)).max() / max(1, row.max() - row.min())

    assert steepest(soft) < steepest(sharp)


def test_noise_larger_than_its_tile_repeats_it():
    photo = take_photo(np.full((40, 1100, 3), 100, np.uint8), Draws(4), replace(CLEAN, noise=20.0))
    assert photo.shape == (40, 1100, 3)


def test_the_file_is_a_jpeg_of_a_quality_in_the_range(edge):
    sizes = [len(encode_jpeg(edge, Draws(1), replace(CLEAN, jpeg_quality=(q, q)))) for q in (20, 95)]
    assert sizes[0] < sizes[1]
    content = encode_jpeg(edge, Draws(1), CLEAN)
    assert content.startswith(b"\xff\xd8\xff")
    assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape == edge.shape
