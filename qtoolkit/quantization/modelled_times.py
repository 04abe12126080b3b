"""Modelled times for a run that names a Jetson: of each layer, of changes of precision, of each network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.scorecard import LatencyFigures
from qtoolkit.artifacts.target import Target
from qtoolkit.bench.jetson_devices import JetsonDevice, find_jetson
from qtoolkit.bench.layer_work import CONVERSION, LayerWork
from qtoolkit.bench.modelled import model_networks, modelled_figures
from qtoolkit.bench.network_work import network_work
from qtoolkit.bench.roofline import fitted_model, kernel_times_ms
from qtoolkit.errors import UsageError
from qtoolkit.graph.layers import layer_neighbours
from qtoolkit.graph.load import load_network
from qtoolkit.quantization.selection import Conversion

__all__ = ["check_device", "device_inputs", "modelled_added_ms", "modelled_conversions", "modelled_latencies"]


def check_device(device: str | None, target: Target) -> None:
    """Raise UsageError for a device that is not known, or that ``target`` does not make networks for."""
    if device is not None and target.name != "tensorrt":
        raise UsageError(
            f"target {target.name} makes no networks for {device}",
            expected="--target tensorrt with --device jetson[-NAME][@MODE]",
            found=f"--target {target.name}",
            do="give --target tensorrt, or leave --device out",
        )
    if device is not None:
        find_jetson(device)


def device_inputs(device: str | None) -> list[Any]:
    """What modelled times depend on, for the hash of a stage; nothing without a device."""
    return [] if device is None else [find_jetson(device).label, fitted_model().model_dump(mode="json")]


def modelled_added_ms(model: onnx.ModelProto, device: str) -> dict[str, float]:
    """Modelled milliseconds that each layer of a float network takes longer in fp16 than in int8; 0 without int8.

    Changes of precision at the borders of a mix are not in it: see ``modelled_conversions``.
    """
    network = network_work(model)
    layers = [each for each in network.kernels if each.name in network.layers]
    wide, narrow = (_times(layers, find_jetson(device), each) for each in (Precision.FP16, Precision.INT8))
    return {name: wide[name] - narrow[name] for name in wide}


def modelled_conversions(model: onnx.ModelProto, device: str) -> tuple[Conversion, ...]:
    """What it costs where the output of a layer is wanted in fp16 and in int8: it is written once more, in 8 bits.

    So where an fp16 layer is read by one in int8, or an int8 layer by layers of both kinds. An int8 layer read in fp16
    alone writes fp16 at once. Source: NVIDIA TensorRT documentation, "Explicit Quantization": a Q behind a convolution
    in floating point is not fused.
    """
    found = find_jetson(device)
    network, neighbours = network_work(model), layer_neighbours(model)
    if Precision.INT8 not in found.precisions:
        return ()
    sources = [each for each in network.kernels if neighbours.get(each.name)]
    kernels = [
        LayerWork(each.name, CONVERSION, 0, each.written, each.written, precision=Precision.FP16,
                  written_as=Precision.INT8)
        for each in sources
    ]  # fmt: skip
    times = kernel_times_ms(kernels, found, fitted_model().coefficients)
    return tuple(
        Conversion(each.name, neighbours[each.name], float(ms)) for each, ms in zip(kernels, times, strict=True)
    )


def modelled_latencies(networks: Mapping[str, Path], device: str) -> dict[str, LatencyFigures]:
    """Modelled latency of each network file, ratios against the first; marked as modelled, with its band."""
    models = {name: load_network(path, allow_quantized=True) for name, path in networks.items()}
    latencies = model_networks(models, find_jetson(device))
    first = next(iter(latencies.values()))
    return {name: modelled_figures(each, first) for name, each in latencies.items()}


def _times(kernels: Sequence[LayerWork], device: JetsonDevice, precision: Precision) -> dict[str, float]:
    times = kernel_times_ms([each.at(precision) for each in kernels], device, fitted_model().coefficients)
    return {each.name: float(ms) for each, ms in zip(kernels, times, strict=True)}
