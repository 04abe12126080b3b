"""What is said of the latencies of one run."""

from __future__ import annotations

import pytest

from qtoolkit.artifacts.scorecard import LatencyFigures
from qtoolkit.quantization.latency_notes import latency_notes


def figures(p50_ms, measured=True, remarks=()):
    return LatencyFigures(
        target="t", measured=measured, device="d", runtime="r", version="1", p50_ms=p50_ms, p90_ms=None, p99_ms=None,
        images_per_second=1.0, conditions={"remarks": remarks},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"16bit": 1.0, "int8": 2.0}, "16 bit was faster than 8 bit here, so 8 bit gains nothing but size"),
        ({"16bit": 3.0, "int8": 2.0, "mixed": 3.1}, "The mix was no faster than 16 bit: take the 16-bit network"),
    ],
)
def test_what_gains_no_time_is_named(times, expected):
    (note,) = latency_notes({name: figures(ms) for name, ms in times.items()})
    assert note.startswith(expected)


@pytest.mark.parametrize("times", [{}, {"int8": 1.0}, {"16bit": 3.0, "int8": 2.0, "mixed": 2.5}])
def test_nothing_is_said_where_8_bit_pays(times):
    assert latency_notes({name: figures(ms) for name, ms in times.items()}) == []


def test_modelled_latencies_are_said_to_be_so_with_their_remarks_once():
    notes = latency_notes({"16bit": figures(2.0, False, ["as fp16"]), "int8": figures(2.0, False, ["as fp16"])})
    assert notes[0].startswith("8 bit is modelled no faster than 16 bit here")
    assert notes[1].startswith("Latencies are modelled, not measured")
    assert notes[2:] == ["as fp16"]
    faster = latency_notes({"16bit": figures(1.0, False), "int8": figures(2.0, False)})
    assert faster[0].startswith("16 bit is modelled faster than 8 bit here")
