"""A small data set, a tiny network, and ``qtool`` called within the process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from qtoolkit.cli.main import cli
from qtoolkit.data.skeletons import COCO17

Qtool = Callable[..., Result]

QUICK = ("--metric", "sqnr", "--runs", "0", "--threads", "1", "--sensitivity-images", "2")
"""Options that keep a run of the pipeline short; a random network finds nobody to rank by."""


@pytest.fixture(scope="session")
def qtool() -> Qtool:
    """``qtool("eval", model, ...)``: result with exit_code, stdout, stderr; a bug is raised, not swallowed."""

    def call(*arguments: Any) -> Result:
        return CliRunner().invoke(cli, [str(each) for each in arguments], prog_name="qtool", catch_exceptions=False)

    return call


def write_photo(path: Path, seed: int) -> None:
    """A smooth random photo of 80×60 pixels, another for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", cv2.resize(coarse, (80, 60)))[1].tobytes())


def labels(images: int = 4, **changes: Any) -> dict[str, Any]:
    """COCO labels of photos 1.png, 2.png, … with one person each; ``changes`` go into the first person."""
    people: list[dict[str, Any]] = [
        {
            "id": place,
            "image_id": place,
            "category_id": 1,
            "bbox": [10, 10, 40, 40],
            "area": 1200.0,
            "iscrowd": 0,
            "num_keypoints": 17,
            "keypoints": [value for k in range(17) for value in (12 + 2 * k, 14 + k, 2)],
        }
        for place in range(1, images + 1)
    ]
    people[0] |= changes
    return {
        "images": [{"id": p, "file_name": f"{p}.png", "width": 80, "height": 60} for p in range(1, images + 1)],
        "annotations": people,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.keypoint_names), "skeleton": []}],
    }


def write_data_set(root: Path, document: dict[str, Any] | None = None) -> Path:
    """Four labelled photos to evaluate on, three to calibrate on, a dataset.yaml."""
    for seed in range(1, 5):
        write_photo(root / "val" / f"{seed}.png", seed)
    for seed in range(11, 14):
        write_photo(root / "calib" / f"{seed}.png", seed)
    (root / "val.json").write_text(json.dumps(labels() if document is None else document))
    (root / "dataset.yaml").write_text(
        "kind: coco-keypoints\nname: tiny\nval: {images: val, annotations: val.json}\ncalib: {images: calib}\n"
    )
    return root


@pytest.fixture(scope="session")
def make_labels() -> Callable[..., dict[str, Any]]:
    """``make_labels(images, **changes)``."""
    return labels


@pytest.fixture(scope="session")
def make_data_set() -> Callable[..., Path]:
    """``make_data_set(root, document)``."""
    return write_data_set


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """Options that keep a run of the pipeline short."""
    return QUICK


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A data set of the test's own, which it may damage."""
    return write_data_set(tmp_path / "people")


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory, tiny_pose_model: Callable[..., onnx.ModelProto]) -> Path:
    """tiny.onnx: a YOLOv8-pose of random weights at 64×64."""
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    onnx.save(tiny_pose_model(activation="relu"), path)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, network: Path, qtool: Qtool) -> tuple[Path, Path, Result]:
    """A whole run of ``qtool quantize --mixed 0.3``: (data set, output folder, result). Copy before changing."""
    root = tmp_path_factory.mktemp("finished")
    data, out = write_data_set(root / "people"), root / "out"
    return data, out, qtool("quantize", network, "--data", data, "--mixed", "0.3", "--out", out, *QUICK)
