"""``import qtoolkit`` and every ``--help`` need no optional package, and not even numpy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_BLOCKED = ("torch", "openvino", "tensorrt", "tensorrt_rtx", "pycuda")
# The doors to optional libraries: their modules are imported when somebody asks for them.
_WITH_LIBRARY = ("qtoolkit.backends.openvino_cpu",)
_WITH_TORCH = (
    "qtoolkit.models.",
    "qtoolkit.training.",
    "qtoolkit.graph.export",
    "qtoolkit.quantization.qat",
    "qtoolkit.quantization.learned_network",
    "qtoolkit.quantization.fisher",
)
_HEAVY = (
    "numpy",
    "onnx",
    "onnxruntime",
    "pydantic",
    "yaml",
    "cv2",
    "rich",
    "plotly",
    "jinja2",
    "pycocotools",
    "highspy",
)
_PROGRAM = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
{body}
print(json.dumps(sorted(name for name in sys.modules if "." not in name)), file=sys.stderr)
"""
_HELP = """
from qtoolkit.cli.main import cli
cli(args={arguments!r}, prog_name="qtool", standalone_mode=False)
"""
_COMMANDS = (
    ("quantize",), ("sensitivity",), ("eval",), ("bench",), ("run",), ("data",), ("data", "check"), ("data", "synth"),
    ("doctor",), ("export",), ("train",), ("retrain",), ("build",),
)  # fmt: skip


def _modules_after(body: str) -> tuple[str, set[str]]:
    """Standard output of a program without the optional packages, and the top-level modules it has imported."""
    program = _PROGRAM.format(blocked=_BLOCKED, body=body)
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout, set(json.loads(result.stderr.splitlines()[-1]))


def test_the_blocker_blocks():
    with pytest.raises(AssertionError, match="blocked: torch"):
        _modules_after("import torch")


def test_importing_the_package_imports_nothing_heavy():
    _, modules = _modules_after("import qtoolkit")
    assert not modules & {*_HEAVY, "click"}


def test_help_of_the_group_imports_click_only():
    shown, modules = _modules_after(_HELP.format(arguments=["--help"]))
    assert "Usage: qtool" in shown
    assert "click" in modules
    assert not modules & set(_HEAVY)


@pytest.mark.parametrize("words", _COMMANDS, ids=" ".join)
def test_help_of_every_command(words):
    shown, modules = _modules_after(_HELP.format(arguments=[*words, "--help"]))
    assert f"Usage: qtool {' '.join(words)}" in shown
    assert not modules & set(_HEAVY)


def test_every_module_of_the_package_can_be_imported():
    names = (
        ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        for path in (_ROOT / "qtoolkit").rglob("*.py")
        if path.name != "__init__.py"
    )
    modules = sorted(name for name in names if not name.startswith((*_WITH_TORCH, *_WITH_LIBRARY)))
    assert len(modules) > 50
    _modules_after(f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)")


def test_doctor_works_and_lists_what_is_absent():
    shown, _ = _modules_after(_HELP.format(arguments=["doctor"]))
    assert all(f"  {name}: " in shown for name in _BLOCKED)


def test_a_command_that_needs_torch_says_how_to_get_it():
    program = """
from click.testing import CliRunner
from qtoolkit.cli.main import cli
result = CliRunner().invoke(cli, ["export", "best.safetensors", "--json"])
print(result.exit_code, result.output)
"""
    shown, _ = _modules_after(program)
    assert shown.startswith("4 ")
    assert "this command needs torch" in shown
    assert "pip install 'qtoolkit[train]'" in shown
