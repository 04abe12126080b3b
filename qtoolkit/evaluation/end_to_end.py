"""From a network with any decoded YOLO pose head to one that gives people: the head is found, NMS goes inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from qtoolkit.artifacts.files import sha256_bytes, write_bytes
from qtoolkit.errors import HeadError, UsageError
from qtoolkit.evaluation.decode import DEFAULT_SCORE_THRESHOLD
from qtoolkit.evaluation.head_layouts import Shape
from qtoolkit.evaluation.heads import Head, detect_head
from qtoolkit.evaluation.nms import DEFAULT_IOU_THRESHOLD, MAX_CANDIDATES, MAX_PEOPLE
from qtoolkit.graph.end_to_end import NmsSettings, append_nms
from qtoolkit.graph.load import load_network, network_input
from qtoolkit.graph.read import default_opset

__all__ = ["END_TO_END_KINDS", "EndToEndFile", "with_nms_inside", "write_end_to_end"]

END_TO_END_KINDS = ("yolov5-pose", "yolov8-pose")
"""Heads that give rows per anchor: those that suppression can follow."""


@dataclass(frozen=True)
class EndToEndFile:
    """What ``write_end_to_end`` wrote: ``path``, its content's ``sha256``, the ``head`` that was there before."""

    path: Path
    sha256: str
    head: str
    input_size_wh: tuple[int, int]
    opset: int
    size_bytes: int


def write_end_to_end(
    source: Path,
    out: Path,
    *,
    head: str | None = None,
    input_size_wh: tuple[int, int] | None = None,
    thresholds: Mapping[str, Any] | None = None,
) -> EndToEndFile:
    """Write the network ``source``, float or quantized, with suppression inside as the ONNX file ``out``.

    ``thresholds`` as ``with_nms_inside`` takes them. Raises as that and ``load_network`` do, and UsageError where
    ``out`` is ``source``.
    """
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(
            "the network would be written over itself", expected="another file", found=str(out), do="give --out"
        )
    model = load_network(source, input_size_wh=input_size_wh, allow_quantized=True)
    content = with_nms_inside(model, head=head, **(thresholds or {})).SerializeToString(deterministic=True)
    write_bytes(out, content)
    return EndToEndFile(
        path=out,
        sha256=sha256_bytes(content),
        head=_head(model, head).kind,
        input_size_wh=network_input(model).input_size_wh,
        opset=default_opset(model) or 0,
        size_bytes=len(content),
    )


def with_nms_inside(
    model: onnx.ModelProto,
    *,
    head: str | None = None,
    score_threshold: float = DEFAULT_SCORE_THRESHOLD,
    iou_threshold: float = DEFAULT_IOU_THRESHOLD,
) -> onnx.ModelProto:
    """A copy of a prepared network, float or quantized, with outputs boxes (N, 4), scores (N,), keypoints (N, K, 3).

    The same people in the same order as ``decode`` and ``non_maximum_suppression`` give with these thresholds, the
    limits of candidates and people included. ``head`` is the user's --head. Raises HeadError where the outputs fit no
    head of ``END_TO_END_KINDS``, UsageError for thresholds outside 0–1.
    """
    settings = NmsSettings(score_threshold, iou_threshold, MAX_PEOPLE, MAX_CANDIDATES)
    found = _head(model, head)
    return append_nms(
        model,
        found.outputs[0],
        class_score=found.kind == "yolov5-pose",
        anchors_last=found.anchors_last,
        settings=settings,
    )


def _head(model: onnx.ModelProto, override: str | None) -> Head:
    shapes = {value.name: _shape(value) for value in model.graph.output}
    found = detect_head(shapes, network_input(model).input_size_wh, override)
    if found.kind not in END_TO_END_KINDS:
        raise HeadError(
            f"suppression cannot be put behind a {found.kind} head",
            expected=" or ".join(END_TO_END_KINDS),
            found=f"{found.kind} in {', '.join(found.outputs)}",
            do="leave --end-to-end out" if found.nms_inside else "export the network with its decoded outputs",
        )
    return found


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims)
