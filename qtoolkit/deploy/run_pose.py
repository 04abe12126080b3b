#!/usr/bin/env python3
"""Find people in images with the network that lies beside this file::

    python run_pose.py photo.jpg more.png > people.json

Needs Python 3.8, numpy and the runtime. Photos are read by OpenCV or Pillow, whichever is there; .npy arrays
(h, w, 3) uint8 RGB and binary .ppm files need neither.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PosePredictor", "check_files", "main", "optional", "read_image", "resize"]


def optional(name: str) -> Any:
    """The module of that name, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


cv2, pil_image, pil_ops = optional("cv2"), optional("PIL.Image"), optional("PIL.ImageOps")


def check_files(folder: Path) -> None:
    """Compare every file with SHA256SUMS; ends the program where one differs or is missing."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            sys.exit(f"{file} is missing or not as it was bundled: unpack the bundle again")


def read_image(path: Path) -> Any:
    """An image as (h, w, 3) uint8 RGB, turned as its EXIF orientation says."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    content = path.read_bytes()
    if content[:2] == b"P6":
        fields = content.split(None, 4)  # magic, width, height, 255, pixels
        pixels = content[-int(fields[1]) * int(fields[2]) * 3 :]
        return np.frombuffer(pixels, np.uint8).reshape(int(fields[2]), int(fields[1]), 3)
    if cv2 is not None:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            sys.exit(f"{path} cannot be read as an image")
        return image[..., ::-1]
    if pil_image is not None:
        return np.asarray(pil_ops.exif_transpose(pil_image.open(path)).convert("RGB"))
    sys.exit(f"{path} cannot be read: install Pillow or opencv-python-headless, or give a .npy or .ppm file")


def resize(image: Any, size_wh: tuple[int, int]) -> Any:
    """Bilinear with 11-bit weights, without antialiasing, as cv2.resize; by cv2 itself where it is there."""
    if cv2 is not None:
        return cv2.resize(np.ascontiguousarray(image), tuple(size_wh), interpolation=cv2.INTER_LINEAR)
    if image.shape[1] == 2 * size_wh[0] and image.shape[0] == 2 * size_wh[1]:  # OpenCV takes the mean of four then
        four = image.astype(np.int32)
        return ((four[::2, ::2] + four[1::2, ::2] + four[::2, 1::2] + four[1::2, 1::2] + 2) >> 2).astype(np.uint8)
    (x0, x1, a0, a1), (y0, y1, b0, b1) = (_weights(image.shape[1 - i], size_wh[i]) for i in (0, 1))
    wide = image.astype(np.int32)
    wide = (wide[:, x0] * a0[:, None] + wide[:, x1] * a1[:, None]) >> 4
    b0, b1 = b0[:, None, None], b1[:, None, None]
    return ((((b0 * wide[y0]) >> 16) + ((b1 * wide[y1]) >> 16) + 2) >> 2).astype(np.uint8)


def _weights(source: int, target: int) -> Any:
    place = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    weights = [np.rint(each * np.float32(2048)).astype(np.int32) for each in (np.float32(1) - share, share)]
    return (np.clip(first, 0, source - 1), np.clip(first + 1, 0, source - 1), *weights)


class PosePredictor:
    """The network of an unpacked bundle; ``people(image)`` finds the people of an image (h, w, 3) uint8 RGB."""

    def __init__(self, folder: Path) -> None:
        self.bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        self.network, self.head = self.bundle["network"], self.bundle["head"]
        file = str(folder / self.network["file"])
        if self.bundle["runtime"] == "tensorrt":
            self._infer = importlib.import_module("tensorrt_engine").TensorRtEngine(file).infer
        else:
            session = importlib.import_module("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
            names = self.head["outputs"]
            self._infer = lambda feeds: dict(zip(names, session.run(names, feeds)))  # noqa: B905

    def people(self, image: Any) -> list[dict[str, Any]]:
        """box_xyxy, score, keypoints (K rows of x, y, confidence) of each person, in pixels, most confident first."""
        h, w = image.shape[:2]
        (input_w, input_h), limits = self.network["input_size_wh"], self.bundle["thresholds"]
        ratio = min(input_w / w, input_h / h)
        new_w, new_h = max(1, round(w * ratio)), max(1, round(h * ratio))
        left, top = round((input_w - new_w) / 2 - 0.1), round((input_h - new_h) / 2 - 0.1)
        padded = np.full((input_h, input_w, 3), self.bundle["letterbox"]["pad_value"], np.uint8)
        fitted = image if (new_w, new_h) == (w, h) else resize(image, (new_w, new_h))
        padded[top : top + new_h, left : left + new_w] = fitted
        tensor = np.ascontiguousarray(padded.transpose(2, 0, 1)[None]).astype(np.float32) / np.float32(255)
        outputs = self._infer({self.network["input"]: tensor.astype(self.network["dtype"])})
        boxes, scores, keypoints = _decode(outputs, self.head, limits["score"])
        if self.head["nms_inside"]:
            kept = np.argsort(-scores, kind="stable")[: limits["max_people"]]
        else:
            kept = _suppress(boxes, scores, limits)
        boxes, scores, keypoints = boxes[kept], scores[kept], keypoints[kept]
        offset = np.array([left, top], np.float64)
        corners = ((boxes.reshape(-1, 2, 2).astype(np.float64) - offset) / ratio).astype(np.float32)
        keypoints[..., :2] = (keypoints[..., :2].astype(np.float64) - offset) / ratio
        corners, keypoints[..., :2] = np.clip(corners, 0, (w, h)), np.clip(keypoints[..., :2], 0, (w, h))
        rows = zip(corners.reshape(-1, 4).tolist(), scores.tolist(), keypoints.tolist())  # noqa: B905
        return [{"box_xyxy": box, "score": score, "keypoints": points} for box, score, points in rows]


def _decode(outputs: Any, head: Any, threshold: float) -> Any:
    """Boxes (N, 4) as corners, scores (N,), keypoints (N, K, 3) of all above the threshold, in pixels of the input."""
    kind, count = head["kind"], head["keypoint_count"]
    arrays = [np.asarray(outputs[name], np.float32) for name in head["outputs"]]
    if kind == "heatmap":
        return _decode_heatmap(arrays[0][0], head["strides"][0], threshold)
    if kind == "separate-outputs":
        boxes = arrays[0].reshape(-1, 4 if len(arrays) == 3 else 5)
        scores = arrays[2].reshape(-1) if len(arrays) == 3 else boxes[:, 4]
        boxes, points = boxes[:, :4], arrays[1]
    else:
        rows = arrays[0].reshape(arrays[0].shape[-2:])
        rows = rows.T if head["anchors_last"] else rows
        scores = rows[:, 4] * rows[:, 5] if kind == "yolov5-pose" else rows[:, 4]
        boxes, points = rows[:, :4], rows[:, 5 if kind == "yolov8-pose" else 6 :]
    chosen = scores > threshold
    boxes, scores, points = boxes[chosen], scores[chosen], points.reshape(-1, count, 3)[chosen]
    if head["box_format"] == "cxcywh":
        half = boxes[:, 2:] / 2
        boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    return boxes, scores, points


def _decode_heatmap(maps: Any, stride: int, threshold: float) -> Any:
    """The highest cell of each map, a quarter cell towards its higher neighbour."""
    count, h, w = maps.shape
    k, best, confidence = np.arange(count), maps.reshape(count, -1).argmax(axis=1), maps.max(axis=(1, 2))
    y, x = np.divmod(best, w)
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    step_x = np.sign(padded[k, y + 1, x + 2] - padded[k, y + 1, x]) * ((x > 0) & (x < w - 1))
    step_y = np.sign(padded[k, y + 2, x + 1] - padded[k, y, x + 1]) * ((y > 0) & (y < h - 1))
    points = (np.stack([x + 0.25 * step_x, y + 0.25 * step_y], axis=1) * stride).astype(np.float32)
    people = slice(0, int(confidence.mean() > threshold))
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])[None]
    return box[people], confidence.mean(keepdims=True)[people], np.column_stack([points, confidence])[None][people]


def _suppress(boxes: Any, scores: Any, limits: Any) -> Any:
    """Indices of the boxes that stay: the best of those left, until none is left that overlaps it too much."""
    order = np.argsort(-scores, kind="stable")[: limits["max_candidates"]]
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[order].T)
    areas = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    left = np.arange(order.size)
    kept: list[int] = []
    while left.size and len(kept) < limits["max_people"]:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        w = np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left])
        h = np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left])
        shared = np.maximum(w, 0) * np.maximum(h, 0)
        left = left[shared / (areas[best] + areas[left] - shared + np.float32(1e-9)) <= limits["iou"]]
    return order[np.array(kept, np.intp)]


def main(arguments: list[str]) -> None:
    """Write the people of each image named as JSON on standard output."""
    folder = Path(__file__).resolve().parent
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    check_files(folder)
    predictor = PosePredictor(folder)
    found = {name: predictor.people(read_image(Path(name))) for name in arguments}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
