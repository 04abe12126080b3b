"""Name → runner."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from qtoolkit.backends.runner import Runner
from qtoolkit.backends.table import RUNNERS, open_runner, runner_class
from qtoolkit.errors import UnavailableError, UsageError


@pytest.mark.parametrize("name", RUNNERS)
def test_every_entry_names_a_runner_with_that_name(name: str) -> None:
    if name == "openvino-cpu":
        pytest.importorskip("openvino", reason="OpenVINO is not installed (extra openvino)")
    assert runner_class(name).name == name  # type: ignore[attr-defined]


def test_opens_a_runner(tiny_pose_model: Callable[..., onnx.ModelProto]) -> None:
    with open_runner("ort-cpu", tiny_pose_model(), threads=1) as runner:
        assert isinstance(runner, Runner)
        assert runner.infer({"images": np.zeros((1, 3, 64, 64), np.float32)})["output0"].shape == (1, 56, 84)
    assert not runner.is_open


@pytest.mark.parametrize(
    "name",
    ["ort_cpu", "", "qtoolkit.nowhere:Runner", "qtoolkit.errors:UsageError", "qtoolkit.backends.runner:Nothing"],
    ids=["unknown name", "empty", "no such module", "not a runner", "no such class"],
)
def test_an_unknown_backend_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match="expected: one of ort-cpu"):
        open_runner(name, "model.onnx")


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"some of threads.*\n.*found: .*'speed'"):
        open_runner("ort-cpu", "model.onnx", speed="high")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import a_library_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnavailableError, match="the Python package 'a_library_nobody_has'"):
        runner_class("needs_more:Runner")


def test_a_known_backend_without_its_library_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "qtoolkit.backends.onnxruntime_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match="backend 'ort-cpu' needs a library") as caught:
        runner_class("ort-cpu")
    assert caught.value.exit_code == 4
