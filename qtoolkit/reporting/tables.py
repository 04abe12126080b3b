"""Tables for a terminal: scorecard, ranking of layers, latencies, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rich.table import Table

from qtoolkit.artifacts.frontier import Frontier
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.artifacts.scorecard import LatencyFigures, Scorecard
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.reporting import cells
from qtoolkit.reporting.columns import (
    LATENCY_COLUMNS,
    SCORECARD_COLUMNS,
    Column,
    NamedLatency,
    ranked,
    sensitivity_columns,
)
from qtoolkit.reporting.conditions import conditions_lines, latency_conditions, sensitivity_line, title
from qtoolkit.reporting.fitting_table import FittingTable, TableColumn

__all__ = ["bench_table", "frontier_table", "metrics_table", "scorecard_table", "sensitivity_table"]

RowT = TypeVar("RowT")

_MODELLED = "italic yellow"
_METRIC_TITLES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_m": "AP-M",
    "ap_l": "AP-L",
    "ar": "AR",
    "ar50": "AR50",
    "ar75": "AR75",
    "ar_m": "AR-M",
    "ar_l": "AR-L",
    "pck": "PCK",
    "pckh50": "PCKh@0.5",
}


def scorecard_table(scorecard: Scorecard) -> Table:
    """One row a variant, with the conditions in one line below and the notes after it.

    Fits in 120 columns; a narrower terminal shows fewer (AP and p50 always). A modelled latency carries its mark.
    """
    rows = scorecard.rows
    columns = _filled(SCORECARD_COLUMNS, rows, lambda row: row.latency is not None and not row.latency.measured)
    notes = [f"• {cells.plain(note)}" for note in scorecard.notes]
    return FittingTable(columns, title=title(scorecard), footer=[*conditions_lines(scorecard), *notes])


def sensitivity_table(sensitivity: Sensitivity, plan: PrecisionPlan | None = None, top: int = 20) -> Table:
    """The ``top`` most sensitive layers: loss, SQNR, share of MACs, time that 16 bit adds, precision in the plan."""
    rows = ranked(sensitivity, plan, top)
    columns = _filled(sensitivity_columns(sensitivity, plan), rows, lambda row: False)
    return FittingTable(columns, title="Most sensitive layers", footer=[sensitivity_line(sensitivity, len(rows))])


def frontier_table(frontier: Frontier) -> Table:
    """One row a plan, by rising cost: what it was allowed, what it takes, what it keeps; ``*`` marks the front."""
    points = frontier.points
    texts = {
        "budget": [f"{100 * point.share:.0f} %" for point in points],
        f"{frontier.unit} taken": [f"{100 * point.cost:.1f} %" for point in points],
        "16-bit layers": [str(point.layers_16bit) for point in points],
        "MACs at 16 bit": [f"{100 * point.macs_16bit_share:.0f} %" for point in points],
        "predicted loss": [f"{point.predicted_loss:.4f}" for point in points],
        "kept": [f"{100 * point.kept:.2f} %" for point in points],
        "front": ["*" if point.on_front else "" for point in points],
    }
    columns = [TableColumn(name, "", tuple(cell), tuple(cell), ("",) * len(points)) for name, cell in texts.items()]
    what = "AP of the float network's" if frontier.measured == "ap" else "agreement with the float network"
    return FittingTable(
        columns,
        title="Frontier",
        footer=[
            f"kept: {what}, on {frontier.photos} photos of {cells.plain(frontier.photos_part)}, none of them of val; "
            "* no cheaper plan keeps as much",
            f"target {cells.plain(frontier.target)} · ranking by {frontier.metric}",
        ],
    )


def bench_table(
    results: Sequence[tuple[str, LatencyFigures]], gmacs: Mapping[str, float | None] | None = None
) -> Table:
    """(name, latency) rows of one run, ratios against its first; ``gmacs`` is name → 10⁹ MACs of one image."""
    counted = gmacs or {}
    rows = [NamedLatency(name, figures, counted.get(name)) for name, figures in results]
    columns = _filled(LATENCY_COLUMNS, rows, lambda row: not row.figures.measured)
    groups = latency_conditions(results)
    return FittingTable(columns, footer=[what if len(groups) == 1 else f"{names}: {what}" for names, what in groups])


def metrics_table(
    metrics: Mapping[str, float | int | str | None], *, title: str = "", footer: Sequence[str] = ()
) -> Table:
    """Name → value, one row each; floats with two decimals, None as ``–``. ``footer`` lines state the conditions."""
    names = tuple(cells.plain(_METRIC_TITLES.get(name, name)) for name in metrics)
    values = tuple(_value(value) for value in metrics.values())
    unstyled = ("",) * len(names)
    columns = (
        TableColumn("metric", "", names, names, unstyled, left=True),
        TableColumn("value", "", values, values, unstyled),
    )
    return FittingTable(columns, title=cells.plain(title), footer=[cells.plain(line) for line in footer])


def _filled(
    columns: Sequence[Column[RowT]], rows: Sequence[RowT], is_modelled: Callable[[RowT], bool]
) -> tuple[TableColumn, ...]:
    return tuple(
        TableColumn(
            title=column.title,
            heading=column.heading,
            texts=tuple(column.cell(row) for row in rows),
            short=tuple((column.short_cell or column.cell)(row) for row in rows),
            styles=tuple(_MODELLED if column.is_latency and is_modelled(row) else "" for row in rows),
            left=column.left,
            drop=column.drop,
            shorten=column.shorten,
        )
        for column in columns
    )


def _value(value: float | int | str | None) -> str:
    if isinstance(value, float):
        return cells.fixed(value)
    return cells.flat(value)
