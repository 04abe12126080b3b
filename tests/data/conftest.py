"""Tiny photos and labels for the tests of qtoolkit.data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from qtoolkit.data.skeletons import COCO17

Photo = Callable[..., Path]
Document = Callable[..., dict[str, Any]]


@pytest.fixture
def photo() -> Photo:
    """``photo(path, size_wh, shade)``: a photo of noise around a shade, another content for every shade."""

    def write(path: Path, size_wh: tuple[int, int] = (16, 12), shade: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(shade).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)
        encoded = cv2.imencode(path.suffix, noise)[1]
        path.write_bytes(encoded.tobytes())
        return path

    return write


@pytest.fixture
def document() -> Document:
    """``document(annotations, images)``: a COCO document; without arguments two images 16×12 and a person in each."""

    def build(annotations: Sequence[Any] | None = None, images: Sequence[Any] | None = None) -> dict[str, Any]:
        people = [person(1, 10), person(2, 20)] if annotations is None else list(annotations)
        listed = [image(20, "b.png"), image(10, "a.png")] if images is None else list(images)
        return {"info": {}, "images": listed, "annotations": people, "categories": [category()]}

    return build


@pytest.fixture
def person_record() -> Callable[..., dict[str, Any]]:
    """``person_record(annotation_id, image_id, **changes)``: one sound annotation."""
    return person


@pytest.fixture
def image_record() -> Callable[..., dict[str, Any]]:
    """``image_record(image_id, file_name)``: one sound entry of the image list, 16×12."""
    return image


@pytest.fixture
def coco_folder(tmp_path: Path, photo: Photo, document: Document) -> Path:
    """A data set as users keep it: dataset.yaml, two photos with labels, two to calibrate on, one without labels."""
    root = tmp_path / "people"
    for shade, name in enumerate(("images/a.png", "images/b.png", "calib/c.png", "calib/d.png", "more/e.png")):
        photo(root / name, shade=shade)
    (root / "val.json").write_text(json.dumps(document()))
    (root / "dataset.yaml").write_text(
        "kind: coco-keypoints\n"
        "val: {images: images, annotations: val.json}\n"
        "calib: {images: calib}\n"
        "unlabeled: {images: more}\n"
    )
    return root


@pytest.fixture
def real_data() -> Path:
    """The folder of real photos and networks beside the checkout."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real photos are not there: {folder}")
    return folder


def image(image_id: int, file_name: str) -> dict[str, Any]:
    return {"id": image_id, "file_name": file_name, "width": 16, "height": 12}


def person(annotation_id: int, image_id: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [1.5, 2.0, 8.0, 6.0],
        "area": 30.25,
        "iscrowd": 0,
        "num_keypoints": 2,
        "keypoints": [5, 6, 2, 7, 8, 1] + [0] * 45,
        "segmentation": [[1.0, 2.0, 9.0, 2.0, 9.0, 8.0]],
    } | changes


def category() -> dict[str, Any]:
    return {"id": 1, "name": "person", "keypoints": list(COCO17.keypoint_names), "skeleton": [[16, 14]]}
