"""Read photos, and say what is wrong with a file that is none.

Decoding is OpenCV's, the same as ``cv2.imread(path)``: three channels, 8 bit, turned as the EXIF orientation says. The
bytes are read and checked first, because OpenCV itself answers nothing but "no image" and, by version, hands out the
upper part of a truncated photo as if it were whole.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import DataSetError

__all__ = [
    "IMAGE_SUFFIXES",
    "decode_image",
    "image_fault",
    "image_size_wh",
    "list_images",
    "read_image",
    "read_image_bytes",
]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings, in lower case, of the files that ``list_images`` takes."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_OTHER_SIGNATURES = (b"BM", b"II*\x00", b"MM\x00*")
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND"
# Start-of-frame markers; C4, C8 and CC are tables, and no frames.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_APP1 = 0xDA, 0xE1
# What has no length behind it: a stuffed zero, TEM, the restart marks, start and end of image.
_JPEG_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
_EXIF_ORIENTATION = 0x0112
_SILENT = 0


def list_images(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the image files right inside ``folder``, by their ending (any case), sorted; subfolders are not entered.

    Names that start with a dot are left out: macOS puts such files beside photos on foreign disks. Raises DataSetError
    where the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return tuple(
                sorted(
                    entry.name
                    for entry in entries
                    if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
                    and not entry.name.startswith(".")
                    and not entry.is_dir()
                )
            )
    except OSError as error:
        raise DataSetError(
            f"the image folder {folder} cannot be read",
            expected="a folder of photos",
            found=error.strerror or str(error),
            do="correct the path of the images",
        ) from error


def read_image_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of an image file, checked as ``image_fault`` does, not decoded. Raises DataSetError saying why."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise _unusable(path, "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)) from error
    except ValueError as error:  # a name out of an annotation file may hold what no file system takes
        raise _unusable(path, f"not a file name: {error}") from error
    fault = image_fault(content)
    if fault:
        raise _unusable(path, fault)
    return content


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """A photo as (h, w, 3) uint8 BGR, equal to ``cv2.imread(path)``.

    Raises DataSetError naming the file and the reason: missing, empty, no image, truncated, damaged.
    """
    return decode_image(read_image_bytes(path), path)


def decode_image(content: bytes, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Bytes of an image file as (h, w, 3) uint8 BGR. Raises DataSetError naming ``path`` where that fails."""
    try:
        with _quiet_opencv():
            image: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise _unusable(path, f"refused by OpenCV: {getattr(error, 'err', '') or error}") from error
    if image is None:
        raise _unusable(path, "damaged or truncated: it cannot be decoded")
    result: NDArray[np.uint8] = image
    return result


def image_fault(content: bytes) -> str | None:
    """Why these bytes cannot be a whole image file, or None: found from the signature and the end, without decoding.

    A file that passes can still be damaged inside; only ``read_image`` finds that.
    """
    if not content:
        return "empty (0 bytes)"
    if content.startswith(_JPEG):
        scan = _jpeg_header(content)[1]
        if scan is None:
            return "truncated JPEG: it holds no picture"
        # Searched behind the header: the thumbnail in it has an end mark of its own.
        return None if content.rfind(_JPEG_END, scan) >= 0 else "truncated JPEG: it has no end mark"
    if content.startswith(_PNG):
        whole = content.rfind(_PNG_END, len(_PNG)) >= 0
        return None if whole else "truncated PNG: it has no end chunk"
    if content.startswith(_OTHER_SIGNATURES) or (content.startswith(b"RIFF") and content[8:12] == b"WEBP"):
        return None
    return f"not an image: it starts with {content[:12]!r}"


def image_size_wh(content: bytes, path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels of the image that ``decode_image`` would give, from the header of a JPEG or PNG file.

    Other formats, and PNG files that carry EXIF data, are decoded. Raises DataSetError as ``decode_image`` does.
    """
    size_wh: tuple[int, int] | None = None
    if content.startswith(_JPEG):
        size_wh = _jpeg_header(content)[0]
    elif content.startswith(_PNG) and content[12:16] == b"IHDR" and len(content) >= 24 and b"eXIf" not in content:
        width, height = struct.unpack(">II", content[16:24])
        size_wh = (width, height)
    if size_wh is None or min(size_wh) < 1:
        height, width = decode_image(content, path).shape[:2]
        size_wh = (width, height)
    return size_wh


def _jpeg_header(content: bytes) -> tuple[tuple[int, int] | None, int | None]:
    """Size (turned as EXIF says) and position of the first scan; None for what the header does not reach."""
    size_wh: tuple[int, int] | None = None
    orientation = 1
    position = 2
    while (position := content.find(b"\xff", position)) >= 0 and position + 4 <= len(content):
        marker = content[position + 1]
        if marker == 0xFF or marker in _JPEG_BARE:
            position += 1
            continue
        (length,) = struct.unpack_from(">H", content, position + 2)
        body = content[position + 4 : position + 2 + length]
        if marker == _JPEG_SCAN:
            return (size_wh[::-1] if size_wh and orientation >= 5 else size_wh), position
        if marker == _JPEG_APP1 and body.startswith(b"Exif\x00\x00"):
            orientation = _exif_orientation(body[6:])
        elif marker in _JPEG_FRAMES and len(body) >= 5:
            height, width = struct.unpack_from(">HH", body, 1)
            size_wh = (width, height)
        position += 2 + length
    return size_wh, None


def _exif_orientation(tiff: bytes) -> int:
    """Orientation 1–8 from the first directory of an EXIF block; 1 (upright) where it says nothing."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    with contextlib.suppress(struct.error):
        if order:
            (start,) = struct.unpack_from(order + "I", tiff, 4)
            (entries,) = struct.unpack_from(order + "H", tiff, start)
            for entry in range(start + 2, start + 2 + 12 * entries, 12):
                tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
                if tag == _EXIF_ORIENTATION:
                    return int(value) if 1 <= value <= 8 else 1
    return 1


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's own lines about a bad file off the terminal: the error raised here says it, and names the file."""
    # Its place depends on the version: 4.x has the two functions, 5.x a module of them.
    opencv: Any = cv2
    logging = opencv if hasattr(opencv, "setLogLevel") else opencv.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


def _unusable(path: str | os.PathLike[str], reason: str) -> DataSetError:
    return DataSetError(
        f"the image {path} cannot be used",
        expected="a whole JPEG, PNG, BMP, TIFF or WebP file",
        found=reason,
        do="replace the file, or take it out of the data set",
    )
