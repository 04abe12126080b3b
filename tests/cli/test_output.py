from __future__ import annotations

from pathlib import Path

import pytest
from rich.table import Table

from qtoolkit.cli.output import list_skipped, listing, print_table, skipped_records
from qtoolkit.data.samples import SkippedImage


def _skipped(count: int) -> list[SkippedImage]:
    return [SkippedImage(Path(f"photos/{place}.jpg"), f"reason {place}") for place in range(count)]


class TestListSkipped:
    def test_none_is_no_line(self, capsys):
        list_skipped([])
        assert capsys.readouterr() == ("", "")

    def test_all_of_ten(self, capsys):
        list_skipped(_skipped(10))
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "photos that could not be used and were left out: 10"
        assert lines[1:] == [f"  {place}.jpg: reason {place}" for place in range(10)]

    def test_ten_of_twelve(self, capsys):
        list_skipped(_skipped(12))
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[-2:] == ["  9.jpg: reason 9", "  … and 2 more"]

    def test_names_cannot_steer_the_terminal(self, capsys):
        list_skipped([SkippedImage(Path("a\x1b[2J.jpg"), "bad\nline")])
        assert capsys.readouterr().err.splitlines()[1] == "  a�[2J.jpg: bad line"


def test_skipped_records_hold_all_of_them():
    records = skipped_records(_skipped(12))
    assert len(records) == 12
    assert records[0] == {"path": str(Path("photos/0.jpg")), "reason": "reason 0"}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (2, "0, 1"), (10, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"), (12, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 … and 2 more")],
)
def test_listing(count, text):
    assert listing(range(count)) == text


class TestPrintTable:
    @staticmethod
    def _table() -> Table:
        table = Table("name", "value")
        table.add_row("x" * 90, "y" * 30)
        return table

    def test_a_pipe_is_wide(self, capsys, monkeypatch):
        monkeypatch.delenv("COLUMNS", raising=False)
        print_table(self._table())
        assert "x" * 90 in capsys.readouterr().out

    def test_columns_says_how_wide(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")
        print_table(self._table())
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 60
