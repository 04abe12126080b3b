"""The report as Markdown: scorecard, conditions, plan and ranking. The same artefacts give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

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

__all__ = ["scorecard_markdown"]

RowT = TypeVar("RowT")

_MARKUP = re.compile(r"([\\`*_\[\]|])")


def scorecard_markdown(
    scorecard: Scorecard, sensitivity: Sensitivity | None = None, plan: PrecisionPlan | None = None, top: int = 20
) -> str:
    """The text of report.md (GitHub's Markdown). ``top`` layers of the ranking are listed; all at 16 bit are."""
    parts = [
        f"# {_escape(title(scorecard))}",
        _table(SCORECARD_COLUMNS, scorecard.rows),
        _bullets(map(_escape, (*conditions_lines(scorecard), *map(cells.plain, scorecard.notes)))),
        "## Conditions",
        _pairs(conditions(scorecard)),
        *(["### Machine and software", _pairs(environment(scorecard))] if scorecard.environment else []),
        "## Files",
        _files(scorecard),
        *([] if plan is None else ["## Layers at 16 bit", *_plan(plan)]),
        *([] if sensitivity is None else ["## Most sensitive layers", *_ranking(sensitivity, plan, top)]),
        "## How to read this",
        _bullets(map(_escape, HOW_TO_READ)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[Column[RowT]], rows: Sequence[RowT]) -> str:
    lines = [[_escape(column.title) for column in columns], [":--" if column.left else "--:" for column in columns]]
    lines += [[_escape(column.cell(row)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _files(scorecard: Scorecard) -> str:
    header = ["| variant | file | layers by precision | sha256 |", "|:--|:--|:--|:--|"]
    rows = [
        f"| {_escape(cells.plain(row.variant))} | {_code(row.file)} | {_escape(cells.precisions(row))}"
        f" | {_code(cells.short_hash(row.sha256))} |"
        for row in scorecard.rows
    ]
    return "\n".join(header + rows)


def _plan(plan: PrecisionPlan) -> list[str]:
    names = [f"{_code(name)} {plan.layers[name].value}" for name in plan.layers_16bit]
    return [_escape(plan_summary(plan)), *([_bullets(names)] if names else [])]


def _ranking(sensitivity: Sensitivity, plan: PrecisionPlan | None, top: int) -> list[str]:
    rows = ranked(sensitivity, plan, top)
    return [_escape(sensitivity_line(sensitivity, len(rows))), _table(sensitivity_columns(sensitivity, plan), rows)]


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return _bullets(f"**{_escape(name)}**: {_escape(value)}" for name, value in pairs)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _code(text: str) -> str:
    """A code span of any text: fenced by more backticks than the text has in a row, ``|`` escaped for tables."""
    text = cells.plain(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if longest else ""
    return f"{fence}{padding}{text}{padding}{fence}".replace("|", "\\|")


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKUP.sub(r"\\\1", text)
    # A pair strikes the text between it through; a single one, the mark of a modelled figure, stays readable as it is.
    return text.replace("~", "\\~") if text.count("~") > 1 else text
