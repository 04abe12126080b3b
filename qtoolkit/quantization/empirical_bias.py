"""Empirical bias correction: each bias takes off what everything rounded so far adds to the mean output of its layer.

::

    b' = b + w · d      d = E[y] − E[ŷ], w = d² / (d² + σ²), σ the standard error of d over the images

y is the layer's output in the float network, ŷ in the quantized one, in which the layers before are corrected already.
Where ``bias_correction`` computes the share of the layer's own rounded weight, this measures all of it, clipped
activations included. Layers that do not see each other are measured together. Of each image only what the layers still
to come read is kept, in integers (a few MB), so everything is computed twice and not once for each layer.
Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.throughput import map_in_order, worker_count
from qtoolkit.errors import DataSetError
from qtoolkit.graph.layers import Layer, last_layers, layer_levels
from qtoolkit.graph.subgraph import extract
from qtoolkit.graph.view import GraphView
from qtoolkit.numerics.affine import QuantParams
from qtoolkit.quantization.bias_correction import corrected_bias
from qtoolkit.quantization.ptq import ChosenGrids, Quantizer

__all__ = ["empirical_biases"]

FloatArray = NDArray[np.float64]
Feeds = Mapping[str, NDArray[Any]]
Infer = Callable[[onnx.ModelProto, Iterable[Feeds]], Iterator[Feeds]]
_CORRECTED = ("Conv", "ConvTranspose")


def empirical_biases(
    quantizer: Quantizer,
    plan: PrecisionPlan,
    feeds: Callable[[], Iterable[Feeds]],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, FloatArray]:
    """The corrected bias ``(Cout,)`` of each layer under ``plan`` that can take one, by name.

    Corrected are the biases of convolutions that ``plan`` and target make integers. Those of the last layers take the
    error of their own weights alone, as in ``bias_correction``: the means of scores hang on a few rare places.
    ``feeds`` gives the calibration photos anew at each call, always the same; ``threads`` of them are under way at a
    time (None: one per core). ``progress`` is called with (levels of layers done, all of them).
    Raises DataSetError where there is no photo, PlanFileError as ``Quantizer.quantize`` does.
    """
    chosen = quantizer.quantize(plan).plan.layers
    # A shallow copy: what is known of the graph, and the ranges, are found once.
    corrected, biases = copy.copy(quantizer), dict[str, FloatArray]()
    corrected.biases = biases
    grids, last = corrected.grids(chosen), set(last_layers(quantizer.model))
    own = _float_biases(quantizer, grids)
    at_end = [layer for layer in quantizer.layers if layer.name in own.keys() & last and layer.op_type == "Conv"]
    stages = _stages(quantizer, own.keys() - last)
    tensors = [tensor for stage in stages for tensor in stage] + [layer.input for layer in at_end]
    if not tensors:
        return {}
    infer = _inference(threads, integer_kernels=quantizer.target.backend == "ort-cpu")
    before = list(GraphView(quantizer.model).inputs)
    expected = _channel_means(infer, _measuring(quantizer.model, before, tensors), feeds())
    for layer in at_end:
        means = expected[layer.input].mean(axis=0)
        biases[layer.name] = _by_weights(quantizer, layer, own[layer.name], grids.weights[layer.name].params, means)
    cuts, state = _cuts(corrected.write(chosen, grids), [list(stage) for stage in stages]), feeds()
    for done, (stage, cut) in enumerate(zip(stages, cuts, strict=True), start=1):
        network = corrected.write(chosen, corrected.grids(chosen))
        before, state = cut, _advanced(infer, network, before, cut, state)
        found = _channel_means(infer, _measuring(network, cut, list(stage)), state)
        for tensor, name in stage.items():
            biases[name] = own[name] + _shift(expected[tensor] - found[tensor])
        progress(done, len(stages))
    return biases


def _float_biases(quantizer: Quantizer, grids: ChosenGrids) -> dict[str, FloatArray]:
    """The float network's own bias ``(Cout,)`` of each convolution whose bias ``grids`` make integers."""
    view = GraphView(quantizer.model)
    in_integers = {name for name, weights in grids.weights.items() if weights.bias is not None}
    layers = [layer for layer in quantizer.layers if layer.name in in_integers and layer.op_type in _CORRECTED]
    values = {layer.name: view.constant(layer.bias) for layer in layers if layer.bias is not None}
    return {name: value.astype(np.float64) for name, value in values.items() if value is not None}


def _stages(quantizer: Quantizer, names: Collection[str]) -> list[dict[str, str]]:
    """The layers of ``names`` level by level, by their outputs."""
    outputs = {layer.name: layer.output for layer in quantizer.layers if layer.name in names}
    levels = [{outputs[n]: n for n in level if n in outputs} for level in layer_levels(quantizer.model)]
    return [level for level in levels if level]


def _by_weights(
    quantizer: Quantizer, layer: Layer, bias: FloatArray, params: QuantParams, means: FloatArray
) -> FloatArray:
    weight = GraphView(quantizer.model).constant(layer.weight)
    return bias if weight is None else corrected_bias(layer, weight, bias, params, means).astype(np.float64)


def _shift(differences: FloatArray) -> FloatArray:
    """What the bias takes ``(C,)`` of the mean over ``differences`` ``(images, C)``: less, the less sure it is."""
    mean, count = np.asarray(differences.mean(axis=0), np.float64), len(differences)
    if count < 2:
        return mean
    square, variance = mean**2, differences.var(axis=0, ddof=1) / count
    weight = np.divide(square, square + variance, out=np.zeros_like(square), where=square > 0)
    return np.asarray(mean * weight, np.float64)


def _cuts(model: onnx.ModelProto, stages: Sequence[Sequence[str]]) -> list[list[str]]:
    """For each stage, the tensors made before its own (``stages``) from which they and all later ones are computed.

    A tensor behind DequantizeLinear stands there as the integers in front of it.
    """
    view = GraphView(model)
    measured = {tensor: stage for stage, tensors in enumerate(stages, start=1) for tensor in tensors}
    # How many stages are over when a tensor is made.
    after = dict.fromkeys(view.inputs, 0)
    cuts: list[dict[str, None]] = [{} for _ in stages]
    for index in sorted(view.ancestors(measured)):
        reads = [name for name in view.reads(index) if name in after]
        if not reads:
            continue  # constants
        outputs = [name for name in view.nodes[index].output if name]
        latest = max(after[name] for name in reads)
        after.update((name, measured.get(name, latest)) for name in outputs)
        for name in reads:
            for stage in range(after[name], max(after[output] for output in outputs)):
                cuts[stage][_integers(view, name)] = None
    return [list(cut) for cut in cuts]


def _integers(view: GraphView, tensor: str) -> str:
    producer = view.producer(tensor)
    return str(producer.input[0]) if producer is not None and producer.op_type == "DequantizeLinear" else tensor


def _inference(threads: int | None, integer_kernels: bool) -> Infer:
    def infer(model: onnx.ModelProto, feeds: Iterable[Feeds]) -> Iterator[Feeds]:
        names = GraphView(model).inputs
        with OnnxRuntimeCpu(model, threads=1, low_memory=True, integer_kernels=integer_kernels) as runner:
            needed = ({name: feed[name] for name in names} for feed in feeds)
            yield from map_in_order(runner.infer, needed, worker_count(threads))

    return infer


def _advanced(
    infer: Infer, network: onnx.ModelProto, before: Sequence[str], cut: Sequence[str], state: Iterable[Feeds]
) -> list[Feeds]:
    """The tensors ``cut`` of each image, from ``state``, its tensors ``before``."""
    kept, made = [name for name in cut if name in before], [name for name in cut if name not in before]
    feeds, again = itertools.tee(state)
    found = infer(extract(network, before, made), again) if made else itertools.repeat({})
    return [{**{name: feed[name] for name in kept}, **new} for feed, new in zip(feeds, found, strict=bool(made))]


def _measuring(model: onnx.ModelProto, inputs: Sequence[str], tensors: Sequence[str]) -> onnx.ModelProto:
    """The part of ``model`` behind ``inputs`` that returns the channel means of ``tensors``, under their names."""
    part = extract(model, inputs, tensors)
    del part.graph.output[:]
    for tensor in dict.fromkeys(tensors):
        mean = f"{tensor}/mean"
        part.graph.node.append(helper.make_node("GlobalAveragePool", [tensor], [mean], name=mean))
        part.graph.output.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, None))
    return part


def _channel_means(infer: Infer, measuring: onnx.ModelProto, feeds: Iterable[Feeds]) -> dict[str, FloatArray]:
    """Mean over all places of each channel on each photo, ``(images, C)`` by the name of its tensor."""
    rows = [
        {name.removesuffix("/mean"): values.astype(np.float64).mean(axis=0).ravel() for name, values in found.items()}
        for found in infer(measuring, feeds)
    ]
    if not rows:
        raise DataSetError("there is no image to measure channel means on", do="give a data set with a calib split")
    return {tensor: np.stack([row[tensor] for row in rows]) for tensor in rows[0]}
