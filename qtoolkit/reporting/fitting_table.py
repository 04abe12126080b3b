"""A terminal table that loses columns on a narrow terminal, one after the other, instead of wrapping its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["FittingTable", "TableColumn"]

_UNBOUNDED = 10_000
_NARROWEST_NAME = 8


@dataclass(frozen=True)
class TableColumn:
    """A column's texts, one cell a row, and the turns in which a narrow terminal shortens and drops it (0: never).

    ``short`` are the shorter cells; ``styles`` are rich styles, one a row. A ``left`` column holds names: it alone is
    cut where nothing is left to drop, because a number that is cut is a wrong number.
    """

    title: str
    heading: str
    texts: tuple[str, ...]
    short: tuple[str, ...]
    styles: tuple[str, ...]
    left: bool = False
    drop: int = 0
    shorten: int = 0


class FittingTable(Table):
    """Shows every column where there is room; else columns are shortened and dropped in their turn until the rest fits.

    ``footer`` lines stand below, as wide as the terminal; one more says which columns it had no room for. All text is
    shown as it is: square brackets are no markup here.
    """

    def __init__(self, columns: Sequence[TableColumn], *, title: str = "", footer: Sequence[str] = ()) -> None:
        super().__init__(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        self._all = tuple(columns)
        self._heading = title
        self._footer = tuple(footer)
        _fill(self, self._all)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = self._fit(console, options)
        if self._heading:
            yield Text(self._heading, style="bold")
        yield _plain_table(columns, cut=_width(columns, console, options) - options.max_width)
        shown = {column.title for column in columns}
        hidden = [column.title for column in self._all if column.title not in shown]
        footer = [*self._footer, f"no room at this width for: {', '.join(hidden)}"] if hidden else self._footer
        for line in footer:
            yield Text(line, style="dim")

    def _fit(self, console: Console, options: ConsoleOptions) -> list[TableColumn]:
        """The columns that fit, with their short cells where their turn had come."""
        columns = list(self._all)
        turns = [(column.shorten, False, column.title) for column in columns if column.shorten]
        turns += [(column.drop, True, column.title) for column in columns if column.drop]
        for _, drops, title in sorted(turns):
            if _width(columns, console, options) <= options.max_width:
                break
            if drops:
                columns = [column for column in columns if column.title != title]
            else:
                columns = [replace(each, texts=each.short) if each.title == title else each for each in columns]
        return columns


def _plain_table(columns: Sequence[TableColumn], cut: int = 0) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    _fill(table, columns, cut)
    return table


def _fill(table: Table, columns: Sequence[TableColumn], cut: int = 0) -> None:
    """Add columns and rows; the widest column of names becomes ``cut`` characters narrower."""
    widths = {column.title: _name_width(column) for column in columns if column.left}
    widest = max(widths, key=lambda title: widths[title], default="")
    for column in columns:
        is_cut = cut > 0 and column.title == widest
        table.add_column(
            Text(column.heading or column.title),
            justify="left" if column.left else "right",
            vertical="bottom",
            no_wrap=True,
            overflow="ellipsis",
            max_width=max(_NARROWEST_NAME, widths[widest] - cut) if is_cut else None,
        )
    for row in range(len(columns[0].texts) if columns else 0):
        table.add_row(*(Text(column.texts[row], style=column.styles[row]) for column in columns))


def _name_width(column: TableColumn) -> int:
    return max(Text(text).cell_len for text in (*(column.heading or column.title).splitlines(), *column.texts))


def _width(columns: Sequence[TableColumn], console: Console, options: ConsoleOptions) -> int:
    return Measurement.get(console, options.update_width(_UNBOUNDED), _plain_table(columns)).maximum
