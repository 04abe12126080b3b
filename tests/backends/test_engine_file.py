"""Engine files and their records; ``test_tensorrt_gpu`` tests what is refused before an engine is opened."""

from __future__ import annotations

import json

import pytest

from qtoolkit.artifacts.files import sha256_bytes
from qtoolkit.backends.engine_file import EngineRecord, check_engine, read_engine, sidecar_path, write_engine
from qtoolkit.errors import ModelFileError

PLAN = b"an engine"
RECORD = EngineRecord(
    target="tensorrt-rtx", library="tensorrt_rtx", version="1.7.1.116", machine="linux-x86_64", gpu=None,
    compute_capabilities=("8.6", "8.9"), dialect="strong", precision="int8", nms="host", tf32=True, workspace_mb=None,
    onnx_sha256="a" * 64, engine_sha256=sha256_bytes(PLAN), engine_bytes=len(PLAN), qtoolkit="0",
)  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.engine"
    write_engine(path, PLAN, RECORD)
    assert read_engine(path) == (PLAN, RECORD)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.engine", "a.engine.json"]


@pytest.mark.parametrize("missing", ["a.engine", "a.engine.json"])
def test_a_missing_half_is_named(missing, tmp_path):
    write_engine(tmp_path / "a.engine", PLAN, RECORD)
    (tmp_path / missing).unlink()
    with pytest.raises(ModelFileError, match="cannot be read") as caught:
        read_engine(tmp_path / "a.engine")
    assert missing in caught.value.what


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "Field required"), ("not JSON", "Invalid JSON"), ('{"speed": 1}', "target: Field required")],
    ids=["empty", "text", "unknown field"],
)
def test_a_broken_record_is_named(text, message, tmp_path):
    write_engine(tmp_path / "a.engine", PLAN, RECORD)
    sidecar_path(tmp_path / "a.engine").write_text(text)
    with pytest.raises(ModelFileError, match="is no record of an engine") as caught:
        read_engine(tmp_path / "a.engine")
    assert message in caught.value.found


def test_a_record_of_a_build_ahead_of_time_names_no_gpu_but_capabilities(tmp_path, monkeypatch):
    monkeypatch.setattr("qtoolkit.backends.engine_file.machine_name", lambda: "linux-x86_64")
    here = {"library": "tensorrt_rtx", "version": "1.7.1.116", "gpu": "any card"}
    check_engine(tmp_path, RECORD, **here, compute_capability="8.9", onnx_sha256="a" * 64)
    with pytest.raises(ModelFileError, match="another compute capability") as caught:
        check_engine(tmp_path, RECORD, **here, compute_capability="9.0")
    assert caught.value.expected == "9.0" and caught.value.found == "8.6, 8.9"


def test_an_unfinished_engine_has_no_record(tmp_path, monkeypatch):
    path = tmp_path / "a.engine"
    write_engine(path, PLAN, RECORD)

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("qtoolkit.backends.engine_file.write_text", fail)
    with pytest.raises(KeyboardInterrupt):
        write_engine(path, b"another", RECORD)
    assert not sidecar_path(path).exists()
    assert json.loads(RECORD.model_dump_json())["schema_version"] == 1
