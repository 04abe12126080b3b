"""A small data set, a tiny network, and ``qtool`` called within the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

from qtoolkit.cli.main import cli

Qtool = Callable[..., Result]

QUICK = ("--metric", "sqnr", "--runs", "0", "--threads", "1", "--sensitivity-images", "2")
"""Options that keep a run of the pipeline short; a random network finds nobody to rank by."""


@pytest.fixture(scope="session")
def qtool() -> Qtool:
    """``qtool("eval", model, ...)``: result with exit_code, stdout, stderr; a bug is raised, not swallowed."""

    def call(*arguments: Any) -> Result:
        # A terminal's width may be handed down in COLUMNS, by pytest-xdist too; what is tested is a file's width.
        runner = CliRunner(env={"COLUMNS": "140"})
        return runner.invoke(cli, [str(each) for each in arguments], prog_name="qtool", catch_exceptions=False)

    return call


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """Options that keep a run of the pipeline short."""
    return QUICK


@pytest.fixture
def people(tmp_path: Path, make_data_set: Callable[..., Path]) -> Path:
    """A data set of the test's own, which it may damage."""
    return make_data_set(tmp_path / "people")


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory, tiny_pose_model: Callable[..., onnx.ModelProto]) -> Path:
    """tiny.onnx: a YOLOv8-pose of random weights at 64×64."""
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    onnx.save(tiny_pose_model(activation="relu"), path)
    return path


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, network: Path, qtool: Qtool, make_data_set: Callable[..., Path]
) -> tuple[Path, Path, Result]:
    """A whole run of ``qtool quantize --mixed 0.3``: (data set, output folder, result). Copy before changing."""
    root = tmp_path_factory.mktemp("finished")
    data, out = make_data_set(root / "people"), root / "out"
    return data, out, qtool("quantize", network, "--data", data, "--mixed", "0.3", "--out", out, *QUICK)
