from __future__ import annotations

import json

import pytest

from qtoolkit.artifacts.scorecard import DataFacts, LatencyFigures, ModelFacts, Scorecard, ScorecardRow
from qtoolkit.errors import InputFileError


@pytest.fixture
def scorecard():
    latency = LatencyFigures(
        target="ort-cpu",
        measured=True,
        device="processor",
        runtime="onnxruntime",
        version="1",
        p50_ms=20.0,
        p90_ms=21.0,
        p99_ms=25.0,
        images_per_second=50.0,
        conditions={"threads": 2},
    )
    cost = {"sha256": "ef", "layers_total": 73, "gmacs": 4.6, "size_mb": 13.0}
    rows = (
        ScorecardRow(
            variant="float",
            file="model.float.onnx",
            precisions={"fp32": 73},
            weights_bits=32,
            activation_bits=32,
            layers_16bit=0,
            macs_16bit_share=0.0,
            bops_g=4710.4,
            ap=53.61,
            latency=latency,
            **cost,
        ),
        ScorecardRow(
            variant="mixed",
            file="model.mixed.onnx",
            precisions={"fp16": 22, "int8": 51},
            weights_bits=8,
            activation_bits=8,
            layers_16bit=22,
            macs_16bit_share=0.2,
            bops_g=600.0,
            **cost,
        ),
    )
    return Scorecard(
        qtoolkit="0.1.0",
        target="ort-cpu",
        model=ModelFacts(name="pose.onnx", sha256="ab", input_size_wh=(640, 480), gmacs=4.6, params_m=3.3),
        data=DataFacts(name="coco", images=300, sha256="cd"),
        environment={"cpu": "two cores"},
        settings={"mixed": 0.3},
        rows=rows,
        notes=("größer ist besser",),
    )


def test_a_scorecard_is_read_as_it_was_written(tmp_path, scorecard):
    scorecard.write(tmp_path / "scorecard.json")
    assert Scorecard.read(tmp_path / "scorecard.json") == scorecard


def test_the_json_begins_with_its_schema_and_holds_what_is_documented(scorecard):
    document = json.loads(scorecard.to_json())
    assert next(iter(document.items())) == ("schema", 1)
    assert {"model", "data", "environment", "rows"} <= set(document)
    assert document["model"]["input_size_wh"] == [640, 480]
    row = document["rows"][0]
    assert {"variant", "weights_bits", "activation_bits", "layers_16bit", "layers_total", "macs_16bit_share"} <= set(
        row
    )
    assert {"gmacs", "bops_g", "size_mb", "ap", "ap50", "ap75", "ap_m", "ap_l", "ar", "retention", "agreement"} <= set(
        row
    )
    assert {"target", "measured", "p50_ms", "p99_ms", "error_band_pct"} <= set(row["latency"])
    assert "größer" in scorecard.to_json()


def test_what_was_not_measured_is_null(scorecard):
    row = json.loads(scorecard.to_json())["rows"][1]
    assert row["ap"] is None and row["latency"] is None


def test_rows_by_variant(scorecard):
    assert scorecard.row("mixed").layers_16bit == 22
    assert scorecard.row("int8") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(schema=2),
        lambda document: document.pop("rows"),
        lambda document: document["rows"][0].update(speed=3),
        lambda document: document["model"].update(gmacs="many"),
    ],
    ids=["another schema", "no rows", "an unknown key", "no number"],
)
def test_another_document_is_refused(tmp_path, scorecard, change):
    document = json.loads(scorecard.to_json())
    change(document)
    path = tmp_path / "scorecard.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputFileError, match=r"the scorecard .*scorecard\.json cannot be read"):
        Scorecard.read(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_damaged_scorecard_says_so(tmp_path, content):
    (tmp_path / "scorecard.json").write_bytes(content)
    with pytest.raises(InputFileError, match="cannot be read") as caught:
        Scorecard.read(tmp_path / "scorecard.json")
    assert caught.value.found and caught.value.expected == "a scorecard.json that qtool wrote"


def test_a_missing_scorecard_says_so(tmp_path):
    with pytest.raises(InputFileError, match="cannot be read"):
        Scorecard.read(tmp_path / "none.json")
