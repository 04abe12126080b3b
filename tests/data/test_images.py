from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtoolkit.data.images import decode_image, image_fault, image_size_wh, list_images, read_image, read_image_bytes
from qtoolkit.errors import DataSetError

Photo = Callable[..., Path]


def encoded(suffix: str, size_wh: tuple[int, int] = (31, 17)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)
    return cv2.imencode(suffix, noise)[1].tobytes()


def with_exif(jpeg: bytes, orientation: int, order: str = "MM", thumbnail: bytes = b"") -> bytes:
    """The JPEG with an EXIF block that turns it, and whatever follows in that block."""
    endian: Any = "big" if order == "MM" else "little"
    fields = [(42, 2), (8, 4), (1, 2), (0x0112, 2), (3, 2), (1, 4), (orientation, 2), (0, 2), (0, 4)]
    tiff = order.encode() + b"".join(value.to_bytes(length, endian) for value, length in fields)
    block = b"Exif\0\0" + tiff + thumbnail
    return jpeg[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + jpeg[2:]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
def test_reading_equals_opencv(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(encoded(suffix))
    image = read_image(path)
    np.testing.assert_array_equal(image, cv2.imread(str(path)))
    assert (image.shape, image.dtype) == ((17, 31, 3), np.uint8)
    assert image_size_wh(path.read_bytes(), path) == (31, 17)


def test_a_grey_photo_becomes_three_channels(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    path.write_bytes(cv2.imencode(".png", np.arange(12, dtype=np.uint8).reshape(3, 4))[1].tobytes())
    assert read_image(path)[:, :, 2].tolist() == np.arange(12).reshape(3, 4).tolist()


@pytest.mark.parametrize("order", ["MM", "II"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_to_photo_and_size(tmp_path: Path, orientation: int, order: str) -> None:
    path = tmp_path / "turned.jpg"
    path.write_bytes(with_exif(encoded(".jpg"), orientation, order))
    image = read_image(path)
    np.testing.assert_array_equal(image, cv2.imread(str(path)))
    assert image.shape[:2] == ((17, 31) if orientation < 5 else (31, 17))
    assert image_size_wh(path.read_bytes(), path) == (image.shape[1], image.shape[0])


def test_a_name_in_another_script_is_read(tmp_path: Path) -> None:
    path = tmp_path / "фото 写真.png"
    path.write_bytes(encoded(".png"))
    assert read_image(path).shape == (17, 31, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "empty (0 bytes)", id="zero bytes"),
        pytest.param(b"not a photo at all", "not an image: it starts with b'not a photo '", id="text"),
        pytest.param(encoded(".jpg")[:-300], "truncated JPEG: it has no end mark", id="JPEG cut in the picture"),
        pytest.param(encoded(".jpg")[:60], "truncated JPEG: it holds no picture", id="JPEG cut in the header"),
        pytest.param(encoded(".png")[:-300], "truncated PNG: it has no end chunk", id="PNG cut"),
        pytest.param(b"RIFF\x10\0\0\0WAVEfmt ", "not an image: it starts with b'RIFF", id="sound"),
        pytest.param(
            with_exif(encoded(".jpg"), 1, thumbnail=encoded(".jpg", (8, 8)))[:-300],
            "truncated JPEG: it has no end mark",
            id="JPEG cut, with a whole thumbnail inside",
        ),
        pytest.param(encoded(".webp")[:-100], "damaged or truncated: it cannot be decoded", id="WebP cut"),
        pytest.param(encoded(".png")[:20] + encoded(".png")[-16:], "damaged or truncated", id="PNG without its middle"),
    ],
)
def test_bad_files_are_named_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, reason: str
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(DataSetError) as error:
        read_image(path)
    assert str(path) in error.value.what
    assert error.value.found is not None
    assert error.value.found.startswith(reason)
    assert "OpenCV" not in capfd.readouterr().err


def test_missing_files_folders_and_impossible_names(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="found: missing"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataSetError, match="found: Is a directory"):
        read_image(tmp_path)
    with pytest.raises(DataSetError, match="not a file name"):
        read_image_bytes(tmp_path / "a\0b.jpg")


def test_an_image_too_large_for_opencv_is_an_error_of_ours(tmp_path: Path) -> None:
    header = encoded(".png")
    huge = header[:16] + (2**30).to_bytes(4, "big") * 2 + header[24:]
    with pytest.raises(DataSetError, match="cannot be used"):
        decode_image(huge, tmp_path / "huge.png")


def test_opencv_logs_as_before_after_a_bad_file(tmp_path: Path) -> None:
    logging = cv2 if hasattr(cv2, "getLogLevel") else cv2.utils.logging
    before = logging.getLogLevel()
    with pytest.raises(DataSetError):
        decode_image(encoded(".webp")[:-100], tmp_path / "bad.webp")
    assert logging.getLogLevel() == before


def test_opencv_4_has_its_log_level_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [3]
    monkeypatch.setattr(cv2, "getLogLevel", lambda: levels[-1], raising=False)
    monkeypatch.setattr(cv2, "setLogLevel", levels.append, raising=False)
    monkeypatch.setattr(cv2, "utils", object())
    decode_image(encoded(".png"), tmp_path / "good.png")
    assert levels == [3, 0, 3]


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_behind_a_jpeg_start_break_the_check(tail: bytes) -> None:
    fault = image_fault(b"\xff\xd8\xff" + tail)
    assert fault is None or fault.startswith("truncated JPEG")


@settings(deadline=None)
@given(st.integers(0, len(encoded(".jpg")) - 1))
def test_a_jpeg_cut_anywhere_is_faulty(length: int) -> None:
    assert image_fault(encoded(".jpg")[:length]) is not None


def test_images_are_listed_by_name(tmp_path: Path, photo: Photo) -> None:
    for name in ("b.JPG", "a.png", "c.txt", "._a.png", "d.jpeg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.jpg").mkdir()
    photo(tmp_path / "sub" / "e.png")
    assert list_images(tmp_path) == ("a.png", "b.JPG", "d.jpeg")


def test_a_folder_that_is_not_there_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"image folder .*none cannot be read[\s\S]*No such file"):
        list_images(tmp_path / "none")


@pytest.mark.real
def test_real_photos_read_as_opencv_reads_them(real_data: Path) -> None:
    for path in sorted((real_data / "coco" / "images").glob("*.jpg"))[:20]:
        image = read_image(path)
        np.testing.assert_array_equal(image, cv2.imread(str(path)))
        assert image_size_wh(path.read_bytes(), path) == (image.shape[1], image.shape[0])
