"""The results as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peer_figures import REFERENCES

HEADER = (
    *("tool", "setting", "AP", "AP50", "agreement", "p50 ms", "× float", "s", "CPU s", "peak MB", "Q / DQ", "MB"),
)
OPENVINO_HEADER = ("tool", "setting", "AP", "agreement", "p50 ms", "× float", "s", "CPU s", "peak MB")


def results_text(results: Mapping[str, Any]) -> str:
    """All tables and the lines below them."""
    rows = results["rows"]
    everywhere = max((row.get("images_all", 0) for row in rows), default=0)
    parts = [_table(HEADER, (_cells(row) for row in rows if row.get("ran_on") != "openvino-cpu"))]
    of_all = f"agreement on {everywhere} photos"
    if everywhere:
        with_it = [row for row in rows if row.get("agreement_all") is not None]
        header = ("tool", "setting", of_all)
        parts.append(
            _table(header, ([row["title"], row["setting"], _number(row["agreement_all"], 2)] for row in with_it))
        )
    for measure, title in (("ap", "AP"), ("agreement", "agreement"), ("agreement_all", of_all)):
        compared = [row for row in rows if any(measure in each for each in row.get("differences", {}).values())]
        if compared:
            header = ("tool", "setting", *(f"{title} − {name}'s" for name in REFERENCES))
            parts.append(_table(header, (_difference_cells(row, measure) for row in compared)))
    openvino = [row for row in rows if row.get("openvino")]
    if openvino:
        parts.append("On OpenVINO, measured in NNCF's environment:")
        parts.append(_table(OPENVINO_HEADER, map(_openvino_cells, openvino)))
    not_run = [f"- {row['label']}: not run: {row['reason']}" for row in rows if row.get("reason")]
    not_run += [
        f"- {row['label']}: not on OpenVINO: {row['openvino']['refused']}"
        for row in openvino
        if "refused" in row["openvino"]
    ]
    parts += ["\n".join(not_run)] if not_run else []
    parts.append("\n".join(f"- {row['label']}{_version(row)}: {row['text']}" for row in rows))
    parts.append("\n".join(results["conditions"]))
    return "\n\n".join(parts) + "\n"


def _version(row: Mapping[str, Any]) -> str:
    return f" ({row['version']})" if row.get("version") else ""


def _cells(row: Mapping[str, Any]) -> list[str]:
    latency = row.get("latency") or {}
    counts = f"{row['q']} / {row['dq']}" if row.get("q") is not None else "–"
    accuracy = [_number(row.get(name), 2) for name in ("ap", "ap50", "agreement")]
    size_mb = _number(row.get("size_mb"), 2)
    return [row["title"], row["setting"], *accuracy, *_latency_cells(latency), *_cost_cells(row), counts, size_mb]


def _difference_cells(row: Mapping[str, Any], measure: str) -> list[str]:
    found = [row["differences"].get(name, {}).get(measure) for name in REFERENCES]
    cells = [f"{each['value']:+.2f} ({each['lo']:+.2f} to {each['hi']:+.2f})" if each else "–" for each in found]
    return [row["title"], row["setting"], *cells]


def _openvino_cells(row: Mapping[str, Any]) -> list[str]:
    figures = row["openvino"]
    accuracy = [_number(figures.get(name), 2) for name in ("ap", "agreement")]
    return [row["title"], row["setting"], *accuracy, *_latency_cells(figures), *_cost_cells(row)]


def _latency_cells(figures: Mapping[str, Any]) -> list[str]:
    if "ratio" not in figures:
        return ["–", "–"]
    ratio = f"{figures['ratio']:.2f} ({figures['ratio_lo']:.2f}–{figures['ratio_hi']:.2f})"
    return [_number(figures["p50_ms"], 1), ratio]


def _cost_cells(row: Mapping[str, Any]) -> list[str]:
    return [_number(row.get(name), digits) for name, digits in (("seconds", 1), ("cpu_seconds", 1), ("peak_rss_mb", 0))]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
