from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from qtoolkit.backends.nvidia_driver import gpu_or_none
from qtoolkit.backends.targets import TARGETS
from qtoolkit.cli import doctor
from qtoolkit.cli.doctor import int8_advice


def test_this_machine(qtool):
    result = qtool("doctor")
    assert result.exit_code == 0
    for word in ("machine:", "8 bit on ort-cpu:", "ort-cpu: ready", "onnxruntime: ", "torch: "):
        assert word in result.stdout
    assert result.stderr == ""


def test_what_torch_is_for_and_how_to_get_it(qtool):
    line = next(each for each in qtool("doctor").stdout.splitlines() if each.startswith("  torch: "))
    assert line.endswith("; for training, retraining SiLU to ReLU, export, --metric fisher (extra qtoolkit[train])")
    assert "later release" not in line


def test_json(qtool):
    document = json.loads(qtool("doctor", "--json").stdout)
    assert document["ok"] is True
    assert [target["name"] for target in document["targets"]] == list(TARGETS)
    usable = {target["name"]: target["usable"] for target in document["targets"]}
    has_openvino = importlib.util.find_spec("openvino") is not None
    on_gpu = {name: usable.pop(name) for name in ("tensorrt", "tensorrt-strong", "tensorrt-rtx")}
    assert usable == {"ort-cpu": True, "openvino-cpu": has_openvino, "tidl": False}
    if gpu_or_none() is None:
        assert not any(on_gpu.values())
    assert all(package["usable"] and package["version"] for package in document["base"].values())
    assert document["environment"]["cores_physical"] >= 1


def test_a_target_whose_library_is_missing_names_the_extra(qtool, monkeypatch):
    monkeypatch.delitem(sys.modules, "qtoolkit.backends.openvino_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    targets = json.loads(qtool("doctor", "--json").stdout)["targets"]
    record = next(target for target in targets if target["name"] == "openvino-cpu")
    assert record["usable"] is False and record["extra"] == "openvino"
    assert record["note"].endswith("pip install 'qtoolkit[openvino]'")
    assert "  openvino-cpu: not here: " in qtool("doctor").stdout


def test_a_broken_base_package(qtool, monkeypatch):
    monkeypatch.setitem(doctor._BASE, "qtoolkit_no_such_module", "no-such-package")
    result = qtool("doctor")
    assert result.exit_code == 1
    assert "  no-such-package: broken: No module named 'qtoolkit_no_such_module'" in result.stdout
    assert "pip install --force-reinstall no-such-package" in result.stderr
    document = json.loads(qtool("doctor", "--json").stdout)
    assert document["ok"] is False
    assert document["base"]["no-such-package"]["usable"] is False


@pytest.mark.parametrize(
    ("flags", "begins", "saturates"),
    [
        (("avx2", "avx512_vnni", "amx_int8"), "AMX:", False),
        (("avx2", "avx512f", "avx512bw", "avx512_vnni"), "VNNI:", False),
        (("avx2", "avx_vnni"), "VNNI:", False),
        (("sse4_2", "avx", "f16c", "fma", "avx2"), "No VNNI:", True),
        (("avx2", "avx512f", "avx512bw", "avx512vl"), "No VNNI:", True),
        (("asimd", "asimddp"), "Dot-product instructions:", False),
        (("asimd",), "No dot-product instructions:", False),
        (("sse4_2", "avx"), "No instructions for 8-bit arithmetic", False),
        ((), "The system does not tell the instructions of this processor (x86_64)", False),
    ],
)
def test_int8_advice(flags, begins, saturates):
    advice = int8_advice("x86_64", flags)
    assert advice.startswith(begins)
    assert ("saturate" in advice) is saturates
