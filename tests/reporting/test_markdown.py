from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.reporting import markdown
from qtoolkit.reporting.markdown import scorecard_markdown


def sections(text: str) -> dict[str, str]:
    """Heading → what stands below it."""
    parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table_rows(text: str) -> list[list[str]]:
    """Cells of the table rows below the rule, split where GitHub splits them."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_scorecard(card):
    found = sections(scorecard_markdown(card()))
    assert list(found) == [
        "net.onnx on ort-cpu", "Conditions", "Machine and software", "Files", "How to read this",
    ]  # fmt: skip
    rows = table_rows(found["net.onnx on ort-cpu"])
    assert rows[0] == [
        "float", "32/32", "0/72", "4.62", "4727.6", "13.40", "53.87", "81.20", "57.00", "100.0", "100.00", "45.2",
        "47.2", "1.00",
    ]  # fmt: skip
    assert rows[2][2] == "22/72 (31 % of MACs)"
    assert rows[2][-1] == "0.73 (0.70–0.76)"
    assert "- 16-bit layers cost float time here" in found["net.onnx on ort-cpu"]
    assert "- **evaluation**: 300 images of coco (sha256 3f2a91c04b1e, 2 skipped)" in found["Conditions"]
    assert "- **packages**: numpy 2.4, onnx 1.23" in found["Machine and software"]
    assert table_rows(found["Files"])[2] == ["mixed", "`model.mixed.onnx`", "int8 50, int16 22", "`0123456789ab`"]


def test_same_artefacts_same_bytes(card, sensitivity, plan):
    assert scorecard_markdown(card(), sensitivity, plan) == scorecard_markdown(card(), sensitivity, plan)


def test_plan_and_ranking(card, sensitivity, plan):
    found = sections(scorecard_markdown(card(), sensitivity, plan, top=2))
    assert "1 of 2 layers at 16 bit (1 at int16, 1 at int8)." in found["Layers at 16 bit"]
    assert "- `/head/Conv` int16" in found["Layers at 16 bit"]
    assert "/stem/Conv" not in found["Layers at 16 bit"]
    ranking = table_rows(found["Most sensitive layers"])
    assert [row[:2] for row in ranking] == [["1", "/head/Conv"], ["2", "/stem/Conv"]]
    assert [row[-1] for row in ranking] == ["int16", "int8"]
    assert "2 of 3 layers" in found["Most sensitive layers"]


def test_plan_without_16_bit_layers(card):
    plan = PrecisionPlan(layers={"conv": Precision.INT8})
    found = sections(scorecard_markdown(card(), plan=plan))
    assert found["Layers at 16 bit"].strip() == "0 of 1 layer at 16 bit (1 at int8)."


def test_modelled_latency_is_marked(card, row, modelled):
    rows = (row("float"), row("int8", latency=modelled(12.34, ratio=0.27)))
    text = scorecard_markdown(card(rows))
    measured, marked = table_rows(sections(text)["net.onnx on ort-cpu"])
    assert marked[-3:] == ["~12.3 ±6 % modelled", "~14.3", "~0.27"]
    assert not any("~" in cell or "modelled" in cell for cell in measured)
    assert "- int8: latency modelled, not measured (±6 %) · Test board" in text


def test_missing_figures_are_dashes(card, row):
    text = scorecard_markdown(card((row(ap=None, agreement=None, latency=None),)))
    (cells,) = table_rows(sections(text)["net.onnx on ort-cpu"])
    assert [cells[index] for index in (6, 10, 11, 12, 13)] == ["–"] * 5


def test_hostile_names_are_text(card, row, sensitivity, hostile):
    layers = (sensitivity.layers[0].model_copy(update={"layer": hostile}),)
    model = card().model.model_copy(update={"name": hostile})
    scorecard = card((row(hostile, file=hostile),), model=model, notes=(hostile,), settings={hostile: hostile})
    plan = PrecisionPlan(layers={hostile: Precision.INT16}, made_by=hostile)
    text = scorecard_markdown(scorecard, sensitivity.model_copy(update={"layers": layers}), plan)
    outside_code = re.sub(r"``.*?``", "", text)
    assert "<script" not in outside_code
    assert "\x1b" not in text
    assert not re.search(r"(?<!\\)\[red", outside_code)
    # A bar in a name must not open one more column.
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [("conv", "`conv`"), ("a`b", "`` a`b ``"), ("a``b`", "``` a``b` ```"), ("a|b", "`a\\|b`")],
)
def test_code_span(text, code):
    assert markdown._code(text) == code


def test_one_tilde_stays_and_two_do_not_strike_through():
    assert markdown._escape("~12.3") == "~12.3"
    assert markdown._escape("~a~") == "\\~a\\~"


@given(st.text())
def test_escaped_text_opens_no_tag_and_no_column(text):
    escaped = markdown._escape(text)
    assert "<" not in escaped
    assert not re.search(r"(?<!\\)(\\\\)*\|", escaped)
