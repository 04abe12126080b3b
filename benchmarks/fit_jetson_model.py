"""Fit the Jetson latency model, and write its coefficients and docs/JETSON_MODEL.md.

usage: python benchmarks/fit_jetson_model.py [--check]

Fitted on every published point of YOLO26 on the Orin Nano 8GB Super and the AGX Orin 64GB: 30 points, one family, the
smallest and the largest device of one table. Chosen before the errors were looked at. Least squares of the logarithm
of modelled over published time (Levenberg–Marquardt in the logarithms of the seven coefficients); the same points
give the same numbers. --check fits and compares with the files that are there, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from published_networks import NETWORKS, published_network

from qtoolkit.artifacts.files import write_text
from qtoolkit.artifacts.plan import Precision
from qtoolkit.bench.jetson_devices import JetsonDevice, find_jetson, read_table
from qtoolkit.bench.layer_work import LayerWork, NetworkWork
from qtoolkit.bench.roofline import Coefficients, network_ms

_ROOT = Path(__file__).resolve().parents[1]
MODEL_FILE = _ROOT / "qtoolkit" / "bench" / "data" / "jetson_model.json"
PAGE_FILE = _ROOT / "docs" / "JETSON_MODEL.md"
FIT_FAMILY = "YOLO26"
FIT_DEVICES = ("jetson-orin-nano-8gb-super", "jetson-agx-orin-64gb")
_START = (0.5, 0.5, 0.5, 0.5, 0.005, 1.0, 50.0)
_BAND_QUANTILE = 0.9


@dataclass(frozen=True, eq=False)
class Point:
    """One published latency with the network and the device it belongs to."""

    row: dict[str, str]
    network: NetworkWork
    device: JetsonDevice
    published_ms: float

    @property
    def family(self) -> str:
        return self.row["model"].rstrip("nsmlx") if self.row["model"].startswith("YOLO") else "ResNet"

    @property
    def is_fitted(self) -> bool:
        return self.row["model"].startswith(FIT_FAMILY) and self.row["device"] in FIT_DEVICES

    @property
    def is_in_range(self) -> bool:
        """Orin at batch 1: what the model is for. The others are reported apart."""
        return self.device.generation == "ampere" and self.network.batch == 1


@cache
def _kernels(model: str, resolution: int) -> tuple[LayerWork, ...]:
    return published_network(model, resolution)


def read_points() -> tuple[list[Point], list[tuple[dict[str, str], str]]]:
    """The points that can be used, and those that cannot with the reason."""
    points, unused = [], []
    for row in read_table("jetson_points.csv"):
        if not row["device"]:
            unused.append((row, "runs on the DLA, not on the GPU"))
        elif row["model"] not in NETWORKS:
            unused.append((row, "no layer list: the network's description was not turned into one"))
        elif row["precision"] not in ("FP32", "FP16", "INT8"):
            unused.append((row, "no single precision"))
        else:
            points.append(_point(row))
    return points, unused


def _point(row: dict[str, str]) -> Point:
    device = find_jetson(f"{row['device']}@{row['mode']}")
    if row["gpu_mhz"]:
        device = replace(device, gpu_mhz=float(row["gpu_mhz"]))
    batch, precision = int(row["batch"]), Precision(row["precision"].lower())
    kernels = tuple(
        replace(each, macs=batch * each.macs, read=batch * each.read, written=batch * each.written).at(precision)
        for each in _kernels(row["model"], int(row["resolution"]))
    )
    return Point(row, NetworkWork(kernels, row["decode"] == "yes", batch=batch), device, float(row["ms"]))


def coefficients_of(vector: NDArray[np.float64]) -> Coefficients:
    """Seven numbers as coefficients."""
    fp32, fp16, int8, memory, launch, decode, narrow = map(float, vector)
    efficiency = {Precision.FP32: fp32, Precision.FP16: fp16, Precision.INT8: int8}
    return Coefficients(
        efficiency=efficiency, memory_efficiency=memory, launch=launch, decode=decode, narrow=narrow
    )  # fmt: skip


def fit(points: Sequence[Point]) -> Coefficients:
    """The coefficients with the least squares of log(modelled / published) over ``points``."""

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        coefficients = coefficients_of(np.exp(logs))
        modelled = [network_ms(each.network, each.device, coefficients) for each in points]
        return np.log(np.array(modelled) / [each.published_ms for each in points])

    vector = np.exp(_levenberg_marquardt(residuals, np.log(np.array(_START))))
    # Four digits say all that 30 points can; the file is then the same on every machine.
    return coefficients_of(np.array([float(f"{value:.4g}") for value in vector]))


def _levenberg_marquardt(
    residuals: Callable[[NDArray[np.float64]], NDArray[np.float64]], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    at, damping, step_size = start, 1e-2, 1e-4
    error = residuals(at)
    for _ in range(200):
        steps = step_size * np.eye(at.size)
        jacobian = np.stack([(residuals(at + step) - error) / step_size for step in steps], axis=1)
        normal = jacobian.T @ jacobian + damping * np.eye(at.size)
        tried = at - np.clip(np.linalg.solve(normal, jacobian.T @ error), -1.0, 1.0)
        new = residuals(tried)
        if new @ new < error @ error:
            gain = 1.0 - (new @ new) / (error @ error)
            at, error, damping = tried, new, damping / 3.0
            if gain < 1e-9:
                break
        elif (damping := damping * 4.0) > 1e8:
            break
    return at


def errors_pct(points: Sequence[Point], coefficients: Coefficients) -> NDArray[np.float64]:
    """(modelled / published − 1) · 100 of each point, (N,) float64."""
    modelled = [network_ms(each.network, each.device, coefficients) for each in points]
    return 100.0 * (np.array(modelled) / [each.published_ms for each in points] - 1.0)


def summary(errors: NDArray[np.float64]) -> dict[str, float | int]:
    """Number, mean, median, 90 % quantile and worst of the absolute errors, and their mean with sign."""
    size = np.abs(errors)
    return {
        "points": int(size.size), "mean_pct": round(float(size.mean()), 2),
        "median_pct": round(float(np.median(size)), 2),
        "p90_pct": round(float(np.quantile(size, _BAND_QUANTILE)), 2), "worst_pct": round(float(size.max()), 2),
        "bias_pct": round(float(errors.mean()), 2),
    }  # fmt: skip


def cross_validation(points: Sequence[Point], group: Callable[[Point], str]) -> dict[str, dict[str, Any]]:
    """Each group's error under coefficients fitted to all other groups."""
    result = {}
    for name in sorted({group(each) for each in points}):
        inside = [each for each in points if group(each) == name]
        others = [each for each in points if group(each) != name]
        result[name] = summary(errors_pct(inside, fit(others)))
    return result


def fit_document() -> dict[str, Any]:
    """Everything that data/jetson_model.json and the page hold."""
    points, unused = read_points()
    in_range = [each for each in points if each.is_in_range]
    fitted = [each for each in in_range if each.is_fitted]
    held_out = [each for each in in_range if not each.is_fitted]
    coefficients = fit(fitted)
    held = summary(errors_pct(held_out, coefficients))
    gmacs = [each.network.gmacs for each in in_range]
    model = {
        "version": 1,
        "coefficients": coefficients.model_dump(mode="json"),
        "fitted_on": "YOLO26 n–x in fp32, fp16 and int8 on Orin Nano 8GB Super and AGX Orin 64GB, batch 1",
        "fitted_points": len(fitted),
        "held_out_points": held["points"],
        "held_out_mean_pct": held["mean_pct"],
        "held_out_median_pct": held["median_pct"],
        "held_out_worst_pct": held["worst_pct"],
        "error_band_pct": round(float(held["p90_pct"]), 1),
        "gmacs": [round(min(gmacs), 2), round(max(gmacs), 2)],
        "generations": sorted({each.device.generation for each in in_range}),
        "sms": [min(each.device.sms for each in in_range), max(each.device.sms for each in in_range)],
        "gpu_mhz": [min(each.device.gpu_mhz for each in in_range), max(each.device.gpu_mhz for each in in_range)],
    }
    every = errors_pct(points, coefficients)
    model["extrapolation"] = {
        generation: [round(float(np.abs(outside).mean()), 1), round(float(np.abs(outside).max()), 1)]
        for generation in sorted({each.device.generation for each in points} - set(model["generations"]))
        if (outside := every[[each.device.generation == generation for each in points]]).size
    }
    return {"model": model, "points": points, "errors": every, "unused": unused, "in_range": in_range}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files that are there; write nothing")
    check = parser.parse_args().check
    document = fit_document()
    # Only here: the page needs this module.
    from jetson_model_page import model_page

    text = json.dumps(document["model"], indent=1, ensure_ascii=False) + "\n"
    page = model_page(document)
    if check:
        stale = [str(f.relative_to(_ROOT)) for f, new in ((MODEL_FILE, text), (PAGE_FILE, page)) if _read(f) != new]
        sys.exit(f"not what the fit gives: {', '.join(stale)}" if stale else 0)
    write_text(MODEL_FILE, text)
    write_text(PAGE_FILE, page)
    print(text + f"written: {MODEL_FILE.relative_to(_ROOT)}, {PAGE_FILE.relative_to(_ROOT)}")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    main()
