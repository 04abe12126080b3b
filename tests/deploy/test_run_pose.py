"""The runner of a bundle beside qtoolkit's own code, on every kind of head."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from qtoolkit.data.letterbox import Letterbox
from qtoolkit.deploy import pose_head, pose_images, run_pose, tensorrt_engine
from qtoolkit.deploy.bundle import decode_table
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.evaluation.pose_network import people_in_image

SIZE = (64, 64)
RANDOM = np.random.default_rng(5)


def rows(count: int, before: int, corners: bool = False) -> np.ndarray[Any, Any]:
    """(1, count, before + 51): boxes, scores of 0 to 1, a class of 1 where there is one, keypoints."""
    made = RANDOM.uniform(0, 64, (1, count, before + 51)).astype(np.float32)
    made[..., 2:4] = made[..., :2] + RANDOM.uniform(5, 30, (1, count, 2)) if corners else made[..., 2:4] / 3 + 5
    made[..., 4] = RANDOM.uniform(0, 1, (1, count))
    if before == 6:
        made[..., 5] = RANDOM.uniform(0.5, 1, (1, count))
    return made


def separate(columns: int) -> dict[str, Any]:
    made = rows(23, 6, corners=True)[0]
    outputs = {"boxes": made[:, :columns], "keypoints": made[:, 6:].reshape(-1, 17, 3)}
    return outputs if columns == 5 else {**outputs, "scores": made[:, 4]}


HEADS: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "yolov8-pose": ("yolov8-pose", {"y": rows(84, 5).transpose(0, 2, 1)}, {}),
    "yolov8-pose, anchors first": ("yolov8-pose", {"y": rows(84, 5)}, {}),
    "yolov5-pose": ("yolov5-pose", {"y": rows(252, 6)}, {}),
    "yolov5-end-to-end": ("yolov5-end-to-end", {"y": rows(30, 6, True)[0]}, {"y": (None, 57)}),
    "yolov8-end-to-end": ("yolov8-end-to-end", {"y": rows(300, 6, True)}, {}),
    "separate outputs": ("separate-outputs", separate(4), {}),
    "boxes with scores": ("separate-outputs", separate(5), {}),
    "heatmap": ("heatmap", {"y": RANDOM.random((1, 17, 16, 16), dtype=np.float32)}, {}),
}


def test_the_runner_is_short_and_can_be_read_on_a_board() -> None:
    texts = {module: Path(module.__file__ or "").read_text() for module in (run_pose, pose_images, pose_head)}
    assert len(texts[run_pose].splitlines()) <= 100
    for module, text in texts.items():
        assert len(text.splitlines()) <= 100, module
        assert max(map(len, text.splitlines())) <= 100, module
        ast.parse(text, feature_version=(3, 8))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("image_wh", [(64, 64), (50, 90), (200, 120)], ids=str)
@pytest.mark.parametrize("threshold", [0.25, 0.99])
def test_the_same_people_as_qtoolkit(name: str, image_wh: tuple[int, int], threshold: float) -> None:
    kind, outputs, open_shapes = HEADS[name]
    head = detect_head({each: open_shapes.get(each, array.shape) for each, array in outputs.items()}, SIZE)
    assert head.kind == kind
    expected = people_in_image(
        outputs, head, Letterbox.fit(image_wh, SIZE), score_threshold=threshold, iou_threshold=0.5
    )
    predictor = run_pose.PosePredictor.__new__(run_pose.PosePredictor)
    limits = {"score": threshold, "iou": 0.5, "max_people": 300, "max_candidates": 3000}
    bundle = {
        "network": {"input": "x", "dtype": "float32", "input_size_wh": SIZE},
        "thresholds": limits,
        "letterbox": {"pad_value": 114},
        "head": {**head.__dict__},
        "decode": decode_table(head),
    }
    predictor.bundle = json.loads(json.dumps(bundle))
    predictor.images, predictor.head = pose_images, pose_head
    predictor.infer = lambda feeds: {each: array.copy() for each, array in outputs.items()}
    found = predictor.people(np.zeros((image_wh[1], image_wh[0], 3), np.uint8))
    assert len(found) == len(expected)
    if threshold < 0.5:
        assert found
    for a, b in zip(found, expected.to_records(), strict=True):
        for field in ("box_xyxy", "score", "keypoints"):
            np.testing.assert_allclose(a[field], b[field], rtol=1e-6, atol=1e-5, err_msg=field)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((640, 427), (320, 214)),
        ((100, 80), (50, 40)),
        ((97, 61), (64, 40)),
        ((30, 20), (64, 43)),
        ((500, 3), (64, 1)),
        ((500, 375), (640, 480)),
    ],
    ids=str,
)
def test_resizing_without_opencv_is_opencvs(
    source: tuple[int, int], target: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = RANDOM.integers(0, 256, (source[1], source[0], 3), np.uint8)
    expected = cv2.resize(image, target, interpolation=cv2.INTER_LINEAR)
    monkeypatch.setattr(pose_images, "cv2", None)
    found = pose_images.resize(image, target)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_images_that_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), image[..., ::-1])
    np.testing.assert_array_equal(pose_images.read_image(tmp_path / "x.png"), image)
    monkeypatch.setattr(pose_images, "cv2", None)
    monkeypatch.setattr(pose_images, "pil_image", None)
    np.save(tmp_path / "x.npy", image)
    (tmp_path / "x.ppm").write_bytes(b"P6\n6 4\n255\n" + image.tobytes())
    for suffix in ("npy", "ppm"):
        np.testing.assert_array_equal(pose_images.read_image(tmp_path / f"x.{suffix}"), image)
    with pytest.raises(SystemExit, match="install Pillow or opencv-python-headless"):
        pose_images.read_image(tmp_path / "x.png")


def test_files_are_compared_with_their_sums(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'content').hexdigest()}  a\n")
    run_pose.check_files(tmp_path)
    (tmp_path / "a").write_bytes(b"changed")
    with pytest.raises(SystemExit, match="not as it was bundled"):
        run_pose.check_files(tmp_path)


class Pretended:
    """What tensorrt and pycuda are asked for by the runner of engines, answering with the input doubled."""

    def __init__(self) -> None:
        self.arrays: dict[int, Any] = {}
        self.addresses: dict[str, int] = {}

    def allocate(self, count: int) -> int:
        self.arrays[len(self.arrays) + 1] = None
        return len(self.arrays)

    def upload(self, device: int, array: Any) -> None:
        self.arrays[device] = array

    def download(self, array: Any, device: int) -> None:
        array[:] = self.arrays[device]

    def wait(self) -> None:
        self.arrays[self.addresses["y"]] = 2 * self.arrays[self.addresses["x"]]

    stream = 0


def test_an_engine_is_asked_by_the_names_of_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls only: no TensorRT runs here."""
    memory = Pretended()

    class Engine:
        num_io_tensors = 2

        def get_tensor_name(self, place: int) -> str:
            return "xy"[place]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (1, 3)

        def get_tensor_dtype(self, name: str) -> type[np.float32]:
            return np.float32

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name == "x" else "out"

        def create_execution_context(self) -> Engine:
            return self

        def set_tensor_address(self, name: str, address: int) -> None:
            memory.addresses[name] = address

        def execute_async_v3(self, stream: int) -> bool:
            return True

        def deserialize_cuda_engine(self, content: bytes) -> Engine:
            return self

    class Trt:
        class Logger:
            ERROR = 1

            def __init__(self, level: int) -> None: ...

        class TensorIOMode:
            INPUT = "in"

        @staticmethod
        def Runtime(logger: object) -> Engine:
            return Engine()

        @staticmethod
        def nptype(dtype: Any) -> Any:
            return dtype

    monkeypatch.setattr(tensorrt_engine, "_memory", lambda: memory)
    monkeypatch.setattr(tensorrt_engine.importlib, "import_module", lambda name: Trt)
    (tmp_path / "network.engine").write_bytes(b"plan")
    engine = tensorrt_engine.TensorRtEngine(str(tmp_path / "network.engine"))
    found = engine.infer({"x": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(found["y"], np.full((1, 3), 2.0))
