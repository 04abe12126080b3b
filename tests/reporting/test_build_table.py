from __future__ import annotations

from io import StringIO

from rich.console import Console

from qtoolkit.reporting.build_table import build_table

RESULT = {
    "target": "tensorrt", "file": "a.engine", "file_bytes": 2_500_000, "onnx_bytes": 1_000_000, "library": "tensorrt",
    "version": "10.3.0", "built_for": ["Orin"], "dialect": "weak", "precision": "int8", "nms": "onnx", "parse_s": 0.5,
    "build_s": 61.25, "layers": {"int8": 12}, "int8_layers": 2, "warnings": {"WARNING: slow": 3},
    "not_int8": {f"conv{i}": "runs on fp16" for i in range(10)},
}  # fmt: skip


def shown(**changed):
    stream = StringIO()
    Console(file=stream, width=120).print(build_table({**RESULT, **changed}))
    return stream.getvalue()


def test_every_fact_is_shown():
    text = shown()
    for part in (
        "a.engine (2.50 MB; ONNX 1.00 MB)", "tensorrt 10.3.0", "Orin", "int8, weakly typed; NMS inside",
        "read in 0.50 s, built in 61.25 s", "12 in the network, 2 run in int8", "conv0: runs on fp16", "… and 2 more",
        "WARNING: slow (3×)",
    ):  # fmt: skip
        assert part in text, part


def test_what_only_the_device_knows_is_said():
    text = shown(int8_layers=None, not_int8={}, warnings={}, nms="host", dialect=None, build_s=None, parse_s=None)
    assert "12 in the network, the runtime chooses on the device" in text
    assert "not in int8" not in text and "warnings" not in text and "built in" not in text
