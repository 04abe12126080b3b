"""What a figure was made on."""

from __future__ import annotations

import getpass
import json
import platform
import socket
from pathlib import Path

import numpy as np
import pytest

from qtoolkit.bench import environment
from qtoolkit.bench.environment import Environment, capture_environment, cpu_flags, cpu_name, peak_rss_mb

X86 = """processor\t: 0
model name\t: Imaginary CPU 9000 @ 3.00GHz
flags\t\t: fpu sse4_2 avx2 avx512_vnni amx_int8 hypervisor

processor\t: 1
model name\t: Another name
"""
ARM = "processor\t: 0\nBogoMIPS\t: 38.40\nFeatures\t: fp asimd asimddp i8mm bf16\n"


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    return tmp_path / "cpuinfo"


def test_x86_name_and_flags(cpuinfo: Path) -> None:
    cpuinfo.write_text(X86)
    assert cpu_name(cpuinfo) == "Imaginary CPU 9000 @ 3.00GHz"
    assert cpu_flags(cpuinfo) == ("sse4_2", "avx2", "avx512_vnni", "amx_int8")


def test_arm_takes_the_boards_name(cpuinfo: Path, tmp_path: Path) -> None:
    cpuinfo.write_text(ARM)
    (tmp_path / "model").write_bytes(b"A Board, Revision 2\0")
    assert cpu_name(cpuinfo, tmp_path / "model") == "A Board, Revision 2"
    assert cpu_flags(cpuinfo) == ("asimd", "asimddp", "i8mm", "bf16")


def test_a_system_that_tells_nothing_still_has_a_name(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert cpu_name(missing, missing)
    assert cpu_flags(missing) == ()


def test_captures_this_machine() -> None:
    found = capture_environment()
    assert found.python == f"{platform.python_implementation()} {platform.python_version()}"
    assert found.packages["numpy"] == np.__version__
    assert set(found.packages) == {"qtoolkit", "onnxruntime", "onnx", "numpy"}
    assert "absent" not in found.packages.values()
    assert 1 <= found.cores_physical <= found.cores_logical
    assert found.ram_gb is None or found.ram_gb > 0.1


def test_names_no_host_no_user_and_no_folder() -> None:
    values = json.dumps(capture_environment().model_dump(exclude={"os"}))
    assert socket.gethostname() not in values
    assert f'"{getpass.getuser()}"' not in values
    assert "/" not in values.replace("aarch64", "")


def test_survives_json() -> None:
    found = capture_environment()
    assert Environment.model_validate_json(found.model_dump_json()) == found


def test_a_package_that_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PACKAGES", {"onnxruntime": ("no-such-distribution",)})
    assert capture_environment().packages["onnxruntime"] == "absent"


def test_peak_memory_is_read_in_kibibytes(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t  999999 kB\nVmHWM:\t    2000 kB\nVmRSS:\t 1 kB\n")
    assert peak_rss_mb(tmp_path / "status") == pytest.approx(2.048)


@pytest.mark.parametrize("status", [None, Path("missing")], ids=["as the system tells", "by getrusage"])
def test_peak_memory_never_falls_and_grows_with_what_is_held(status: Path | None) -> None:
    def peak() -> float:
        found = peak_rss_mb() if status is None else peak_rss_mb(status)
        assert found is not None
        return found

    before = peak()
    assert before > 10
    block = np.ones(int(before * 1e6 / 8) + 10_000_000)
    assert peak() >= block.nbytes / 1e6
    del block
    assert peak() >= before
