"""docs/JETSON_MODEL.md: the text of the page, with the figures of the fit in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from fit_jetson_model import FIT_DEVICES, FIT_FAMILY, Point, cross_validation, summary

_WORST = 10

_HEAD = """# Latency on a Jetson without the board

Written by `python benchmarks/fit_jetson_model.py`; do not edit. Every latency this page is about is **modelled**.

`qtool bench MODEL --device jetson` reads what each layer of an ONNX network asks of a GPU (multiply-adds, bytes,
precision) and adds up a roofline for each kernel. `qtool bench --list-devices` names the devices and their power
modes; `jetson` alone is the Orin Nano 8GB Super. `qtool quantize --target tensorrt --device jetson …` chooses 16-bit
layers by these times and puts them, marked, into the scorecard.

## The formula

    kernel  = launch · 1000 / MHz + max(compute, memory)                                   ms
    compute = MACs / (peak(precision) · efficiency(precision)) · (1 + narrow / channels)
    memory  = bytes / (bandwidth · memory efficiency)
    network = Σ kernel + decode · 1000 / MHz

`peak`: dense multiply-adds a ms of the active SMs at the mode's clock; fp32 on Orin is TF32, as TensorRT computes it.
`channels`: the smaller of a layer's input and output channels in one group; at `narrow` channels a layer reaches half
its rate. `decode`: only where the graph decodes its outputs (boxes, keypoints) behind the last layer. Which operators
are kernels, and where a change of precision costs one, is said in `qtoolkit/bench/network_work.py`. Devices and
published points, with their sources, are `qtoolkit/bench/data/jetson_devices.csv` and `jetson_points.csv`.

The published tables give parameters and GMACs of whole networks, no graphs. `benchmarks/published_networks.py` builds
their layer lists from their public descriptions; parameters and GMACs that come out agree with the published ones to
2 %, and for YOLOv8n-pose the list is kernel for kernel what is read from its ONNX file.
"""

_TAIL = """## What it cannot tell

- **The form was chosen by held-out error.** The set it is fitted on was fixed by rule before any error was looked at,
  but the form (the factor for narrow layers, the time for decoding, max or sum, a launch by clock or in ms) was chosen
  among about 150 variants by the error on the points held out; they range from 4.2 to 14 %. The figures under
  cross-validation carry the same choice. Errors on networks of another kind may be larger.
- Whether a published network decodes its outputs in the graph is told by its source: the YOLOv5s of cuDLA-samples is
  trimmed, YOLOv7 gives (1, N, 85) decoded boxes, Ultralytics exports always decode.
- Every point is a YOLO detector at 640 or 672 pixels. Transformers, networks of depthwise convolutions and heatmap
  networks are outside.
- The int8 points are engines that TensorRT calibrated and laid out itself. A Q/DQ network can be slower where its
  pairs stand badly: YOLO-NAS-Pose L was published with 27.0 ms for its Q/DQ network and 21.1 ms for
  TensorRT's own int8.
- No point is of a mixed network. The cost of a change of precision is reasoned (bytes and a launch), not fitted.
- Power modes: one point set is of a lower mode (Orin Nano 8GB, 15 W). Clocks are taken as constant; a board that is
  hot or starved of power is slower.
- The source of the 15 points of YOLO26 on the Orin NX 16GB states no power mode; 1173 MHz (Super) is assumed.
  {without_nx}
- Not modelled: DLA, sparsity, CUDA graphs, several streams, copies to and from the GPU, letterbox and NMS.
"""


def model_page(document: dict[str, Any]) -> str:
    """The whole page."""
    model, points, errors = document["model"], document["points"], document["errors"]
    every = list(zip(points, errors, strict=True))
    used = [each for each in every if each[0].is_in_range]
    held = [each for each in used if not each[0].is_fitted]
    fitted = [each for each in used if each[0].is_fitted]
    parts = [
        _HEAD,
        "## Coefficients\n",
        _coefficients(model),
        f"\nFitted on {model['fitted_on']}: {len(fitted)} points. Mean error there "
        f"{_figures(fitted)['mean_pct']:.1f} %.\n",
        f"## Error on the {len(held)} points held out\n\nOther networks or other devices, all of Orin at batch 1. "
        f"`error_band_pct` is the 90 % quantile, {model['error_band_pct']:g} %.",
        _table("", [("all", held), ("another network on another device", _foreign(held))]),
        _by("device", held, _device),
        _by("network", held, lambda p: p.family),
        _by("precision", held, lambda p: p.row["precision"]),
        _by("how it was measured", held, lambda p: p.row["measured"]),
        f"\n### The {_WORST} worst\n",
        _points(sorted(held, key=lambda each: -abs(each[1]))[:_WORST]),
        "\n## Cross-validation\n\nAll Orin points at batch 1; the error of each group under coefficients fitted to "
        "the other groups.",
        _crossed(document["in_range"], "network left out", lambda p: p.family),
        _crossed(document["in_range"], "device left out", _device),
        "\n## Outside the range\n\nOther GPU generations and larger batches. No band holds there, nor for networks "
        f"outside {model['gmacs'][0]:g} to {model['gmacs'][1]:g} GMACs or modes outside {model['sms'][0]} to "
        f"{model['sms'][1]} SMs and {model['gpu_mhz'][0]:g} to {model['gpu_mhz'][1]:g} MHz, of which there are no "
        "points; the command says so.",
        _by("", [each for each in every if not each[0].is_in_range], _outside),
        "\n## Points that were not used\n",
        _unused(document["unused"]),
        "\n" + _TAIL.format(without_nx=_without_assumed(held)),
        "## Every point of Orin at batch 1\n",
        _points(used),
    ]
    return "\n".join(parts) + "\n"


def _device(point: Point) -> str:
    return f"{point.device.name.removeprefix('NVIDIA Jetson ')} {point.device.mode.upper()}"


def _outside(point: Point) -> str:
    return f"{_device(point)}, {point.row['precision']}" + (", batch above 1" if point.network.batch > 1 else "")


def _figures(pairs: Sequence[tuple[Point, float]]) -> dict[str, float | int]:
    return summary(np.array([error for _, error in pairs]))


def _coefficients(model: dict[str, Any]) -> str:
    values = model["coefficients"]
    rows = [(f"efficiency, {name}", f"{value:g} of the peak") for name, value in values["efficiency"].items()]
    rows += [
        ("memory efficiency", f"{values['memory_efficiency']:g} of the bandwidth"),
        ("launch", f"{1000 * values['launch']:g} µs a kernel at 1000 MHz"),
        ("decode", f"{values['decode']:g} ms at 1000 MHz"),
        ("narrow", f"{values['narrow']:g} channels"),
    ]
    return "\n".join(["| coefficient | value |", "|:--|--:|", *(f"| {name} | {value} |" for name, value in rows)])


def _table(what: str, groups: Iterable[tuple[str, Sequence[tuple[Point, float]]]]) -> str:
    return _summary_table(what, [(name, _figures(pairs)) for name, pairs in groups])


def _summary_table(what: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> str:
    lines = [
        f"\n| {what} | points | mean % | median % | p90 % | worst % | mean with sign % |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for name, each in rows:
        figures = " | ".join(f"{each[key]:.1f}" for key in ("mean_pct", "median_pct", "p90_pct", "worst_pct"))
        lines.append(f"| {name} | {each['points']} | {figures} | {each['bias_pct']:+.1f} |")
    return "\n".join(lines)


def _by(what: str, pairs: Sequence[tuple[Point, float]], group: Callable[[Point], str]) -> str:
    names = dict.fromkeys(group(point) for point, _ in pairs)
    return _table(what, [(name, [each for each in pairs if group(each[0]) == name]) for name in names])


def _crossed(points: Sequence[Point], what: str, group: Callable[[Point], str]) -> str:
    return _summary_table(what, cross_validation(points, group).items())


def _points(pairs: Sequence[tuple[Point, float]]) -> str:
    lines = ["| network | device | precision | published ms | modelled ms | error % | fitted | how it was measured |",
             "|:--|:--|:--|--:|--:|--:|:--|:--|"]  # fmt: skip
    for point, error in pairs:
        row = point.row
        modelled = point.published_ms * (1 + error / 100)
        lines.append(
            f"| {row['model']} | {_device(point)} | {row['precision']} | "
            f"{point.published_ms:g} | {modelled:.2f} | {error:+.1f} | {'yes' if point.is_fitted else ''} | "
            f"{row['measured']}, {row['tensorrt']} |"
        )
    return "\n".join(lines)


def _unused(rows: Sequence[tuple[dict[str, str], str]]) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for row, reason in rows:
        groups.setdefault((row["device_as_published"], reason), []).append(f"{row['model']} {row['precision']}")
    return "\n".join(
        f"- {len(names)} of {device}: {', '.join(dict.fromkeys(names))}. {reason[0].upper()}{reason[1:]}."
        for (device, reason), names in groups.items()
    )


def _foreign(held: Sequence[tuple[Point, float]]) -> list[tuple[Point, float]]:
    return [each for each in held if each[0].family != FIT_FAMILY and each[0].row["device"] not in FIT_DEVICES]


def _without_assumed(held: Sequence[tuple[Point, float]]) -> str:
    kept = [each for each in held if "1173 MHz (Super) assumed" not in each[0].row["power_mode_as_published"]]
    figures = _figures(kept)
    return f"Without them the mean error is {figures['mean_pct']:.1f} % on {figures['points']} points."
