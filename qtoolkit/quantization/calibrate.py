"""Calibration: one pass over the photos, in constant memory, to statistics that every range estimator can read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.artifacts.files import sha256_bytes, sha256_json
from qtoolkit.artifacts.target import Target
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.throughput import map_in_order, worker_count
from qtoolkit.errors import DataSetError, InputFileError, ModelFileError, UsageError
from qtoolkit.graph.activations import is_unit_interval
from qtoolkit.graph.layers import decode_tail, find_layers
from qtoolkit.graph.statistics import OFFSET_INPUT, MeasuredTensor, add_statistics
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.numerics.histogram import TensorStatistics
from qtoolkit.numerics.image_groups import GroupedHistogram
from qtoolkit.numerics.npz import read_npz, write_npz

__all__ = [
    "CalibrationStatistics",
    "calibrate",
    "calibration_key",
    "calibration_tensors",
]

_VERSION = 2
# A prime, so that the offsets of successive images visit every residue of every stride.
_OFFSET_STEP = 7919


@dataclass(frozen=True, eq=False)
class CalibrationStatistics:
    """Statistics of every tensor that a plan may quantize, by tensor name, and the number of images behind them."""

    key: str
    images: int
    tensors: Mapping[str, TensorStatistics]

    def of(self, tensor: str) -> TensorStatistics:
        """Statistics of one tensor. Raises ModelFileError where calibration did not see it."""
        if tensor not in self.tensors:
            raise ModelFileError(
                f"tensor {tensor!r} was not calibrated",
                expected="statistics made for this very network and target",
                found=f"statistics of {len(self.tensors)} other tensors",
                do="delete the calib folder of the output and run again",
            )
        return self.tensors[tensor]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one compressed npz."""
        names = list(self.tensors)
        arrays: dict[str, NDArray[Any]] = {
            "version": np.array(_VERSION),
            "key": np.array(self.key),
            "images": np.array(self.images),
            "names": np.array(names),
        }
        for index, name in enumerate(names):
            arrays |= {f"{index}/{part}": value for part, value in self.tensors[name].to_arrays().items()}
        write_npz(path, arrays)

    @classmethod
    def read(cls, path: str | os.PathLike[str], key: str) -> CalibrationStatistics | None:
        """The statistics in ``path`` if they are those of ``key``; None where there are none, or of something else.

        A damaged file counts as none: calibration is run again and replaces it.
        """
        try:
            arrays = read_npz(path)
            if int(arrays["version"]) != _VERSION or str(arrays["key"]) != key:
                return None
            parts: dict[int, dict[str, NDArray[Any]]] = {}
            for entry, array in arrays.items():
                index, slash, part = entry.partition("/")
                if slash:
                    parts.setdefault(int(index), {})[part] = array
            names = [str(name) for name in arrays["names"]]
            tensors = {name: TensorStatistics.from_arrays(parts[index]) for index, name in enumerate(names)}
            return cls(key, int(arrays["images"]), tensors)
        except (InputFileError, UsageError, KeyError, ValueError, TypeError):
            return None


def calibration_tensors(model: onnx.ModelProto, target: Target) -> tuple[str, ...]:
    """Tensors whose range some plan on ``target`` may need: what layers and 8-bit operators before the tail read and
    make.

    Left out is what needs no statistics: tensors that are 0 … 1 by their making, and outputs of shape operators, whose
    range is that of their input.
    """
    view, tail = GraphView(model), decode_tail(model)
    layers = {layer.name: layer for layer in find_layers(model)}
    residual = {"Add"} if target.quantize_residual_adds else set()
    operators = target.int8_ops | target.fused_activations | residual
    tensors: dict[str, None] = {}
    for node in view.nodes:
        name = node_name(node)
        if name in layers:
            tensors.update(dict.fromkeys((layers[name].input, layers[name].output)))
        elif name in tail:
            continue
        elif node.op_type in target.shape_ops:
            tensors.update(dict.fromkeys(node.input[:1]))
        elif target.integer_only or node.op_type in operators:
            tensors.update(dict.fromkeys(tensor for tensor in (*node.input, *node.output) if tensor))
    return tuple(tensor for tensor in tensors if _needs_statistics(view, tensor, target))


def _needs_statistics(view: GraphView, tensor: str, target: Target) -> bool:
    producer = view.producer(tensor)
    if producer is not None and producer.op_type in target.shape_ops and not view.is_constant(producer.input[0]):
        return False
    is_float = view.elem_type(tensor) == onnx.TensorProto.FLOAT
    return is_float and bool(view.shape(tensor)) and not view.is_constant(tensor) and not is_unit_interval(view, tensor)


def calibration_key(model: onnx.ModelProto, tensors: Sequence[str], images_sha256: str, sample_size: int) -> str:
    """Content hash of all that the statistics depend on."""
    network = sha256_bytes(model.SerializeToString(deterministic=True))
    return sha256_json([_VERSION, network, sorted(tensors), images_sha256, sample_size])


def calibrate(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    *,
    key: str = "",
    sample_size: int = 4096,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> CalibrationStatistics:
    """Run every image of ``feeds`` once through the float network and gather statistics of ``tensors``.

    Extremes are exact, histograms hold ``sample_size`` values of each tensor and image. Memory does not grow with the
    number of images; ``threads`` images are under way at a time (None: one per core). Raises DataSetError where there
    is no image, ModelFileError where a tensor becomes NaN or infinite.
    """
    measuring, measured = add_statistics(model, tensors, sample_size)
    histograms = {tensor: GroupedHistogram() for tensor in tensors}
    extremes: dict[str, list[tuple[float, float]]] = {tensor: [] for tensor in tensors}
    images = 0
    with OnnxRuntimeCpu(measuring, threads=1, low_memory=True) as runner:

        def measure(numbered: tuple[int, Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
            index, feed = numbered
            return runner.infer({**feed, OFFSET_INPUT: np.array([index * _OFFSET_STEP], np.int64)})

        for values in map_in_order(measure, enumerate(feeds), worker_count(threads)):
            for tensor, names in measured.items():
                extremes[tensor].append(_extremes(tensor, names, values))
                histograms[tensor].update(values[names.sample])
            images += 1
            if progress is not None:
                progress(images)
    if images == 0:
        raise _no_image()
    statistics = {}
    for tensor in tensors:
        lowest, highest = np.transpose(extremes[tensor])
        statistics[tensor] = histograms[tensor].statistics(lowest, highest, measured[tensor].size * images)
    return CalibrationStatistics(key, images, statistics)


def _no_image() -> DataSetError:
    return DataSetError(
        "there is no image to calibrate on",
        expected="at least one readable calibration image",
        found="none",
        do="give a data set with a calib split, or a folder of images with --calib",
    )


def _extremes(tensor: str, names: MeasuredTensor, values: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
    lowest, highest = float(values[names.minimum]), float(values[names.maximum])
    # The runtime's minimum and maximum pass over a NaN; one seldom stays alone, so the sample shows it.
    if not (np.isfinite(lowest + highest) and np.isfinite(values[names.sample]).all()):
        raise ModelFileError(
            f"tensor {tensor!r} is not finite on a calibration image",
            expected="finite activations in the float network",
            found=f"minimum {lowest}, maximum {highest}",
            do="check the network, and that its input is RGB divided by 255",
        )
    return lowest, highest
