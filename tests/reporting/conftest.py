"""Artefacts with figures that are easy to recognise in a report, and what shows a table at a given width."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console, RenderableType

from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.scorecard import DataFacts, LatencyFigures, ModelFacts, Scorecard, ScorecardRow
from qtoolkit.artifacts.sensitivity import LayerSensitivity, Sensitivity

HOSTILE = '<script>alert(1)</script>[red]|x|`y`\x1b[31m\n& "quoted"'


def _latency(p50_ms: float = 45.2, **changes: Any) -> LatencyFigures:
    facts: dict[str, Any] = {
        "target": "ort-cpu",
        "measured": True,
        "device": "Test CPU @ 2.10GHz",
        "runtime": "onnxruntime",
        "version": "1.32.0",
        "p50_ms": p50_ms,
        "p90_ms": p50_ms + 1,
        "p99_ms": p50_ms + 2,
        "images_per_second": 1000 / p50_ms,
        "conditions": {"threads": 2, "batch": 1, "count": 200, "provider": "CPUExecutionProvider"},
    }
    return LatencyFigures(**{**facts, **changes})


def _modelled(p50_ms: float = 12.3, **changes: Any) -> LatencyFigures:
    facts = {"measured": False, "error_band_pct": 6.0, "device": "Test board", "runtime": "TensorRT", "version": "10.3"}
    return _latency(p50_ms, **{**facts, **changes})


def _row(variant: str = "mixed", **changes: Any) -> ScorecardRow:
    facts: dict[str, Any] = {
        "variant": variant,
        "file": f"model.{variant}.onnx",
        "sha256": "0123456789ab" + "0" * 52,
        "precisions": {"int16": 22, "int8": 50},
        "weights_bits": 8,
        "activation_bits": 8,
        "layers_16bit": 22,
        "layers_total": 72,
        "macs_16bit_share": 0.313,
        "gmacs": 4.617,
        "bops_g": 388.25,
        "size_mb": 3.456,
        "accuracy_on": "onnxruntime 1.32.0",
        "ap": 53.281,
        "ap50": 81.204,
        "ap75": 57.003,
        "retention": 0.98899,
        "agreement": 92.316,
        "latency": _latency(33.14, ratio=0.733, ratio_lo=0.702, ratio_hi=0.758),
    }
    return ScorecardRow(**{**facts, **changes})


def _rows() -> tuple[ScorecardRow, ...]:
    return (
        _row("float", precisions={"fp32": 72}, weights_bits=32, activation_bits=32, layers_16bit=0, macs_16bit_share=0,
             bops_g=4727.6, size_mb=13.4, ap=53.874, retention=1.0, agreement=100.0,
             latency=_latency(45.21, ratio=1.0, ratio_lo=1.0, ratio_hi=1.0)),
        _row("int8", precisions={"int8": 72}, layers_16bit=0, macs_16bit_share=0, ap=52.7,
             latency=_latency(28.91, ratio=0.639, ratio_lo=0.62, ratio_hi=0.66)),
        _row("mixed"),
    )  # fmt: skip


def _card(rows: tuple[ScorecardRow, ...] | None = None, **changes: Any) -> Scorecard:
    facts: dict[str, Any] = {
        "qtoolkit": "0.1.0",
        "target": "ort-cpu",
        "model": ModelFacts(name="net.onnx", sha256="ab" * 32, input_size_wh=(640, 480), gmacs=4.617, params_m=3.29),
        "data": DataFacts(
            name="coco", images=300, sha256="3f2a91c04b1e" + "0" * 52, skipped=2, calibration_images=158,
            calibration_sha256="cd" * 32,
        ),
        "environment": {"cpu": "Test CPU", "governor": None, "packages": {"numpy": "2.4", "onnx": "1.23"}},
        "settings": {"mixed": 0.3, "bias_correction": True},
        "rows": _rows() if rows is None else rows,
        "notes": ("16-bit layers cost float time here",),
    }  # fmt: skip
    return Scorecard(**{**facts, **changes})


@pytest.fixture
def latency() -> Callable[..., LatencyFigures]:
    """Makes a measured latency: 45.2 ms unless told otherwise."""
    return _latency


@pytest.fixture
def modelled() -> Callable[..., LatencyFigures]:
    """Makes a modelled latency: 12.3 ms ± 6 %."""
    return _modelled


@pytest.fixture
def row() -> Callable[..., ScorecardRow]:
    """Makes a row of a scorecard, ``mixed`` unless told otherwise."""
    return _row


@pytest.fixture
def card() -> Callable[..., Scorecard]:
    """Makes a scorecard with the variants float, int8 and mixed."""
    return _card


@pytest.fixture
def sensitivity() -> Sensitivity:
    """Three layers whose losses are not in network order."""
    layers = (
        LayerSensitivity(layer="/stem/Conv", loss=0.002, sqnr_db=31.44, macs=10, macs_share=0.1, added_ms=0.25),
        LayerSensitivity(layer="/neck/Conv", loss=0.0001, sqnr_db=44.0, macs=30, macs_share=0.3, added_ms=0.5),
        LayerSensitivity(layer="/head/Conv", loss=0.03, sqnr_db=None, macs=60, macs_share=0.6, added_ms=None),
    )
    return Sensitivity(
        metric="oks", precision=Precision.INT8, target="ort-cpu", model_sha256="", calibration_sha256="", images=64,
        people=120, seconds=1.0, layers=layers,
    )  # fmt: skip


@pytest.fixture
def plan() -> PrecisionPlan:
    """int16 for the head, int8 for the stem; the neck is not in it."""
    return PrecisionPlan(
        made_by="oks, 30 % of layers", layers={"/stem/Conv": Precision.INT8, "/head/Conv": Precision.INT16}
    )


@pytest.fixture
def hostile() -> str:
    """A name with HTML, rich markup, Markdown, an escape code and a line break in it."""
    return HOSTILE


@pytest.fixture
def shown() -> Callable[..., str]:
    """Renders for a terminal of ``width`` columns, without styles unless ``styles``."""

    def show(renderable: RenderableType, width: int = 120, *, styles: bool = False) -> str:
        stream = io.StringIO()
        colours = "truecolor" if styles else None
        Console(file=stream, width=width, force_terminal=styles, color_system=colours, legacy_windows=False).print(
            renderable
        )
        return stream.getvalue()

    return show
