"""Columns of the scorecard, the latency table and the ranking: one list each for terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.scorecard import LatencyFigures, ScorecardRow
from qtoolkit.artifacts.sensitivity import LayerSensitivity, Sensitivity
from qtoolkit.reporting import cells

__all__ = [
    "LATENCY_COLUMNS",
    "SCORECARD_COLUMNS",
    "Column",
    "NamedLatency",
    "RankedLayer",
    "ranked",
    "sensitivity_columns",
]

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class Column(Generic[RowT]):
    """One column: ``title`` in full, ``cell`` of a row, ``heading`` the title for a terminal where that is too long.

    A narrow terminal shows ``short_cell`` from turn ``shorten`` on and loses the column in turn ``drop`` (0: never).
    ``is_latency`` marks the columns whose cells may be modelled.
    """

    title: str
    cell: Callable[[RowT], str]
    drop: int = 0
    heading: str = ""
    short_cell: Callable[[RowT], str] | None = None
    shorten: int = 0
    left: bool = False
    is_latency: bool = False


@dataclass(frozen=True)
class NamedLatency:
    """One row of the latency table; ``gmacs`` is 10⁹ multiply-adds of one image, None where they were not counted."""

    name: str
    figures: LatencyFigures
    gmacs: float | None = None


@dataclass(frozen=True)
class RankedLayer:
    """One row of the ranking: ``rank`` from 1, and the precision the plan gave it (None: not in the plan)."""

    rank: int
    sensitivity: LayerSensitivity
    precision: Precision | None


SCORECARD_COLUMNS: tuple[Column[ScorecardRow], ...] = (
    Column("variant", lambda row: cells.plain(row.variant), left=True),
    Column("bits W/A", cells.bits, drop=7, heading="bits\nW/A"),
    Column(
        "16-bit layers",
        cells.layers_16bit,
        drop=8,
        heading="16-bit layers\n(of MACs)",
        short_cell=lambda row: cells.layers_16bit(row, of_macs=""),
        shorten=1,
    ),
    Column("GMACs", lambda row: cells.fixed(row.gmacs), drop=4),
    Column("GBOPs", lambda row: cells.fixed(row.bops_g, 1), drop=3),
    Column("MB", lambda row: cells.fixed(row.size_mb), drop=10),
    Column("AP", lambda row: cells.fixed(row.ap)),
    Column("AP50", lambda row: cells.fixed(row.ap50), drop=6),
    Column("AP75", lambda row: cells.fixed(row.ap75), drop=2),
    Column("retention %", lambda row: cells.percent(row.retention), drop=5, heading="reten-\ntion %"),
    Column("agreement", lambda row: cells.fixed(row.agreement), drop=11, heading="agree-\nment"),
    Column("p50 ms", lambda row: cells.p50(row.latency), is_latency=True),
    Column("p99 ms", lambda row: cells.p99(row.latency), drop=12, is_latency=True),
    Column(
        "× float",
        lambda row: cells.ratio(row.latency),
        drop=13,
        short_cell=lambda row: cells.ratio(row.latency, interval=False),
        shorten=9,
        is_latency=True,
    ),
)

LATENCY_COLUMNS: tuple[Column[NamedLatency], ...] = (
    Column("network", lambda row: cells.plain(row.name), left=True),
    Column("target", lambda row: cells.plain(row.figures.target), drop=2, left=True),
    Column("GMACs", lambda row: cells.fixed(row.gmacs), drop=1),
    Column("p50 ms", lambda row: cells.p50(row.figures), is_latency=True),
    Column("p90 ms", lambda row: cells.p90(row.figures), drop=4, is_latency=True),
    Column("p99 ms", lambda row: cells.p99(row.figures), drop=6, is_latency=True),
    Column("images/s", lambda row: cells.throughput(row.figures), drop=5, is_latency=True),
    Column(
        "× first",
        lambda row: cells.ratio(row.figures),
        drop=7,
        short_cell=lambda row: cells.ratio(row.figures, interval=False),
        shorten=3,
        is_latency=True,
    ),
)


def sensitivity_columns(sensitivity: Sensitivity, plan: PrecisionPlan | None) -> tuple[Column[RankedLayer], ...]:
    """Columns of the ranking: SQNR and added time where a layer has them, the precision where there is a plan."""
    columns: list[Column[RankedLayer]] = [
        Column("rank", lambda row: str(row.rank), drop=2),
        Column("layer", lambda row: cells.plain(row.sensitivity.layer), left=True),
        Column("loss", lambda row: f"{row.sensitivity.loss:.2e}"),
    ]
    if any(each.sqnr_db is not None for each in sensitivity.layers):
        columns.append(Column("SQNR dB", lambda row: cells.fixed(row.sensitivity.sqnr_db, 1), drop=3))
    columns.append(Column("MACs %", lambda row: cells.percent(row.sensitivity.macs_share), drop=4))
    if any(each.added_ms is not None for each in sensitivity.layers):
        columns.append(
            Column(
                "16 bit adds ms",
                lambda row: cells.fixed(row.sensitivity.added_ms, 3),
                drop=1,
                heading="16 bit\nadds ms",
            )
        )
    if plan is not None:
        columns.append(
            Column("precision", lambda row: row.precision.value if row.precision else cells.MISSING, left=True)
        )
    return tuple(columns)


def ranked(sensitivity: Sensitivity, plan: PrecisionPlan | None, top: int | None = None) -> tuple[RankedLayer, ...]:
    """The ``top`` layers (None: all), most sensitive first, with the precision the plan gave each."""
    chosen = {} if plan is None else plan.layers
    ranking = sensitivity.ranking[:top]
    return tuple(RankedLayer(rank, each, chosen.get(each.layer)) for rank, each in enumerate(ranking, 1))
