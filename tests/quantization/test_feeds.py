from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from qtoolkit.data.letterbox import Letterbox
from qtoolkit.graph.load import NetworkInput, network_input
from qtoolkit.quantization import feeds
from qtoolkit.quantization.feeds import image_feeds


def save(path: Path, image_bgr: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(".png", image_bgr)[1].tobytes())
    return path


@pytest.fixture(scope="module")
def network(pose) -> NetworkInput:
    """``images`` (1, 3, 64, 64)."""
    return network_input(pose)


def test_colours_values_and_padding_of_a_photo_by_hand(tmp_path, network):
    # 32×16 pixels become 64×32, with 16 grey rows above and below. Blue, green, red: 255, 102, 0.
    path = save(tmp_path / "a.png", np.full((16, 32, 3), (255, 102, 0), np.uint8))
    (feed,) = image_feeds([path], network)
    assert list(feed) == ["images"]
    tensor = feed["images"]
    assert (tensor.shape, tensor.dtype) == ((1, 3, 64, 64), np.float32)
    np.testing.assert_allclose(tensor[0, :, 16:48].reshape(3, -1).T, np.tile([0, 0.4, 1], (32 * 64, 1)), atol=1e-6)
    np.testing.assert_allclose(tensor[0, :, :16], 114 / 255, atol=1e-6)
    np.testing.assert_allclose(tensor[0, :, 48:], 114 / 255, atol=1e-6)


@pytest.mark.parametrize("size_wh", [(80, 60), (60, 80), (64, 64), (7, 5)], ids=str)
def test_they_are_what_evaluation_feeds(tmp_path, network, size_wh):
    image_bgr = np.random.default_rng(0).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)
    (feed,) = image_feeds([save(tmp_path / "a.png", image_bgr)], network)
    letterbox = Letterbox.fit(size_wh, (64, 64))
    np.testing.assert_array_equal(feed["images"], letterbox.to_tensor(letterbox.apply(image_bgr)))


def test_a_network_that_is_wider_than_high(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((10, 20, 3), np.uint8))
    (feed,) = image_feeds([path], NetworkInput("x", (1, 3, 32, 96)))
    assert feed["x"].shape == (1, 3, 32, 96)


def test_unreadable_photos_are_left_out_and_the_order_stays(tmp_path, network):
    paths = [save(tmp_path / f"{i}.png", np.full((64, 64, 3), 51 * i, np.uint8)) for i in range(5)]
    paths[1].write_bytes(b"")
    paths[3].unlink()
    assert [float(feed["images"].max()) for feed in image_feeds(paths, network)] == pytest.approx([0, 0.4, 0.8])


def test_one_photo_at_a_time_is_read(tmp_path, network, monkeypatch):
    paths = [save(tmp_path / f"{i}.png", np.zeros((8, 8, 3), np.uint8)) for i in range(3)]
    read: list[str] = []
    original = feeds.read_image
    monkeypatch.setattr(feeds, "read_image", lambda path: (read.append(path.name), original(path))[1])
    photos = image_feeds(paths, network)
    assert read == []
    next(photos)
    assert read == ["0.png"]
    assert len(list(photos)) == 2
    assert read == ["0.png", "1.png", "2.png"]


def test_no_photo_gives_no_feed(network):
    assert list(image_feeds([], network)) == []
