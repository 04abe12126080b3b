from __future__ import annotations

import pytest

from qtoolkit.reporting.fitting_table import FittingTable, TableColumn


def column(title: str, *texts: str, **options) -> TableColumn:
    facts = {"heading": "", "short": texts, "styles": ("",) * len(texts), **options}
    return TableColumn(title, texts=texts, **facts)


@pytest.fixture
def table() -> FittingTable:
    """Natural width 4 + 2 + 12 + 2 + 6 + 2 + 5 = 33; shortened 26, without ``second`` 18."""
    return FittingTable(
        [
            column("name", "aaaa", "b", left=True),
            column("first", "1.0 (0.9–1.1)"[:12], "2", short=("1.00", "2"), shorten=1, drop=3),
            column("second", "123456", "7", drop=2),
            column("third", "12345", "6"),
        ],
        title="title",
        footer=["footer"],
    )


def heading(text: str) -> list[str]:
    return text.splitlines()[1].split()


@pytest.mark.parametrize(
    ("width", "titles", "first"),
    [
        pytest.param(33, ["name", "first", "second", "third"], "1.0 (0.9–1.1", id="all"),
        pytest.param(32, ["name", "first", "second", "third"], "1.00", id="shortened"),
        pytest.param(26, ["name", "first", "second", "third"], "1.00", id="shortened, just fits"),
        pytest.param(25, ["name", "first", "third"], "1.00", id="second dropped"),
        pytest.param(17, ["name", "third"], None, id="first dropped too"),
        pytest.param(11, ["name", "third"], None, id="the rest just fits"),
    ],
)
def test_columns_give_way_in_their_turn(table, shown, width, titles, first):
    text = shown(table, width)
    assert heading(text) == titles
    assert "…" not in text
    if first is not None:
        assert f" {first} " in text.splitlines()[3]


def test_dropped_columns_are_named(table, shown):
    assert "no room" not in shown(table, 33)
    assert " ".join(shown(table, 25).split()).endswith("no room at this width for: second")
    assert " ".join(shown(table, 17).split()).endswith("no room at this width for: first, second")


def test_title_and_footer(table, shown):
    lines = shown(table, 80).splitlines()
    assert lines[0] == "title"
    assert lines[-1] == "footer"


def test_a_name_is_cut_before_a_number(shown):
    table = FittingTable([column("layer", "/model.22/cv2/conv", left=True), column("loss", "0.000667")])
    row = shown(table, 20).splitlines()[2]
    assert row.rstrip() == "/model.22…  0.000667"


def test_markup_is_text(shown):
    table = FittingTable([column("[bold]a[/bold]", "[/]", left=True)], title="[red]t", footer=["[link]f"])
    text = shown(table, 40)
    for part in ("[bold]a[/bold]", "[/]", "[red]t", "[link]f"):
        assert part in text


def test_it_is_a_rich_table_with_its_widest_form(table):
    assert table.row_count == 2
    assert [str(each.header) for each in table.columns] == ["name", "first", "second", "third"]


@pytest.mark.parametrize("columns", [[], [column("a"), column("b")]], ids=["no columns", "no rows"])
def test_empty(shown, columns):
    assert "footer" in shown(FittingTable(columns, footer=["footer"]), 40)
