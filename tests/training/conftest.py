"""A small labelled data set to train on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from qtoolkit.data.skeletons import COCO17

MakePeople = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share the cores: threads of torch that wait for each other take longer than one alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_people(tmp_path: Path) -> MakePeople:
    """``make_people(train=6, val=2, size_wh=(96, 72), change=None)``: a folder with a dataset.yaml.

    Each image is noise with one or two bright stick figures. ``change(document)`` may damage the labels of train.
    """

    def make(
        train: int = 6,
        val: int = 2,
        size_wh: tuple[int, int] = (96, 72),
        change: Callable[[dict[str, Any]], None] | None = None,
        name: str = "people",
    ) -> Path:
        root = tmp_path / name
        for part, count, seed in (("train", train, 1), ("val", val, 2)):
            (root / part).mkdir(parents=True)
            document = _draw_part(root / part, count, size_wh, seed)
            if part == "train" and change is not None:
                change(document)
            (root / f"{part}.json").write_text(json.dumps(document))
        (root / "dataset.yaml").write_text(
            "kind: coco-keypoints\n"
            "train: {images: train, annotations: train.json}\n"
            "val: {images: val, annotations: val.json}\n"
        )
        return root

    return make


def _draw_part(folder: Path, count: int, size_wh: tuple[int, int], seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    w, h = size_wh
    images, annotations = [], []
    for image_id in range(1, count + 1):
        pixels = random.integers(0, 80, (h, w, 3), np.uint8)
        for _ in range(1 + image_id % 2):
            points = _figure(random, w, h)
            for first, second in COCO17.links:
                ends = [tuple(int(value) for value in points[k]) for k in (first, second)]
                cv2.line(pixels, ends[0], ends[1], (200, 220, 255), 2)
            low, high = points.min(0), points.max(0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": float(np.prod(high - low)) * 0.6,
                    "iscrowd": 0,
                    "num_keypoints": 17,
                    "keypoints": np.concatenate([points, np.full((17, 1), 2)], axis=1).ravel().tolist(),
                }
            )
        name = f"{image_id}.png"
        cv2.imwrite(str(folder / name), pixels)
        images.append({"id": image_id, "file_name": name, "width": w, "height": h})
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.keypoint_names), "skeleton": []}
    return {"info": {}, "images": images, "annotations": annotations, "categories": [category]}


# Nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles of a standing figure of height 1.
_X = (0.0, 0.03, -0.03, 0.06, -0.06, 0.12, -0.12, 0.16, -0.16, 0.18, -0.18, 0.08, -0.08, 0.09, -0.09, 0.1, -0.1)
_Y = (0.08, 0.06, 0.06, 0.08, 0.08, 0.2, 0.2, 0.36, 0.36, 0.5, 0.5, 0.52, 0.52, 0.75, 0.75, 1.0, 1.0)


def _figure(random: np.random.Generator, w: int, h: int) -> np.ndarray:
    tall = random.uniform(0.6, 0.9) * h
    x, y = random.uniform(0.25 * w, 0.75 * w), random.uniform(0, h - tall)
    return np.round(np.stack([x + np.array(_X) * tall, y + np.array(_Y) * tall], axis=1), 2)
