"""Bias correction: what rounding a weight adds to a layer's mean output is taken off its bias.

::

    b' = b + Σ (w − ŵ) · E[x]        sum over the layer's inputs, ŵ the weight on its grid, E[x] the mean of the input

The error of a rounded weight times the mean of what it is multiplied with is an offset that is the same in every
place; boxes and keypoints are shifted by it. Means are those of the float network over calibration photos, so one pass
serves every plan. Zero padding is taken for input: at the border the correction is too large by the padded share.
Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.throughput import map_in_order, worker_count
from qtoolkit.errors import DataSetError, InputFileError
from qtoolkit.graph.layers import Layer, find_layers
from qtoolkit.numerics.affine import QuantParams, fake_quantize
from qtoolkit.numerics.npz import read_npz, write_npz

__all__ = ["corrected_bias", "input_means", "read_means", "write_means"]

FloatArray = NDArray[np.float64]
Feeds = Mapping[str, NDArray[Any]]


def corrected_bias(
    layer: Layer, weight: NDArray[np.floating[Any]], bias: NDArray[np.floating[Any]], params: QuantParams,
    means: FloatArray,
) -> NDArray[np.float32]:  # fmt: skip
    """The bias ``(Cout,)`` of a Conv whose ``weight`` ``(Cout, Cin / group, …)`` is rounded to ``params``.

    ``means``: of each channel of the layer's input, ``(Cin,)``.
    """
    error = weight.astype(np.float64) - fake_quantize(weight, params)
    by_input = error.reshape(*error.shape[:2], -1).sum(axis=2)
    inputs = np.repeat(means.reshape(layer.group, -1), error.shape[0] // layer.group, axis=0)
    return np.asarray(bias + (by_input * inputs).sum(axis=1), np.float32)


def input_means(
    model: onnx.ModelProto,
    feeds: Iterable[Feeds],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, FloatArray]:
    """Mean of each channel ``(Cin,)`` of every Conv's input over all photos and places, by tensor name.

    ``model`` is the prepared float network; ``threads`` photos are under way at a time (None: one per core).
    Raises DataSetError where there is no photo.
    """
    tensors = list(dict.fromkeys(layer.input for layer in find_layers(model) if layer.op_type == "Conv"))
    measuring = _measuring(model, tensors)
    sums = {tensor: np.zeros(1) for tensor in tensors}
    count = 0
    with OnnxRuntimeCpu(measuring, threads=1, low_memory=True) as runner:
        for found in map_in_order(runner.infer, feeds, worker_count(threads)):
            count += 1
            for tensor in tensors:
                sums[tensor] = sums[tensor] + found[_mean_of(tensor)].astype(np.float64).mean(axis=0).ravel()
            if progress is not None:
                progress(count)
    if count == 0:
        raise DataSetError("there is no image to measure channel means on", do="give a data set with a calib split")
    return {tensor: total / count for tensor, total in sums.items()}


def _mean_of(tensor: str) -> str:
    return f"{tensor}/mean"


def _measuring(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """A copy of ``model`` that returns the channel means of ``tensors`` instead of its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    for tensor in tensors:
        name = _mean_of(tensor)
        copy.graph.node.append(helper.make_node("GlobalAveragePool", [tensor], [name], name=name))
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy


def write_means(path: Path, means: Mapping[str, FloatArray]) -> None:
    """Keep means as one npz."""
    write_npz(path, {"names": np.array(list(means)), **{str(i): value for i, value in enumerate(means.values())}})


def read_means(path: Path) -> dict[str, FloatArray] | None:
    """The means in ``path``; None where there are none, or the file is damaged."""
    try:
        arrays = read_npz(path)
        return {str(name): arrays[str(index)] for index, name in enumerate(arrays["names"])}
    except (InputFileError, KeyError):
        return None
