"""The drawings of the page: AP against latency, and the ranking of layers. The one place that knows plotly."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.scorecard import Scorecard, ScorecardRow
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.reporting import cells
from qtoolkit.reporting.columns import RankedLayer, ranked
from qtoolkit.reporting.conditions import latency_conditions, loss_unit

__all__ = ["accuracy_latency_figure", "figure_html", "plotly_library", "sensitivity_figure"]

# Okabe & Ito's colours, which stay apart for colour-blind readers: https://jfly.uni-koeln.de/color/
_PRECISION_COLOURS = {
    Precision.FP32: "#7f7f7f",
    Precision.FP16: "#56b4e9",
    Precision.INT16: "#e69f00",
    Precision.INT16W16: "#cc79a7",
    Precision.INT8: "#009e73",
}
_NO_PLAN_COLOUR = "#0072b2"
_GROUP_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_NAME_LENGTH = 44
_BAR_PX, _FRAME_PX = 20, 110


def accuracy_latency_figure(scorecard: Scorecard) -> Any | None:
    """A plotly figure: one point a variant, latency p50 in ms against AP (0–100), or agreement where there is no AP.

    Points that hold under the same conditions share a colour. A modelled one is a hollow diamond with its error band,
    and its group says ``modelled``. None where no variant has both figures.
    """
    metric = "ap" if any(row.ap is not None and row.latency is not None for row in scorecard.rows) else "agreement"
    rows = [row for row in scorecard.rows if row.latency is not None and getattr(row, metric) is not None]
    if not rows:
        return None
    groups: dict[str, list[ScorecardRow]] = {}
    for row in rows:
        groups.setdefault(latency_conditions([(row.variant, row.latency)])[0][1], []).append(row)
    figure = go.Figure()
    for index, (conditions, members) in enumerate(groups.items()):
        figure.add_trace(_points(members, metric, conditions, _GROUP_COLOURS[index % len(_GROUP_COLOURS)]))
    figure.update_layout(_layout(height=420), showlegend=True, legend={"orientation": "h", "yanchor": "top", "y": -0.2})
    figure.update_xaxes(title_text="latency p50, ms", rangemode="tozero")
    figure.update_yaxes(title_text="AP" if metric == "ap" else "agreement with the float network, AP")
    return figure


def sensitivity_figure(sensitivity: Sensitivity, plan: PrecisionPlan | None = None, top: int = 40) -> Any | None:
    """A plotly figure: the ``top`` layers' losses as bars, most sensitive first, coloured by the precision in the plan.

    None where the ranking is empty.
    """
    rows = ranked(sensitivity, plan, top)
    if not rows:
        return None
    figure = go.Figure()
    # In the order of Precision, so that the legend and the file do not depend on the ranking.
    for precision in (*Precision, None):
        members = [row for row in rows if row.precision is precision]
        if members:
            figure.add_trace(_bars(members, precision, plan))
    figure.update_layout(_layout(height=_FRAME_PX + _BAR_PX * len(rows)), showlegend=plan is not None, bargap=0.25)
    figure.update_layout(legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0})
    figure.update_xaxes(title_text=html.escape(f"loss: {loss_unit(sensitivity)}"), rangemode="tozero")
    names = [html.escape(_shortened(cells.plain(row.sensitivity.layer))) for row in rows]
    # By rank and not by name: two names may be the same once they are shortened.
    figure.update_yaxes(
        tickvals=[row.rank for row in rows], ticktext=names, range=[len(rows) + 0.6, 0.4], showgrid=False
    )
    return figure


def figure_html(figure: Any, div_id: str) -> str:
    """The figure as an HTML fragment that expects plotly.js on the page; the same figure gives the same text."""
    fragment: str = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=div_id,
        default_height=f"{figure.layout.height}px",
        config={"displayModeBar": False, "responsive": True},
    )
    return fragment


def plotly_library() -> str:
    """The text of plotly.min.js, about 4.5 MB."""
    library: str = get_plotlyjs()
    return library


def _points(rows: Sequence[ScorecardRow], metric: str, conditions: str, colour: str) -> Any:
    rows = sorted(rows, key=lambda row: row.latency.p50_ms if row.latency is not None else 0.0)
    latencies = [row.latency for row in rows if row.latency is not None]
    measured = latencies[0].measured
    bands = [each.p50_ms * (each.error_band_pct or 0.0) / 100 for each in latencies]
    names = [html.escape(cells.plain(row.variant)) for row in rows]
    return go.Scatter(
        name=html.escape(f"measured: {conditions}" if measured else conditions),
        x=[each.p50_ms for each in latencies],
        y=[getattr(row, metric) for row in rows],
        mode="markers+text",
        text=names if measured else [f"{name} (modelled)" for name in names],
        # In turns above and below, because variants of one network often lie close together.
        textposition=[("top center", "bottom center")[index % 2] for index in range(len(rows))],
        cliponaxis=False,
        marker={
            "size": 11,
            "color": colour,
            "symbol": "circle" if measured else "diamond-open",
            "line": {"width": 2, "color": colour},
        },
        error_x=None if measured else {"type": "data", "array": bands, "color": colour},
        customdata=[[cells.p50(each), cells.p99(each), cells.ratio(each)] for each in latencies],
        hovertemplate=(
            "<b>%{text}</b><br>p50 %{customdata[0]} ms · p99 %{customdata[1]} ms"
            "<br>%{y:.2f} AP · × float %{customdata[2]}<extra></extra>"
        ),
    )


def _bars(rows: Sequence[RankedLayer], precision: Precision | None, plan: PrecisionPlan | None) -> Any:
    unplanned = "all layers" if plan is None else "not in the plan"
    return go.Bar(
        name=unplanned if precision is None else precision.value,
        orientation="h",
        x=[row.sensitivity.loss for row in rows],
        y=[row.rank for row in rows],
        marker={
            "color": _NO_PLAN_COLOUR if precision is None else _PRECISION_COLOURS[precision],
            "line": {"width": 0},
        },
        customdata=[
            [html.escape(cells.plain(row.sensitivity.layer)), cells.percent(row.sensitivity.macs_share)] for row in rows
        ],
        hovertemplate="<b>%{customdata[0]}</b><br>loss %{x:.3g} · %{customdata[1]} % of MACs<extra></extra>",
    )


def _layout(height: int) -> dict[str, Any]:
    # Transparent, with colours that the page's style sheet replaces: so a drawing follows light and dark with the page.
    return {
        "template": "none",
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#777777"},
        "margin": {"l": 60, "r": 24, "t": 30, "b": 50},
        "xaxis": {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "automargin": True},
        "yaxis": {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "automargin": True},
    }


def _shortened(name: str) -> str:
    """A name of at most 44 characters: what stands in its middle says least about a layer."""
    if len(name) <= _NAME_LENGTH:
        return name
    half = (_NAME_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
