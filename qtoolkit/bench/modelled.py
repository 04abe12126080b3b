"""Networks on a Jetson without the board: from ONNX to modelled latencies in the form of a scorecard's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import onnx

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.scorecard import LatencyFigures
from qtoolkit.bench.jetson_devices import JetsonDevice
from qtoolkit.bench.layer_work import NetworkWork
from qtoolkit.bench.network_work import network_work
from qtoolkit.bench.roofline import ModelledLatency, fitted_model, model_latency

__all__ = ["AS_WRITTEN", "PRECISIONS", "RunPrecision", "model_conditions", "model_networks", "modelled_figures"]

RunPrecision = Literal["as-written", "fp16", "int8"]
PRECISIONS: tuple[RunPrecision, ...] = ("as-written", "fp16", "int8")
AS_WRITTEN: RunPrecision = "as-written"


def model_networks(
    models: Mapping[str, onnx.ModelProto], device: JetsonDevice, precisions: tuple[RunPrecision, ...] = (AS_WRITTEN,)
) -> dict[str, ModelledLatency]:
    """Modelled latency of each network in each of ``precisions``, the first network's first.

    ``as-written`` takes the precisions of the graph (fp32 is TF32 on Orin), ``fp16`` runs what is fp32 in fp16, as a
    builder with that flag does, ``int8`` the whole network in int8. Where ``precisions`` names others than
    ``as-written`` the names say which. Raises ModelFileError as ``network_work`` does.
    """
    latencies = {}
    for name, model in models.items():
        work = network_work(model)
        for precision in precisions:
            key = name if precision == AS_WRITTEN else f"{name} ({precision})"
            latencies[key] = model_latency(_at(work, precision), device)
    return latencies


def modelled_figures(latency: ModelledLatency, first: ModelledLatency) -> LatencyFigures:
    """The record of a scorecard; ``first`` is what its ratio is against."""
    return LatencyFigures(
        target="tensorrt",
        measured=False,
        device=latency.device,
        runtime="TensorRT, roofline model",
        version=str(latency.version),
        p50_ms=round(latency.ms, 4),
        p90_ms=None,
        p99_ms=None,
        images_per_second=round(latency.batch * 1e3 / latency.ms, 3),
        ratio=round(latency.ms / first.ms, 4),
        error_band_pct=latency.error_band_pct,
        conditions={
            "batch": latency.batch,
            "device_key": latency.device_key,
            "layers": latency.precisions,
            "conversions": latency.conversions,
            "remarks": latency.remarks,
        },
    )


def model_conditions() -> str:
    """What the model was fitted to and how wrong it was elsewhere, in one sentence."""
    model = fitted_model()
    return (
        f"roofline model fitted on {model.fitted_points} published latencies; off by {model.held_out_mean_pct:.1f} % "
        f"in the mean, {model.held_out_worst_pct:.0f} % at worst, on {model.held_out_points} others; the band "
        "holds for 9 of 10 of those"
    )


def _at(work: NetworkWork, precision: RunPrecision) -> NetworkWork:
    if precision == "fp16":
        return work.without(Precision.FP32, Precision.FP16)
    return work.at(Precision.INT8) if precision == "int8" else work
