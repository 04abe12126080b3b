"""The machine and the software a figure was made on, without anything that names its owner."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import qtoolkit
from qtoolkit.backends.cores import logical_cores, physical_cores

__all__ = ["Environment", "capture_environment", "cpu_flags", "cpu_name", "peak_rss_mb"]

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")
_STATUS = Path("/proc/self/status")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# What decides how fast int8 and 16-bit arithmetic can be: x86 names first, then those of ARM.
_FLAGS_OF_INTEREST = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "onnx": ("onnx",),
    "numpy": ("numpy",),
}


class Environment(BaseModel):
    """Conditions of every figure of a run. No host, user or folder names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    architecture: str
    cores_logical: int
    """Hardware threads this process may use."""
    cores_physical: int
    cpu_flags: tuple[str, ...]
    """Instruction sets that int8 and 16-bit arithmetic depend on, as far as the system tells."""
    governor: str | None
    """Frequency governor of the first core; a value other than ``performance`` lets the clock rate move."""
    load_average_1m: float | None
    """Processes that wanted a core in the last minute: what else ran."""
    ram_gb: float | None
    """10⁹ bytes."""
    os: str
    python: str
    packages: dict[str, str]
    """Versions of qtoolkit and of the packages that decide a figure; ``absent`` where one is not installed."""


def capture_environment() -> Environment:
    """What this process runs on now. Parts the system does not tell are None or empty; nothing is raised."""
    return Environment(
        cpu=cpu_name(),
        architecture=platform.machine(),
        cores_logical=logical_cores(),
        cores_physical=physical_cores(),
        cpu_flags=cpu_flags(),
        governor=(_text(_GOVERNOR) or "").strip() or None,
        load_average_1m=_load_average_1m(),
        ram_gb=_ram_gb(),
        os=_os_name(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages={"qtoolkit": qtoolkit.__version__, **{name: _version(of) for name, of in _PACKAGES.items()}},
    )


def cpu_name(cpuinfo: Path = _CPUINFO, board: Path = _BOARD) -> str:
    """Name of the processor, or of the board where the processor has none (as on ARM)."""
    found = _cpuinfo_field(_text(cpuinfo) or "", "model name") or (_text(board) or "").strip("\0 \n")
    return found or platform.processor() or platform.machine() or "unknown"


def cpu_flags(cpuinfo: Path = _CPUINFO) -> tuple[str, ...]:
    """The instruction sets of interest that the processor has, in a fixed order."""
    content = _text(cpuinfo) or ""
    present = set((_cpuinfo_field(content, "flags") or _cpuinfo_field(content, "Features") or "").split())
    return tuple(flag for flag in _FLAGS_OF_INTEREST if flag in present)


def peak_rss_mb(status: Path = _STATUS) -> float | None:
    """Most memory this process has held since it started, in 10⁶ bytes; None where the system does not tell.

    Read from ``VmHWM`` where there is one: ``getrusage`` of a process counts what its parent held when it forked.
    """
    found = re.search(r"^VmHWM:\s*(\d+) kB", _text(status) or "", re.MULTILINE)
    if found:
        return int(found[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _cpuinfo_field(content: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(.*)$", content, re.MULTILINE)
    return found[1].strip() if found else ""


def _load_average_1m() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _ram_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _os_name() -> str:
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']} ({kernel})"
    except (OSError, KeyError):
        return kernel


def _version(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "absent"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
