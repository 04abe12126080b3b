"""The conditions that figures hold under, in words: one line for a terminal, name and value pairs for a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.artifacts.scorecard import LatencyFigures, Scorecard
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.reporting import cells

__all__ = [
    "HOW_TO_READ",
    "conditions",
    "conditions_lines",
    "environment",
    "latency_conditions",
    "loss_unit",
    "plan_summary",
    "sensitivity_line",
    "title",
]

HOW_TO_READ: tuple[str, ...] = (
    "AP, AP50 and AP75 are COCO keypoint average precision, 0–100. On a few hundred photos they move by about ±0.5"
    " between equally good roundings of one network.",
    "retention is AP in percent of the float network's. agreement is AP (0–100) with the float network's own confident"
    " poses as ground truth: it needs no labels and is steadier than AP.",
    "bits W/A are the fewest bits of weights and of activations in use. 16-bit layers counts the layers with 16-bit"
    " activations and gives their share of all multiply-adds.",
    "GMACs are 10⁹ multiply-adds of one image (1 MAC is 1 multiplication and 1 addition: 2 of what others call FLOPs)."
    " GBOPs are 10⁹ bit operations, MACs × weight bits × activation bits. Both are counted, not measured."
    " MB are 10⁶ bytes of the file.",
    "p50 and p99 are the median and the 99th percentile of the latency of one inference; × float is p50 over the float"
    " network's in the same run, with its 95 % interval.",
    "The dash – means not measured, or not to be had. A figure with ~ is modelled, not measured, and ± is the error"
    " band of the model: differences within that band say nothing.",
)

_IN_LINE = ("threads", "batch", "remarks")
_LOSS_UNITS = {
    "oks": "mean of 1 − OKS against the float network's poses",
    "sqnr": "noise over signal at the outputs (NMSE)",
    "fisher": "1 − OKS of a person as gradients estimate it",
    "ap": "COCO AP lost, in points",
}


def title(scorecard: Scorecard) -> str:
    """Network and target in one line."""
    return f"{cells.plain(scorecard.model.name)} on {cells.plain(scorecard.target)}"


def conditions_lines(scorecard: Scorecard) -> tuple[str, ...]:
    """Device, runtime and version, threads, batch, input size, images and data hash, calibration images, in one line.

    Where the rows' latencies differ in their conditions, each group of variants has a line of its own before that.
    """
    groups = latency_conditions((row.variant, row.latency) for row in scorecard.rows)
    width, height = scorecard.model.input_size_wh
    data = " · ".join([f"input {width}×{height}", _data(scorecard), _calibration(scorecard)])
    if len(groups) == 1:
        return (f"{groups[0][1]} · {data}",)
    return (*(f"{names}: {what}" for names, what in groups), data)


def conditions(scorecard: Scorecard) -> tuple[tuple[str, str], ...]:
    """Everything the figures depend on, as (name, value) pairs: network, data, latency, then the run's settings."""
    model, (width, height) = scorecard.model, scorecard.model.input_size_wh
    runtimes = dict.fromkeys(cells.plain(row.accuracy_on) for row in scorecard.rows if row.accuracy_on)
    groups = latency_conditions((row.variant, row.latency) for row in scorecard.rows)
    return (
        ("network", f"{cells.plain(model.name)} (sha256 {cells.short_hash(model.sha256)})"),
        ("size of the network", f"{model.gmacs:.2f} GMACs, {model.params_m:.2f} M parameters"),
        ("input", f"{width}×{height} pixels (width × height)"),
        ("target", cells.plain(scorecard.target)),
        ("evaluation", _data(scorecard)),
        ("calibration", _calibration(scorecard)),
        ("accuracy computed by", ", ".join(runtimes) or cells.MISSING),
        *((f"latency of {names}", what) for names, what in groups),
        *_further_conditions(scorecard),
        ("qtoolkit", cells.plain(scorecard.qtoolkit)),
        *((cells.plain(name).replace("_", " "), cells.flat(value)) for name, value in scorecard.settings.items()),
    )


def environment(scorecard: Scorecard) -> tuple[tuple[str, str], ...]:
    """The machine and its software, as (name, value) pairs."""
    return tuple(
        (cells.plain(key).replace("_", " "), cells.flat(value)) for key, value in scorecard.environment.items()
    )


def latency_conditions(rows: Iterable[tuple[str, LatencyFigures | None]]) -> tuple[tuple[str, str], ...]:
    """(names, conditions) of each group of rows whose latencies hold under the same conditions, in order."""
    groups: dict[str, list[str]] = {}
    for name, figures in rows:
        if figures is not None:
            groups.setdefault(_latency(figures), []).append(cells.plain(name))
    return tuple((", ".join(names), what) for what, names in groups.items())


def plan_summary(plan: PrecisionPlan) -> str:
    """How many layers of the plan are at which precision, and how it was made."""
    counts = Counter(precision.value for precision in plan.layers.values())
    what = ", ".join(
        f"{count} at {name}" for name, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    )
    made_by = f" Made by: {cells.plain(plan.made_by)}." if plan.made_by else ""
    return f"{len(plan.layers_16bit)} of {_count(len(plan.layers), 'layer')} at 16 bit ({what}).{made_by}"


def sensitivity_line(sensitivity: Sensitivity, shown: int) -> str:
    """What the ranking was made on, and how many of its layers are shown."""
    layers = f"{shown} of {len(sensitivity.layers)} layers" if shown < len(sensitivity.layers) else f"{shown} layers"
    people = f" with {sensitivity.people} people" if sensitivity.people else ""
    of_float = "" if sensitivity.float_ap is None else f" (float AP {sensitivity.float_ap:.2f})"
    images = "calibration image" if sensitivity.part == "calib" else "training image"
    return (
        f"{layers} · loss: {loss_unit(sensitivity)}, only this layer at {sensitivity.precision.value}"
        f" · {_count(sensitivity.images, images)}{people}{of_float} · target {cells.plain(sensitivity.target)}"
    )


def loss_unit(sensitivity: Sensitivity) -> str:
    """What the loss of a layer is, in words."""
    return _LOSS_UNITS[sensitivity.metric]


def _latency(figures: LatencyFigures) -> str:
    known = figures.conditions
    parts = [cells.plain(figures.device), f"{cells.plain(figures.runtime)} {cells.plain(figures.version)}"]
    if not figures.measured:
        band = "error band unknown" if figures.error_band_pct is None else f"±{figures.error_band_pct:g} %"
        parts.insert(0, f"latency modelled, not measured ({band})")
    if isinstance(known.get("threads"), int):
        parts.append(_count(known["threads"], "thread"))
    if known.get("batch") is not None:
        parts.append(f"batch {cells.flat(known['batch'])}")
    return " · ".join(parts)


def _further_conditions(scorecard: Scorecard) -> tuple[tuple[str, str], ...]:
    """What else the latencies were measured under; values that differ from row to row in the order of the rows."""
    measured = [row.latency.conditions for row in scorecard.rows if row.latency is not None]
    names = dict.fromkeys(name for each in measured for name in each if name not in _IN_LINE)
    values = {name: [cells.flat(each.get(name)) for each in measured] for name in names}
    return tuple(
        (f"latency: {cells.plain(name).replace('_', ' ')}", each[0] if len(set(each)) == 1 else " | ".join(each))
        for name, each in values.items()
    )


def _data(scorecard: Scorecard) -> str:
    data = scorecard.data
    skipped = f", {data.skipped} skipped" if data.skipped else ""
    return (
        f"{_count(data.images, 'image')} of {cells.plain(data.name)} (sha256 {cells.short_hash(data.sha256)}{skipped})"
    )


def _calibration(scorecard: Scorecard) -> str:
    data = scorecard.data
    if not data.calibration_images:
        return "not calibrated"
    digest = f" (sha256 {cells.short_hash(data.calibration_sha256)})" if data.calibration_sha256 else ""
    return f"calibrated on {_count(data.calibration_images, 'image')}{digest}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
