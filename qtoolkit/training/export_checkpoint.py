"""From weights to an ONNX file that computes the same, which is proved before it is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from qtoolkit.artifacts.files import sha256_bytes, write_bytes
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.errors import GateFailed, UsageError
from qtoolkit.evaluation.end_to_end import with_nms_inside
from qtoolkit.graph.export import export_onnx
from qtoolkit.graph.half_storage import store_half
from qtoolkit.graph.macs import count_macs
from qtoolkit.models.activations import Activation
from qtoolkit.models.checkpoint import load_weights
from qtoolkit.models.ti_checkpoint import load_ti_weights
from qtoolkit.models.yolopose import STRIDES, DeployedYoloPose, YoloPose

__all__ = [
    "DEFAULT_SIZE_PX",
    "MAX_RELATIVE_ERROR",
    "ExportedNetwork",
    "export_network",
    "export_weights",
    "relative_error",
]

DEFAULT_SIZE_PX = 320
"""Side of the input of weights that do not say at which size they were trained."""

MAX_RELATIVE_ERROR = 1e-4
"""Largest difference between torch and ONNX Runtime that is let through, as a share of the block's largest value."""

_BLOCKS = {"boxes": slice(0, 4), "scores": slice(4, 6)}


@dataclass(frozen=True)
class ExportedNetwork:
    """What was written: ``path``, its content's ``sha256``, and the network in figures.

    ``relative_error``: the largest difference to torch on a random image, per block of the outputs, as a share of the
    block's largest value; the worst block. ``storage_error``: the same with weights stored as fp16, None without.
    """

    path: Path
    sha256: str
    architecture: str
    activation: str
    input_size_wh: tuple[int, int]
    opset: int
    end_to_end: bool
    gmacs: float
    parameters: int
    size_bytes: int
    relative_error: float
    storage_error: float | None = None


def export_weights(
    path: str | os.PathLike[str],
    out: Path,
    input_size_wh: tuple[int, int] | None = None,
    *,
    architecture: str | None = None,
    activation: Activation | None = None,
    side_activation: Activation | None = "silu",
    **options: Any,
) -> ExportedNetwork:
    """``export_network`` of weights that ``qtool train`` wrote or, with ``architecture``, of TI's released ones.

    Without ``input_size_wh`` the size of the training's evaluations, or 320×320 where the weights do not say. The
    activations are for released weights, which do not name theirs. Raises as ``load_weights``, ``load_ti_weights`` and
    ``export_network`` do, and UsageError where ``out`` is ``path``.
    """
    if out.exists() and out.samefile(path):
        raise UsageError(
            "the network would be written over its weights", expected="another file", found=str(out), do="give --out"
        )
    if architecture is None:
        model, metadata = load_weights(path)
    else:
        model = load_ti_weights(path, architecture, activation=activation, side_activation=side_activation)
        metadata = {}
    return export_network(model, out, input_size_wh or _trained_size(metadata), **options)


def _trained_size(metadata: Mapping[str, Any]) -> tuple[int, int]:
    recipe = metadata.get("recipe")
    size = recipe.get("image_size") if isinstance(recipe, Mapping) else None
    return (size, size) if isinstance(size, int) else (DEFAULT_SIZE_PX, DEFAULT_SIZE_PX)


def export_network(
    model: YoloPose,
    out: Path,
    input_size_wh: tuple[int, int],
    *,
    opset: int = 17,
    end_to_end: bool = False,
    half_storage: bool = False,
    thresholds: Mapping[str, Any] | None = None,
) -> ExportedNetwork:
    """Write ``model`` with its decoding as the ONNX file ``out``, head yolov5-pose, or with suppression inside.

    ``thresholds`` of the suppression as ``with_nms_inside`` takes them: score_threshold, iou_threshold.
    ``half_storage``: large weights are stored as fp16 (``graph.half_storage``), after the check below.

    Before that the graph and torch run on one random image. Raises GateFailed, nothing written, where they differ by
    more than ``MAX_RELATIVE_ERROR``; UsageError for a size that is no multiple of 64, and as ``export_onnx`` does.
    """
    _check_size(input_size_wh)
    deployed = DeployedYoloPose(model.cpu().float())
    graph = export_onnx(deployed, input_size_wh, opset=opset, without_prefix="model")
    error = _checked_error(deployed, graph, input_size_wh)
    gmacs = count_macs(graph).gmacs
    storage_error = relative_error(deployed, store_half(graph), input_size_wh) if half_storage else None
    if end_to_end:
        graph = with_nms_inside(graph, **(thresholds or {}))
    if half_storage:
        graph = store_half(graph)
    content = graph.SerializeToString(deterministic=True)
    write_bytes(out, content)
    return ExportedNetwork(
        path=out,
        sha256=sha256_bytes(content),
        architecture=model.config.architecture,
        activation=model.config.activation,
        input_size_wh=input_size_wh,
        opset=opset,
        end_to_end=end_to_end,
        gmacs=gmacs,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        size_bytes=len(content),
        relative_error=error,
        storage_error=storage_error,
    )


def _checked_error(deployed: DeployedYoloPose, graph: onnx.ModelProto, input_size_wh: tuple[int, int]) -> float:
    error = relative_error(deployed, graph, input_size_wh)
    if not error <= MAX_RELATIVE_ERROR:
        raise GateFailed(
            "the exported network does not compute what the weights do",
            expected=f"a difference of at most {MAX_RELATIVE_ERROR:g} of the largest value",
            found=f"{error:.3g}",
            do="check the weights for values far beyond those of a trained network; nothing was written",
        )
    return error


def relative_error(deployed: DeployedYoloPose, graph: onnx.ModelProto, input_size_wh: tuple[int, int]) -> float:
    """Largest difference between torch and ONNX Runtime on one random image, relative to the largest value.

    Boxes, scores, places and confidences of keypoints are compared apart, since pixels would drown scores; the worst
    of the four. NaN or infinity on either side gives infinity.
    """
    width, height = input_size_wh
    image = np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)
    with torch.inference_mode():
        expected = _blocks(deployed(torch.from_numpy(image)).numpy())
    with OnnxRuntimeCpu(graph, threads=1, graph_optimization="none") as runner:
        found = _blocks(next(iter(runner.infer({graph.graph.input[0].name: image}).values())))
    return max(_difference(expected[name], found[name]) for name in expected)


def _blocks(rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    points = rows[..., 6:].reshape(*rows.shape[:2], -1, 3)
    blocks = {name: rows[..., columns] for name, columns in _BLOCKS.items()}
    return {**blocks, "places": points[..., :2], "confidences": points[..., 2]}


def _difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return float("inf")
    largest = float(np.abs(expected).max())
    difference = float(np.abs(expected.astype(np.float64) - found).max())
    return difference / largest if largest else difference


def _check_size(input_size_wh: tuple[int, int]) -> None:
    step = STRIDES[-1]
    if min(input_size_wh) < step or any(side % step for side in input_size_wh):
        near = "x".join(str(max(step, round(side / step) * step)) for side in input_size_wh)
        raise UsageError(
            "the input size does not fit the network",
            expected=f"width and height that are multiples of {step} pixels, the coarsest stride",
            found=f"{input_size_wh[0]}x{input_size_wh[1]}",
            do=f"give --size {near}",
        )
