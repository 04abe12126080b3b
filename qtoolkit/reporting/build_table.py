"""What ``qtool build`` made, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from qtoolkit.reporting.cells import plain

__all__ = ["build_table"]

_LISTED = 8
_MB = 1e6


def build_table(result: Mapping[str, Any]) -> Table:
    """One row per fact of a ``BuildResult`` in JSON; sizes in MB of 10⁶ bytes, times in seconds."""
    table = Table(title=plain(f"built for {result['target']}"), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for label, text in _rows(result):
        table.add_row(label, plain(text))
    return table


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", f"{result['file']} ({result['file_bytes'] / _MB:.2f} MB; ONNX {result['onnx_bytes'] / _MB:.2f} MB)"
    yield "with", f"{result['library']} {result['version']}"
    if result["built_for"]:
        yield "for", ", ".join(result["built_for"])
    dialect = f", {result['dialect']}ly typed" if result["dialect"] else ""
    yield "precision", f"{result['precision']}{dialect}; NMS {'inside' if result['nms'] == 'onnx' else 'on the host'}"
    if result["build_s"] is not None:
        yield "time", f"read in {result['parse_s']:.2f} s, built in {result['build_s']:.2f} s"
    if "int8" in result["layers"]:
        running = result["int8_layers"]
        known = "the runtime chooses on the device" if running is None else f"{running} run in int8"
        yield "int8 layers", f"{result['layers']['int8']} in the network, {known}"
    yield from _listed("not in int8", [f"{name}: {why}" for name, why in result["not_int8"].items()])
    yield from _listed("warnings", [f"{text} ({count}×)" for text, count in result["warnings"].items()])


def _listed(label: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    for position, line in enumerate(lines[:_LISTED]):
        yield (label if position == 0 else ""), line
    if len(lines) > _LISTED:
        yield "", f"… and {len(lines) - _LISTED} more"
