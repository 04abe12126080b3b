from __future__ import annotations

import pytest
from rich.table import Table

from qtoolkit.reporting.tables import bench_table, metrics_table, scorecard_table, sensitivity_table

# The rows that a terminal of 120 columns shows of the fixture, to the letter.
GOLDEN_120 = """\
float    32/32           0/72   4.62  4727.6  13.40  53.87  81.20   100.0  100.00    45.2    47.2              1.00
int8       8/8           0/72   4.62   388.2   3.46  52.70  81.20    98.9   92.32    28.9    30.9  0.64 (0.62–0.66)
mixed      8/8   22/72 (31 %)   4.62   388.2   3.46  53.28  81.20    98.9   92.32    33.1    35.1  0.73 (0.70–0.76)
"""


def squeezed(text: str) -> str:
    return " ".join(text.split())


def rows_of(text: str) -> dict[str, list[str]]:
    """First word → words, of the lines below the heading; the first line of a name counts."""
    below = text.splitlines()[next(i for i, line in enumerate(text.splitlines()) if line.startswith("──")) + 1 :]
    return {line.split()[0]: line.split() for line in reversed(below) if line.strip()}


def test_scorecard_to_the_letter(card, shown):
    lines = [line.rstrip() for line in shown(scorecard_table(card()), 120).splitlines()]
    assert lines[0] == "net.onnx on ort-cpu"
    assert lines[2].split()[:5] == ["variant", "W/A", "(of", "MACs)", "GMACs"]
    assert lines[4:7] == GOLDEN_120.splitlines()


def test_scorecard_is_a_table_of_all_variants(card):
    table = scorecard_table(card())
    assert isinstance(table, Table)
    assert table.row_count == 3


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40, 24])
def test_scorecard_fits_and_never_wraps_or_cuts_a_figure(card, shown, width):
    text = shown(scorecard_table(card()), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    rows = rows_of(text)
    for variant, ap, p50 in (("float", "53.87", "45.2"), ("int8", "52.70", "28.9"), ("mixed", "53.28", "33.1")):
        assert ap in rows[variant]
        assert p50 in rows[variant]


def test_a_wide_terminal_shows_everything(card, shown):
    text = shown(scorecard_table(card()), 160)
    assert "AP75" in text
    assert "22/72 (31 % of MACs)" in text
    assert "0.73 (0.70–0.76)" in text
    assert "no room" not in text


def test_a_narrow_terminal_says_what_it_leaves_out(card, shown):
    text = squeezed(shown(scorecard_table(card()), 60))
    assert "no room at this width for: bits W/A, 16-bit layers, GMACs, GBOPs" in text


def test_conditions_in_one_line_then_the_notes(card, shown):
    lines = shown(scorecard_table(card()), 250).splitlines()
    assert lines[-2] == (
        "Test CPU @ 2.10GHz · onnxruntime 1.32.0 · 2 threads · batch 1 · input 640×480"
        " · 300 images of coco (sha256 3f2a91c04b1e, 2 skipped) · calibrated on 158 images (sha256 cdcdcdcdcdcd)"
    )
    assert lines[-1] == "• 16-bit layers cost float time here"


@pytest.mark.parametrize("width", [160, 120, 80, 40])
def test_modelled_latency_never_looks_measured(card, row, modelled, shown, width):
    rows = (row("float", latency=card().rows[0].latency), row("int8", latency=modelled(12.34, ratio=0.27)))
    text = shown(scorecard_table(card(rows)), width)
    found = rows_of(text)
    assert "~12.3 ±6 % modelled" in text
    assert "12.3" not in found["int8"]
    assert "45.2" in found["float"]
    assert "~" not in " ".join(found["float"])
    assert "latency modelled, not measured (±6 %)" in squeezed(text)


def test_modelled_cells_have_a_style_of_their_own(card, row, modelled, shown):
    rows = (row("float"), row("int8", latency=modelled(12.34, ratio=0.27)))
    lines = shown(scorecard_table(card(rows)), 160, styles=True).splitlines()
    float_line, int8_line = (next(line for line in lines if line.startswith(name)) for name in ("float", "int8"))
    assert int8_line.count("\x1b[3;33m") == 3
    assert "\x1b[3;33m" not in float_line


def test_missing_figures_are_dashes(card, row, shown):
    empty = row("int8", ap=None, ap50=None, ap75=None, retention=None, agreement=None, latency=None)
    assert rows_of(shown(scorecard_table(card((empty,))), 160))["int8"].count("–") == 8


def test_names_are_neither_markup_nor_escape_codes(card, row, hostile, shown):
    model = card().model.model_copy(update={"name": hostile})
    text = shown(scorecard_table(card((row(hostile),), model=model, notes=(hostile,))), 200)
    assert "\x1b" not in text
    assert text.count("<script>alert(1)</script>[red]|x|`y`") == 3


def test_sensitivity_table(sensitivity, plan, shown):
    text = shown(sensitivity_table(sensitivity, plan), 100)
    found = [line.split() for line in text.splitlines()[4:7]]
    assert found == [
        ["1", "/head/Conv", "3.00e-02", "–", "60.0", "–", "int16"],
        ["2", "/stem/Conv", "2.00e-03", "31.4", "10.0", "0.250", "int8"],
        ["3", "/neck/Conv", "1.00e-04", "44.0", "30.0", "0.500", "–"],
    ]


def test_sensitivity_table_without_a_plan_and_cut_at_the_top(sensitivity, shown):
    table = sensitivity_table(sensitivity, None, top=2)
    assert table.row_count == 2
    text = shown(table, 100)
    assert "precision" not in text
    assert "2 of 3 layers" in text


def test_bench_table(latency, modelled, shown):
    results = [
        ("float.onnx", latency(45.21, ratio=1.0)),
        ("int8.onnx", latency(28.9, ratio=0.64, ratio_lo=0.62, ratio_hi=0.66)),
        ("board.onnx", modelled(12.3)),
    ]
    text = shown(bench_table(results, gmacs={"float.onnx": 4.617}), 120)
    found = rows_of(text)
    assert found["float.onnx"] == ["float.onnx", "ort-cpu", "4.62", "45.2", "46.2", "47.2", "22.1", "1.00"]
    assert found["int8.onnx"][2:] == ["–", "28.9", "29.9", "30.9", "34.6", "0.64", "(0.62–0.66)"]
    assert found["board.onnx"][3:] == ["~12.3", "±6", "%", "modelled", "~13.3", "~14.3", "~81.3", "–"]
    assert "float.onnx, int8.onnx: Test CPU @ 2.10GHz · onnxruntime 1.32.0 · 2 threads · batch 1" in text
    assert "board.onnx: latency modelled, not measured (±6 %) · Test board" in text


def test_metrics_table(shown):
    metrics = {"ap": 53.614, "ap_m": None, "pckh50": 88.0, "images": 300, "own_metric": 1.5, "runtime": "ort 1.32"}
    table = metrics_table(metrics, title="net[0].onnx", footer=["300 images"])
    lines = shown(table, 60).splitlines()
    assert lines[0] == "net[0].onnx"
    assert lines[-1] == "300 images"
    assert [line.split(maxsplit=1) for line in lines[3:-1]] == [
        ["AP", "53.61"],
        ["AP-M", "–"],
        ["PCKh@0.5", "88.00"],
        ["images", "300"],
        ["own_metric", "1.50"],
        ["runtime", "ort 1.32"],
    ]
