"""A network and all that is needed to find people with it, in one zip: for a machine that has no qtoolkit."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

import qtoolkit
from qtoolkit.artifacts.files import sha256_bytes, write_bytes
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.data.letterbox import PAD_VALUE
from qtoolkit.data.skeletons import COCO17, Skeleton
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.end_to_end import with_nms_inside
from qtoolkit.evaluation.evaluate import runnable_network
from qtoolkit.evaluation.heads import Head
from qtoolkit.evaluation.nms import DEFAULT_IOU_THRESHOLD, DEPLOYED_SCORE_THRESHOLD, MAX_CANDIDATES, MAX_PEOPLE
from qtoolkit.evaluation.pose_network import PoseNetwork
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.read import read_model

__all__ = ["BundleFile", "decode_table", "write_bundle"]

_SCHEMA = 2
# The first moment a zip can name: the same input gives the same bytes whenever it is written.
_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644 << 16
_HERE = Path(__file__).parent
_RUNNER = ("run_pose.py", "pose_images.py", "pose_head.py")
_REQUIREMENTS = {
    "onnxruntime": "numpy\nonnxruntime>=1.16\nPillow\n",
    "tensorrt": "# tensorrt and pycuda (or cuda-python): those of the device's own system image\nnumpy\nPillow\n",
}


@dataclass(frozen=True)
class BundleFile:
    """What ``write_bundle`` wrote: the zip, its SHA-256 and size, names of the files in it, kind of the pose head."""

    path: Path
    sha256: str
    size_bytes: int
    files: tuple[str, ...]
    head: str
    runtime: str


def write_bundle(
    network: Path,
    out: Path,
    *,
    engine: Path | None = None,
    sidecar: Path | None = None,
    head: str | None = None,
    input_size_wh: tuple[int, int] | None = None,
    end_to_end: bool = False,
    score_threshold: float = DEPLOYED_SCORE_THRESHOLD,
    iou_threshold: float = DEFAULT_IOU_THRESHOLD,
    labels: Sequence[str] = ("person",),
    skeleton: Skeleton | None = None,
) -> BundleFile:
    """Write the bundle ``out`` (.zip) of a pose network, float or quantized; whole, or not at all.

    ``engine`` is a TensorRT engine built from ``network``, which then only tells input and head, and ``sidecar`` the
    record beside it; both are copied as they are. ``head``: KIND or KIND:OUTPUT where the outputs fit several.
    ``end_to_end`` puts suppression into the network. Thresholds are 0–1. ``skeleton``: by default COCO's where the head
    has 17 keypoints, else numbered keypoints without lines. The same input gives the same bytes.

    Raises ModelFileError where the network cannot be read or run, HeadError where no head fits, UsageError for an
    engine with suppression inside, thresholds outside 0–1 and a skeleton of another size.
    """
    _check(engine, sidecar, end_to_end, score_threshold, iou_threshold)
    content = _network_bytes(network, input_size_wh, end_to_end, head, (score_threshold, iou_threshold))
    with OnnxRuntimeCpu(content, threads=1) as runner:
        # What is inside already was found by the head that the user named; its outputs are unmistakable.
        found = PoseNetwork.from_runner(runner, None if end_to_end else head).head
        ((name, spec),) = runner.signature.inputs.items()
    runtime = "onnxruntime" if engine is None else "tensorrt"
    file = "network.onnx" if engine is None else "network.engine"
    description = {
        **{"schema": _SCHEMA, "made_by": f"qtoolkit {qtoolkit.__version__}", "runtime": runtime},
        "network": {"file": file, "input": name, "dtype": spec.dtype.name, "input_size_wh": found.input_size_wh},
        **_description(found, score_threshold, iou_threshold),
        **{"labels": list(labels), "skeleton": _skeleton(found, skeleton)},
    }
    files = {
        file: content if engine is None else engine.read_bytes(),
        "bundle.json": (json.dumps(description, indent=1) + "\n").encode(),
        "README.md": _readme(network.name, found, runtime).encode(),
        **_runner_files(runtime),
    }
    if sidecar is not None:
        files["network.engine.json"] = sidecar.read_bytes()
    zipped = _zip(files)
    write_bytes(out, zipped)
    return BundleFile(out, sha256_bytes(zipped), len(zipped), (*sorted(files), "SHA256SUMS"), found.kind, runtime)


def decode_table(head: Head) -> dict[str, Any]:
    """Where boxes, scores (a product of columns) and keypoints of a head stand, for the runner.

    Each as [output, columns of that output, first, last + 1]; ``transposed``: a row of the output is a column;
    ``centred``: boxes are cx, cy, w, h, else corners. A heatmap: its output and its stride.
    """
    first, points = head.outputs[0], 3 * head.keypoint_count
    if head.kind == "heatmap":
        return {"heatmap": [first, head.strides[0]]}
    table = {"transposed": head.anchors_last, "centred": head.box_format == "cxcywh"}
    if head.kind == "separate-outputs":
        width = 4 if len(head.outputs) == 3 else 5
        scores = [head.outputs[2], 1, 0, 1] if width == 4 else [first, 5, 4, 5]
        places = {"boxes": [first, width, 0, 4], "scores": [scores], "keypoints": [head.outputs[1], points, 0, points]}
        return {**table, **places}
    before = 5 if head.kind == "yolov8-pose" else 6
    width = before + points
    scored = (4, 5) if head.kind == "yolov5-pose" else (4,)
    return {
        **table,
        "boxes": [first, width, 0, 4],
        "scores": [[first, width, column, column + 1] for column in scored],
        "keypoints": [first, width, before, width],
    }


def _runner_files(runtime: str) -> dict[str, bytes]:
    names = [*_RUNNER, "tensorrt_engine.py"] if runtime == "tensorrt" else _RUNNER
    return {
        "requirements.txt": _REQUIREMENTS[runtime].encode(),
        **{name: (_HERE / name).read_bytes() for name in names},
    }


def _description(head: Head, score_threshold: float, iou_threshold: float) -> dict[str, Any]:
    return {
        "letterbox": {"pad_value": PAD_VALUE, "interpolation": "bilinear", "channels": "RGB", "divide_by": 255},
        "head": asdict(head),
        "decode": decode_table(head),
        "thresholds": {
            "score": score_threshold,
            "iou": iou_threshold,
            "max_people": MAX_PEOPLE,
            "max_candidates": MAX_CANDIDATES,
        },
    }


def _check(
    engine: Path | None, sidecar: Path | None, end_to_end: bool, score_threshold: float, iou_threshold: float
) -> None:
    if engine is not None and end_to_end:
        raise UsageError(
            "suppression cannot be put into an engine that is built already",
            expected="end_to_end with a network alone",
            found=str(engine),
            do="build the engine of a network with suppression inside, or leave it to the runner",
        )
    missing = [str(path) for path in (engine, sidecar) if path is not None and not path.is_file()]
    if missing or (sidecar is not None and engine is None):
        raise UsageError(
            "the engine cannot be bundled",
            expected="an engine file, and its record beside it",
            found=f"not there: {', '.join(missing)}" if missing else "a record without an engine",
            do="build the engine first",
        )
    for what, value in (("score", score_threshold), ("IoU", iou_threshold)):
        if not 0 <= value <= 1:
            raise UsageError(
                f"the {what} threshold is not a share", expected="0 to 1", found=str(value), do="give another value"
            )


def _network_bytes(
    path: Path,
    input_size_wh: tuple[int, int] | None,
    end_to_end: bool,
    head: str | None,
    thresholds: tuple[float, float],
) -> bytes:
    if end_to_end:
        prepared = prepare_network(
            read_model(path), source=path.name, input_size_wh=input_size_wh, allow_quantized=True
        )
        prepared = with_nms_inside(prepared, head=head, score_threshold=thresholds[0], iou_threshold=thresholds[1])
        return _serialized(prepared)
    network = runnable_network(path, input_size_wh)
    if not isinstance(network, Path):
        return _serialized(network)
    stored = onnx.load(str(path), load_external_data=False)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in stored.graph.initializer):
        # One file, or the weights stay behind.
        return _serialized(read_model(path))
    return path.read_bytes()


def _serialized(model: onnx.ModelProto) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _skeleton(head: Head, given: Skeleton | None) -> dict[str, Any]:
    skeleton = given
    if skeleton is None and head.keypoint_count == COCO17.keypoint_count:
        skeleton = COCO17
    if skeleton is None:
        names = [f"keypoint {place}" for place in range(head.keypoint_count)]
        return {"name": "unknown", "keypoint_names": names, "links": [], "flip_pairs": []}
    if skeleton.keypoint_count != head.keypoint_count:
        raise UsageError(
            "the skeleton is of another size than the network's",
            expected=f"{head.keypoint_count} keypoints",
            found=f"{skeleton.keypoint_count} of {skeleton.name}",
            do="give the skeleton that the network was trained for",
        )
    return {
        "name": skeleton.name,
        "keypoint_names": skeleton.keypoint_names,
        "links": skeleton.links,
        "flip_pairs": skeleton.flip_pairs,
    }


def _readme(name: str, head: Head, runtime: str) -> str:
    width, height = head.input_size_wh
    return f"""# {name}

A pose network for {width}×{height} pixels (width × height), {head.keypoint_count} keypoints, run by {runtime}.

    python -m pip install -r requirements.txt
    python run_pose.py photo.jpg > people.json

`people.json`: for each image its people, most confident first, each with `box_xyxy` (left, top, right, bottom), `score`
and `keypoints` (x, y, confidence), in pixels of the image. The runner compares every file with SHA256SUMS first;
`sha256sum -c SHA256SUMS` does the same. `bundle.json` holds input size, letterbox, head, thresholds, labels, skeleton.
"""


def _zip(files: Mapping[str, bytes]) -> bytes:
    sums = "".join(f"{sha256_bytes(content)}  {name}\n" for name, content in sorted(files.items()))
    stream = io.BytesIO()
    # Stored, not compressed: weights hardly shrink, and another zlib would write other bytes.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted([*files.items(), ("SHA256SUMS", sums.encode())]):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr, entry.create_system = _MODE, 3
            archive.writestr(entry, content)
    return stream.getvalue()
