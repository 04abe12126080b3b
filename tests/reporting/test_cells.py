from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.reporting import cells


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(None, "–", id="not measured"),
        pytest.param(53.274, "53.27", id="rounded down"),
        pytest.param(0.0, "0.00", id="zero is a figure"),
        pytest.param(float("nan"), "nan", id="not a number stays visible"),
    ],
)
def test_fixed(value, text):
    assert cells.fixed(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 %"), (0.001, "<1 %"), (0.313, "31 %"), (0.994, "99 %"), (0.999, ">99 %"), (1.0, "100 %"), (None, "–")],
)
def test_share_never_rounds_to_nothing_or_all(value, text):
    assert cells.share(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(45.21, "45.2"), (10.0, "10.0"), (9.876, "9.88"), (1.0, "1.00"), (0.1234, "0.123")]
)
def test_milliseconds_keep_three_digits(value, text):
    assert cells.milliseconds(value) == text


def test_percent_has_no_sign_of_its_own():
    assert cells.percent(0.98899) == "98.9"
    assert cells.percent(None) == "–"


def test_measured_latency(latency):
    figures = latency(45.21, ratio=0.654, ratio_lo=0.631, ratio_hi=0.668)
    assert cells.p50(figures) == "45.2"
    assert cells.p90(figures) == "46.2"
    assert cells.p99(figures) == "47.2"
    assert cells.throughput(figures) == "22.1"
    assert cells.ratio(figures) == "0.65 (0.63–0.67)"
    assert cells.ratio(figures, interval=False) == "0.65"


def test_modelled_latency_is_marked_in_every_cell(modelled):
    figures = modelled(12.3, ratio=0.27, ratio_lo=0.25, ratio_hi=0.29)
    assert cells.p50(figures) == "~12.3 ±6 % modelled"
    assert cells.p90(figures) == "~13.3"
    assert cells.p99(figures) == "~14.3"
    assert cells.throughput(figures) == "~81.3"
    assert cells.ratio(figures) == "~0.27 (0.25–0.29)"
    assert cells.ratio(figures, interval=False) == "~0.27"


def test_modelled_latency_without_a_band_says_so(modelled):
    assert cells.p50(modelled(error_band_pct=None)) == "~12.3 ±? modelled"


def test_no_latency():
    assert [cells.p50(None), cells.p90(None), cells.p99(None), cells.throughput(None), cells.ratio(None)] == ["–"] * 5


@pytest.mark.parametrize(
    "interval",
    [
        pytest.param({"ratio_lo": 1.0, "ratio_hi": 1.0}, id="the float network itself"),
        pytest.param({}, id="no interval"),
        pytest.param({"ratio_lo": 0.9}, id="half an interval"),
    ],
)
def test_ratio_without_a_width_has_no_bracket(latency, interval):
    assert cells.ratio(latency(ratio=1.0, **interval)) == "1.00"


def test_ratio_that_was_not_measured(latency):
    assert cells.ratio(latency(ratio=None)) == "–"


def test_bits_and_layers(row):
    assert cells.bits(row(weights_bits=8, activation_bits=16)) == "8/16"
    assert cells.layers_16bit(row()) == "22/72 (31 % of MACs)"
    assert cells.layers_16bit(row(), of_macs="") == "22/72 (31 %)"
    assert cells.layers_16bit(row(layers_16bit=0, macs_16bit_share=0.0)) == "0/72"
    assert cells.precisions(row(precisions={"fp16": 3, "int8": 50, "int16": 0})) == "int8 50, fp16 3"
    assert cells.precisions(row(precisions={})) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ("", "–"),
        ([], "–"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (["avx2", "fma"], "avx2 fma"),
        ({"numpy": "2.4", "level": None}, "numpy 2.4, level –"),
    ],
)
def test_flat(value, text):
    assert cells.flat(value) == text


def test_short_hash():
    assert cells.short_hash("3f2a91c04b1e" + "0" * 52) == "3f2a91c04b1e"
    assert cells.short_hash("") == "–"


def test_plain_takes_the_power_from_an_escape_code():
    assert cells.plain("a\x1b[31mb\nc\u202ed") == "a�[31mb c�d"


@given(st.text())
def test_plain_is_one_printable_line(text):
    assert cells.plain(text).isprintable()
    assert cells.plain(cells.plain(text)) == cells.plain(text)


@given(st.text(alphabet=st.characters(categories=("L", "N", "P")), min_size=1))
def test_plain_leaves_names_alone(name):
    assert cells.plain(name) == name
