"""Latency of a network on a Jetson without the board: a roofline for each kernel, fitted to published latencies.

::

    kernel  = launch · 1000 / MHz + max(compute, memory)
    compute = MACs / (peak(precision) · efficiency(precision)) · (1 + narrow / channels)
    memory  = bytes / (bandwidth · memory efficiency)
    network = Σ kernel + decode · 1000 / MHz          (decode: only where the graph decodes its outputs)

in ms, with ``peak`` multiply-adds and ``bandwidth`` bytes a ms of the device in its power mode, ``channels`` the
smaller of a layer's input and output channels in one group (at ``narrow`` of them a layer reaches half its rate;
kernels without a weight have no such factor). The seven numbers stand in ``data/jetson_model.json``, which
``benchmarks/fit_jetson_model.py`` writes together with the error on points that they were not fitted to. Source of
the form: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009, with the cost of a
launch.

Everything here is modelled; nothing is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from qtoolkit.artifacts.plan import Precision
from qtoolkit.bench.jetson_devices import JetsonDevice
from qtoolkit.bench.layer_work import CONVERSION, LayerWork, NetworkWork

__all__ = [
    "Coefficients",
    "FittedModel",
    "ModelledLatency",
    "fitted_model",
    "kernel_times_ms",
    "model_latency",
    "network_ms",
]

_MHZ = 1000.0
_CLOCK_MARGIN = 0.05


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Coefficients(_Record):
    """What is fitted: shares of the peak rates (0–1 where the peaks are right), ms at 1000 MHz, channels."""

    efficiency: dict[Precision, float]
    memory_efficiency: float
    launch: float
    decode: float
    narrow: float


class FittedModel(_Record):
    """Coefficients, where they hold, and how wrong they were on points that they were not fitted to.

    ``error_band_pct`` is the 90 % quantile of the absolute error on the held-out points. ``gmacs``, ``sms``,
    ``gpu_mhz`` (lowest, highest) and ``generations`` are those of the points it was fitted and checked on: outside of
    them no band is given.
    """

    version: int
    coefficients: Coefficients
    fitted_on: str
    fitted_points: int
    held_out_points: int
    held_out_mean_pct: float
    held_out_median_pct: float
    held_out_worst_pct: float
    error_band_pct: float
    gmacs: tuple[float, float]
    generations: tuple[str, ...]
    sms: tuple[int, int]
    gpu_mhz: tuple[float, float]
    extrapolation: dict[str, tuple[float, float]] = {}
    """Other generation → mean and worst absolute error in percent on the few points there are of it."""


class ModelledLatency(_Record):
    """A modelled time and what to know of it: ``error_band_pct`` is None outside the range it was checked in.

    ``device`` is in words, ``device_key`` as on the command line. ``precisions`` counts the layers by the precision
    they are written in, ``conversions`` the tensors that are changed from one to another; ``remarks`` are sentences.
    """

    device: str
    device_key: str
    ms: float
    error_band_pct: float | None
    batch: int
    gmacs: float
    precisions: dict[str, int]
    conversions: int
    version: int
    remarks: tuple[str, ...]


@cache
def fitted_model() -> FittedModel:
    """The model that comes with qtoolkit."""
    text = (files("qtoolkit.bench") / "data" / "jetson_model.json").read_text(encoding="utf-8")
    return FittedModel.model_validate_json(text)


def kernel_times_ms(
    kernels: Sequence[LayerWork], device: JetsonDevice, coefficients: Coefficients
) -> NDArray[np.float64]:
    """Modelled time of each kernel, (L,) float64 ms; int8 in fp16 where the device has no int8."""
    runs_as = [device.runs_as(each.precision) for each in kernels]
    rate = np.array([device.macs_per_ms(each) * coefficients.efficiency[each] for each in runs_as])
    macs = np.array([each.macs for each in kernels], np.float64)
    channels = np.array([each.channels or np.inf for each in kernels], np.float64)
    moved = np.array(
        [
            (each if ran is each.precision else each.at(ran)).moved_bytes
            for each, ran in zip(kernels, runs_as, strict=True)
        ],
        np.float64,
    )
    compute = macs / rate * (1.0 + coefficients.narrow / channels)
    memory = moved / (device.bandwidth_gbs * 1e6 * coefficients.memory_efficiency)
    return np.asarray(coefficients.launch * _MHZ / device.gpu_mhz + np.maximum(compute, memory), np.float64)


def network_ms(network: NetworkWork, device: JetsonDevice, coefficients: Coefficients) -> float:
    """Modelled time of one inference of the whole network, ms."""
    decode = coefficients.decode * _MHZ / device.gpu_mhz if network.decodes else 0.0
    return float(kernel_times_ms(network.kernels, device, coefficients).sum()) + decode


def model_latency(network: NetworkWork, device: JetsonDevice, model: FittedModel | None = None) -> ModelledLatency:
    """The modelled latency of a network as its precisions are written, with its band or the reason there is none."""
    model = model or fitted_model()
    counted = [each.precision.value for each in network.kernels if each.name in network.layers]
    outside = _outside(network, device, model)
    remarks = list(outside)
    if Precision.INT8 not in device.precisions and Precision.INT8.value in counted:
        # A layer and the Q in front of it both run in fp16 then: nothing is converted.
        network = network.without(Precision.INT8, Precision.FP16)
        remarks.append(f"{device.name} has no int8: its int8 layers are modelled in fp16.")
    if Precision.FP32.value in counted and device.generation in ("ampere", "blackwell110"):
        remarks.append("fp32 layers are modelled in TF32, which TensorRT computes fp32 in on this GPU.")
    if {Precision.INT8.value, Precision.FP16.value} <= set(counted) and Precision.INT8 in device.precisions:
        remarks.append(
            "No published latency is of a mix of fp16 and int8: its band is that of networks of one precision."
        )
    return ModelledLatency(
        device=device.description, device_key=device.label, ms=network_ms(network, device, model.coefficients),
        error_band_pct=None if outside else model.error_band_pct, batch=network.batch, gmacs=network.gmacs,
        precisions={name: counted.count(name) for name in sorted(set(counted))},
        conversions=sum(each.op == CONVERSION for each in network.kernels), version=model.version,
        remarks=tuple(remarks),
    )  # fmt: skip


def _checked_clock(device: JetsonDevice, model: FittedModel) -> bool:
    """Whether the mode is within the SMs, and nearly within the clocks, of the points."""
    clock = model.gpu_mhz[0] * (1 - _CLOCK_MARGIN) <= device.gpu_mhz <= model.gpu_mhz[1] * (1 + _CLOCK_MARGIN)
    return clock and model.sms[0] <= device.sms <= model.sms[1]


def _outside(network: NetworkWork, device: JetsonDevice, model: FittedModel) -> list[str]:
    """What of this network and device lies outside the range in which the model was checked, as sentences."""
    low, high = model.gmacs
    found = []
    if device.generation not in model.generations:
        known = model.extrapolation.get(device.generation)
        how = f"on the few points of it the model is off by {known[0]:g} % (worst {known[1]:g} %)" if known else ""
        found.append(
            f"Extrapolated: the model was fitted and checked on {', '.join(model.generations)} GPUs, not on "
            f"{device.generation}: {how or 'no published point of it was compared'}."
        )
    elif not _checked_clock(device, model):
        found.append(
            f"Extrapolated: the model was checked with {model.sms[0]} to {model.sms[1]} SMs at {model.gpu_mhz[0]:g} to "
            f"{model.gpu_mhz[1]:g} MHz, not with {device.sms} at {device.gpu_mhz:g}; no error band holds."
        )
    if not low <= network.gmacs <= high:
        found.append(
            f"Extrapolated: the network has {network.gmacs:.2f} GMACs, and the model was checked on networks of "
            f"{low:g} to {high:g}; no error band holds."
        )
    if network.batch != 1:
        found.append(f"Extrapolated: batch {network.batch}, and the model was fitted at batch 1; no error band holds.")
    return found
