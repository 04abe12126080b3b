from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.sensitivity import LayerSensitivity, Sensitivity
from qtoolkit.errors import InputFileError


def ranking(losses, **facts):
    rows = (
        LayerSensitivity(layer=name, loss=loss, sqnr_db=None, macs=10, macs_share=0.5) for name, loss in losses.items()
    )
    known = {"metric": "sqnr", "precision": Precision.INT8, "target": "ort-cpu", "model_sha256": "ab"}
    known |= {"calibration_sha256": "cd", "images": 16, "people": 0, "seconds": 1.5}
    return Sensitivity(**{**known, **facts}, layers=tuple(rows))


def test_the_ranking_starts_with_the_most_sensitive_layer_and_keeps_the_order_of_equals():
    sensitivity = ranking({"a": 0.1, "b": 0.5, "c": 0.1, "d": 0.9})
    assert [row.layer for row in sensitivity.ranking] == ["d", "b", "a", "c"]
    assert [row.layer for row in sensitivity.layers] == ["a", "b", "c", "d"]


@given(losses=st.dictionaries(st.text("abc/.ü0", min_size=1), st.floats(0, 1), max_size=5))
def test_a_ranking_is_read_as_it_was_written(tmp_path_factory, losses):
    path = tmp_path_factory.getbasetemp() / "any-sensitivity.json"
    sensitivity = ranking(losses, metric="oks", people=3)
    sensitivity.write(path)
    assert Sensitivity.read(path) == sensitivity


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"metric": "oks"}', '{"metric": "ap"}'],
    ids=["empty", "cut off", "list", "short", "metric"],
)
def test_a_damaged_ranking_says_so(tmp_path, text):
    (tmp_path / "sensitivity.json").write_text(text)
    with pytest.raises(InputFileError, match=r"ranking .*sensitivity\.json cannot be read") as caught:
        Sensitivity.read(tmp_path / "sensitivity.json")
    assert caught.value.found
    assert "qtool sensitivity" in caught.value.do


def test_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "sensitivity.json"
    ranking({"a": 1.0}).write(path)
    path.write_text(path.read_text().replace('"loss"', '"lost"'))
    with pytest.raises(InputFileError, match="cannot be read"):
        Sensitivity.read(path)


def test_a_missing_ranking_says_so(tmp_path):
    with pytest.raises(InputFileError, match="cannot be read"):
        Sensitivity.read(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputFileError, match="cannot be read"):
        Sensitivity.read(tmp_path / "binary")
