"""The zip itself, and its runner on a machine that has numpy and the runtime only."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.data.images import list_images, read_image
from qtoolkit.data.skeletons import COCO17, Skeleton
from qtoolkit.deploy.bundle import write_bundle
from qtoolkit.errors import HeadError, UsageError
from qtoolkit.evaluation.end_to_end import write_end_to_end
from qtoolkit.evaluation.pose_network import PoseNetwork

_PROGRAM = """
import runpy, sys
sys.path[:0] = [{links!r}]
for name in ("qtoolkit", "onnx", "pydantic", "cv2", "PIL"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(name + " is there")
sys.argv = ["run_pose.py", *{images!r}]
runpy.run_path({runner!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def network(tiny_pose_model: Callable[..., onnx.ModelProto], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    onnx.save(tiny_pose_model(seed=4), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(3)
    paths = []
    for place, (h, w) in enumerate([(48, 64), (64, 64), (150, 101)]):
        image = cv2.GaussianBlur(random.integers(0, 256, (h, w, 3), np.uint8), (9, 9), 0)
        paths.append(folder / f"{place}.ppm")
        cv2.imwrite(str(paths[-1]), image)
    return paths


@pytest.fixture(scope="module")
def run_bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Unpack a bundle and run it where only numpy and onnxruntime can be imported."""

    def run(bundle: Path, images: list[Path]) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("device")
        links = folder / "links"
        links.mkdir()
        for name in ("numpy", "onnxruntime"):
            spec = importlib.util.find_spec(name)
            assert spec is not None and spec.origin is not None
            package = Path(spec.origin).parent
            for part in (package, package.with_name(f"{name}.libs")):
                if part.exists():
                    (links / part.name).symlink_to(part)
        with zipfile.ZipFile(bundle) as archive:
            archive.extractall(folder)
        program = _PROGRAM.format(
            links=str(links), runner=str(folder / "run_pose.py"), images=[str(image) for image in images]
        )
        done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def qtools_own(network: Path, images: list[Path], **thresholds: float) -> dict[str, Any]:
    with OnnxRuntimeCpu(network, threads=1) as runner:
        pose = PoseNetwork.from_runner(runner, **thresholds)
        return {str(image): pose.people(read_image_or_ppm(image)).to_records() for image in images}


def read_image_or_ppm(path: Path) -> np.ndarray[Any, Any]:
    return cv2.imread(str(path)) if path.suffix == ".ppm" else read_image(path)


def the_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, people in expected.items():
        assert len(found[name]) == len(people), name
        for a, b in zip(found[name], people, strict=True):
            np.testing.assert_allclose(a["box_xyxy"], b["box_xyxy"], atol=tolerance, err_msg=name)
            np.testing.assert_allclose(a["score"], b["score"], atol=tolerance / 100, err_msg=name)
            np.testing.assert_allclose(a["keypoints"], b["keypoints"], atol=tolerance, err_msg=name)


@pytest.mark.parametrize("end_to_end", [False, True], ids=["host", "end to end"])
def test_a_machine_without_qtoolkit_finds_the_same_people(
    end_to_end: bool,
    network: Path,
    photos: list[Path],
    run_bare: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    bundle = write_bundle(network, tmp_path / "b.zip", score_threshold=0.1, iou_threshold=0.5, end_to_end=end_to_end)
    expected = qtools_own(network, photos, score_threshold=0.1, iou_threshold=0.5)
    assert sum(map(len, expected.values())) > 10
    the_same(run_bare(bundle.path, photos), expected, 0.01)


def test_what_is_in_it(network: Path, tmp_path: Path) -> None:
    bundle = write_bundle(network, tmp_path / "b.zip")
    with zipfile.ZipFile(bundle.path) as archive:
        names = archive.namelist()
        content = {name: archive.read(name) for name in names}
    assert names == sorted(names) == sorted(bundle.files)
    runner = {"run_pose.py", "pose_images.py", "pose_head.py"}
    assert set(names) == {"README.md", "SHA256SUMS", "bundle.json", "network.onnx", "requirements.txt"} | runner
    sums = dict(reversed(line.split("  ")) for line in content["SHA256SUMS"].decode().splitlines())
    assert sums == {name: hashlib.sha256(content[name]).hexdigest() for name in names if name != "SHA256SUMS"}
    assert content["network.onnx"] == network.read_bytes()
    described = json.loads(content["bundle.json"])
    assert described["network"] == {
        "file": "network.onnx", "input": "images", "dtype": "float32", "input_size_wh": [64, 64]
    }  # fmt: skip
    assert described["head"]["kind"] == bundle.head == "yolov8-pose"
    assert described["thresholds"] == {"score": 0.25, "iou": 0.7, "max_people": 300, "max_candidates": 3000}
    assert described["skeleton"]["keypoint_names"] == list(COCO17.keypoint_names)
    assert (described["labels"], described["runtime"]) == (["person"], "onnxruntime")
    assert bundle.sha256 == hashlib.sha256(bundle.path.read_bytes()).hexdigest()
    assert bundle.size_bytes == bundle.path.stat().st_size


def test_the_same_input_gives_the_same_bytes(network: Path, tmp_path: Path) -> None:
    hashes = {write_bundle(network, tmp_path / f"{place}.zip", end_to_end=True).sha256 for place in range(2)}
    assert len(hashes) == 1
    assert write_bundle(network, tmp_path / "c.zip", score_threshold=0.5).sha256 not in hashes


def test_a_failed_bundle_leaves_nothing(network: Path, tmp_path: Path) -> None:
    with pytest.raises(HeadError):
        write_bundle(network, tmp_path / "b.zip", head="heatmap")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_and_its_record(network: Path, tmp_path: Path) -> None:
    (tmp_path / "net.engine").write_bytes(b"plan")
    (tmp_path / "net.json").write_text("{}")
    bundle = write_bundle(network, tmp_path / "b.zip", engine=tmp_path / "net.engine", sidecar=tmp_path / "net.json")
    with zipfile.ZipFile(bundle.path) as archive:
        assert archive.read("network.engine") == b"plan"
        assert {"network.engine.json", "tensorrt_engine.py"} <= set(archive.namelist())
        assert json.loads(archive.read("bundle.json"))["runtime"] == bundle.runtime == "tensorrt"
    with pytest.raises(UsageError, match="an engine that is built already"):
        write_bundle(network, tmp_path / "c.zip", engine=tmp_path / "net.engine", end_to_end=True)
    with pytest.raises(UsageError, match=r"not there: .*missing"):
        write_bundle(network, tmp_path / "c.zip", engine=tmp_path / "missing")


def test_a_skeleton_of_another_size(network: Path, tmp_path: Path) -> None:
    two = Skeleton("two", ("a", "b"), np.ones(2), ((0, 1),), ())
    with pytest.raises(UsageError, match="expected: 17 keypoints\n  found: 2 of two"):
        write_bundle(network, tmp_path / "b.zip", skeleton=two)


@pytest.mark.parametrize("changed", [{"score_threshold": 1.5}, {"iou_threshold": -0.1}], ids=str)
def test_thresholds_that_are_none(changed: dict[str, float], network: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="threshold is not a share"):
        write_bundle(network, tmp_path / "b.zip", **changed)


@pytest.mark.real
@pytest.mark.slow
def test_real_photos(real_data: Path, run_bare: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    network = real_data / "models/yolov8n-pose.onnx"
    images = []
    for name in list_images(real_data / "coco/images")[:6]:
        images.append(tmp_path / f"{name}.ppm")
        cv2.imwrite(str(images[-1]), read_image(real_data / "coco/images" / name))
    expected = qtools_own(network, images, score_threshold=0.25)
    assert sum(map(len, expected.values())) > 5
    the_same(run_bare(write_bundle(network, tmp_path / "a.zip").path, images), expected, 0.1)
    inside = write_end_to_end(network, tmp_path / "inside.onnx", thresholds={"score_threshold": 0.25})
    the_same(qtools_own(inside.path, images, score_threshold=0.25), expected, 0.01)
    the_same(run_bare(write_bundle(inside.path, tmp_path / "b.zip").path, images), expected, 0.1)
