"""The report as files: report.md, and report.html with its drawings, which opens without a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import jinja2

from qtoolkit.artifacts.files import prepare_out_dir, write_text
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.artifacts.scorecard import Scorecard
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.reporting import cells
from qtoolkit.reporting.columns import SCORECARD_COLUMNS, Column, ranked, sensitivity_columns
from qtoolkit.reporting.conditions import (
    HOW_TO_READ,
    conditions,
    conditions_lines,
    environment,
    plan_summary,
    sensitivity_line,
    title,
)
from qtoolkit.reporting.markdown import scorecard_markdown
from qtoolkit.reporting.plots import accuracy_latency_figure, figure_html, plotly_library, sensitivity_figure

__all__ = ["HTML_NAME", "LIBRARY_NAME", "MARKDOWN_NAME", "scorecard_html", "write_report"]

RowT = TypeVar("RowT")

MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"
LIBRARY_NAME = "plotly.min.js"
_TEMPLATE = "page.html.jinja"


def write_report(
    out_dir: str | os.PathLike[str],
    scorecard: Scorecard,
    sensitivity: Sensitivity | None = None,
    plan: PrecisionPlan | None = None,
) -> tuple[Path, Path]:
    """Write report.md and report.html and return their paths; plotly.min.js stands beside where there is a drawing.

    Each file is whole or not there. Raises UsageError where the folder cannot be made or written.
    """
    folder = prepare_out_dir(out_dir)
    markdown, page = folder / MARKDOWN_NAME, folder / HTML_NAME
    write_text(markdown, scorecard_markdown(scorecard, sensitivity, plan))
    content = scorecard_html(scorecard, sensitivity, plan)
    # Before the page that reads it; a page without drawings has no use for 4.5 MB beside it.
    if f'src="{LIBRARY_NAME}"' in content:
        _write_library(folder / LIBRARY_NAME)
    write_text(page, content)
    return markdown, page


def scorecard_html(
    scorecard: Scorecard, sensitivity: Sensitivity | None = None, plan: PrecisionPlan | None = None
) -> str:
    """The text of report.html. It reads plotly.min.js from its own folder and nothing from anywhere else."""
    environ = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environ.from_string(files("qtoolkit.reporting").joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    return (
        template.render(
            title=title(scorecard),
            library=LIBRARY_NAME,
            columns=SCORECARD_COLUMNS,
            rows=[_html_row(SCORECARD_COLUMNS, row, _is_modelled(row)) for row in scorecard.rows],
            condition_lines=conditions_lines(scorecard),
            notes=[cells.plain(note) for note in scorecard.notes],
            scatter=_drawing(accuracy_latency_figure(scorecard), "accuracy-latency"),
            conditions=conditions(scorecard),
            environment=environment(scorecard),
            files=[
                (row.variant, row.file, cells.precisions(row), cells.short_hash(row.sha256)) for row in scorecard.rows
            ],
            plan=None if plan is None else {"summary": plan_summary(plan), "layers": _layers_16bit(plan)},
            ranking=None if sensitivity is None else _ranking(sensitivity, plan),
            how_to_read=HOW_TO_READ,
        ).rstrip()
        + "\n"
    )


def _ranking(sensitivity: Sensitivity, plan: PrecisionPlan | None) -> dict[str, Any]:
    columns = sensitivity_columns(sensitivity, plan)
    rows = ranked(sensitivity, plan)
    return {
        "line": sensitivity_line(sensitivity, len(rows)),
        "bars": _drawing(sensitivity_figure(sensitivity, plan), "sensitivity"),
        "columns": columns,
        "rows": [_html_row(columns, row, is_modelled=False) for row in rows],
    }


def _html_row(columns: Sequence[Column[RowT]], row: RowT, is_modelled: bool) -> list[dict[str, Any]]:
    return [
        {"text": column.cell(row), "left": column.left, "modelled": is_modelled and column.is_latency}
        for column in columns
    ]


def _is_modelled(row: Any) -> bool:
    return row.latency is not None and not row.latency.measured


def _layers_16bit(plan: PrecisionPlan) -> list[tuple[str, str]]:
    return [(cells.plain(name), plan.layers[name].value) for name in plan.layers_16bit]


def _drawing(figure: Any | None, div_id: str) -> str:
    return "" if figure is None else figure_html(figure, div_id)


def _write_library(path: Path) -> None:
    library = plotly_library().encode("utf-8")
    # The same folder is reported on again and again, and the library is 4.5 MB.
    if not path.is_file() or path.read_bytes() != library:
        write_text(path, library.decode("utf-8"))
