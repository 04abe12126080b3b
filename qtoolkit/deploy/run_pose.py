#!/usr/bin/env python3
"""Find people in images with the network that lies beside this file::

    python run_pose.py photo.jpg more.png > people.json

Needs Python 3.8, numpy and the runtime; for photos also OpenCV or Pillow.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PosePredictor", "beside", "check_files", "main"]


def beside(name: str) -> Any:
    """The module in the file NAME.py beside this one."""
    spec: Any = importlib.util.spec_from_file_location(name, Path(__file__).with_name(name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_files(folder: Path) -> None:
    """Compare every file with SHA256SUMS; ends the program where one differs or is missing."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            sys.exit(f"{file} is missing or not as it was bundled: unpack the bundle again")


class PosePredictor:
    """The network of an unpacked bundle."""

    def __init__(self, folder: Path) -> None:
        self.bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        self.images, self.head = beside("pose_images"), beside("pose_head")
        file = str(folder / self.bundle["network"]["file"])
        if self.bundle["runtime"] == "tensorrt":
            self.infer = beside("tensorrt_engine").TensorRtEngine(file).infer
        else:
            runtime, names = importlib.import_module("onnxruntime"), self.bundle["head"]["outputs"]
            run = runtime.InferenceSession(file, providers=["CPUExecutionProvider"]).run
            self.infer = lambda feeds: dict(zip(names, run(names, feeds)))  # noqa: B905

    def people(self, image: Any) -> list[dict[str, Any]]:
        """People in an image (h, w, 3) uint8 RGB, most confident first, in its pixels: box_xyxy,
        score, keypoints (K rows of x, y, confidence)."""
        network, limits = self.bundle["network"], self.bundle["thresholds"]
        pad_value = self.bundle["letterbox"]["pad_value"]
        pixels, ratio, corner = self.images.letterbox(image, network["input_size_wh"], pad_value)
        tensor = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]).astype(np.float32)
        tensor = (tensor / np.float32(255)).astype(network["dtype"])
        outputs = self.infer({network["input"]: tensor})
        found = self.head.decode(outputs, self.bundle["decode"], limits["score"])
        kept = self.head.suppress(*found[:2], limits, self.bundle["head"]["nms_inside"])
        people = []
        for box, score, keypoints in zip(*(each[kept] for each in found)):  # noqa: B905
            points = np.concatenate([box.reshape(2, 2), keypoints[:, :2]]).astype(np.float64)
            points = ((points - corner) / ratio).astype(np.float32)
            points = points.clip(0, (image.shape[1], image.shape[0]))
            rows = np.column_stack([points[2:], keypoints[:, 2]]).tolist()
            places = {"box_xyxy": points[:2].ravel().tolist(), "keypoints": rows}
            people.append({"score": float(score), **places})
        return people


def main(arguments: list[str]) -> None:
    """Write the people of each image named as JSON on standard output."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    folder = Path(__file__).resolve().parent
    check_files(folder)
    predictor = PosePredictor(folder)
    read = predictor.images.read_image
    found = {name: predictor.people(read(Path(name))) for name in arguments}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
