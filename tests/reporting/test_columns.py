from __future__ import annotations

from qtoolkit.artifacts.plan import Precision
from qtoolkit.reporting.columns import LATENCY_COLUMNS, SCORECARD_COLUMNS, NamedLatency, ranked, sensitivity_columns


def test_scorecard_row(row):
    found = {column.title: column.cell(row()) for column in SCORECARD_COLUMNS}
    assert found == {
        "variant": "mixed",
        "bits W/A": "8/8",
        "16-bit layers": "22/72 (31 % of MACs)",
        "GMACs": "4.62",
        "GBOPs": "388.2",
        "MB": "3.46",
        "AP": "53.28",
        "AP50": "81.20",
        "AP75": "57.00",
        "retention %": "98.9",
        "agreement": "92.32",
        "p50 ms": "33.1",
        "p99 ms": "35.1",
        "× float": "0.73 (0.70–0.76)",
    }


def test_scorecard_row_without_labels_or_latency(row):
    nothing = row(ap=None, ap50=None, ap75=None, retention=None, agreement=None, latency=None)
    found = {column.title: column.cell(nothing) for column in SCORECARD_COLUMNS}
    empty = {"AP", "AP50", "AP75", "retention %", "agreement", "p50 ms", "p99 ms", "× float"}
    assert {title for title, text in found.items() if text == "–"} == empty


def test_every_column_of_latency_and_no_other_can_carry_the_mark(row, modelled):
    marked = row(latency=modelled(ratio=0.3, ratio_lo=0.2, ratio_hi=0.4))
    for column in SCORECARD_COLUMNS:
        assert column.cell(marked).startswith("~") == column.is_latency, column.title
        if column.short_cell is not None:
            assert column.short_cell(marked).startswith("~") == column.is_latency, column.title
    named = NamedLatency("net", modelled(ratio=0.3))
    for bench_column in LATENCY_COLUMNS:
        assert bench_column.cell(named).startswith("~") == bench_column.is_latency, bench_column.title


def test_ap_and_p50_are_never_dropped_and_turns_are_distinct():
    assert [column.title for column in SCORECARD_COLUMNS if not column.drop] == ["variant", "AP", "p50 ms"]
    for columns in (SCORECARD_COLUMNS, LATENCY_COLUMNS):
        turns = [turn for column in columns for turn in (column.drop, column.shorten) if turn]
        assert len(turns) == len(set(turns))
        assert all(column.shorten < column.drop for column in columns if column.shorten)


def test_ranked_by_loss_with_the_precision_of_the_plan(sensitivity, plan):
    rows = ranked(sensitivity, plan)
    assert [(row.rank, row.sensitivity.layer, row.precision) for row in rows] == [
        (1, "/head/Conv", Precision.INT16),
        (2, "/stem/Conv", Precision.INT8),
        (3, "/neck/Conv", None),
    ]
    assert [row.sensitivity.layer for row in ranked(sensitivity, None, top=1)] == ["/head/Conv"]


def test_sensitivity_row(sensitivity, plan):
    first, second, third = ranked(sensitivity, plan)
    columns = sensitivity_columns(sensitivity, plan)
    assert [column.title for column in columns] == [
        "rank", "layer", "loss", "SQNR dB", "MACs %", "16 bit adds ms", "precision",
    ]  # fmt: skip
    assert [column.cell(second) for column in columns] == [
        "2",
        "/stem/Conv",
        "2.00e-03",
        "31.4",
        "10.0",
        "0.250",
        "int8",
    ]
    assert [column.cell(first) for column in columns][3:] == ["–", "60.0", "–", "int16"]
    assert columns[-1].cell(third) == "–"


def test_sensitivity_columns_that_nothing_would_fill_are_left_out(sensitivity):
    bare = [each.model_copy(update={"sqnr_db": None, "added_ms": None}) for each in sensitivity.layers]
    columns = sensitivity_columns(sensitivity.model_copy(update={"layers": tuple(bare)}), None)
    assert [column.title for column in columns] == ["rank", "layer", "loss", "MACs %"]
