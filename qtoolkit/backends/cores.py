"""How many processor cores this process may really use.

Asking for more threads than that makes them wait for one another, which spoils every latency.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from qtoolkit.errors import UsageError

__all__ = ["cgroup_cpu_limit", "logical_cores", "physical_cores", "runtime_threads"]

_CGROUP = Path("/sys/fs/cgroup")
_TOPOLOGY = Path("/sys/devices/system/cpu")


def logical_cores() -> int:
    """Hardware threads this process may run on: its affinity mask, cut by a container's CPU quota."""
    return _within_quota(len(_allowed_cpus()))


def physical_cores() -> int:
    """Cores behind :func:`logical_cores`: two hardware threads of one core share its arithmetic and count once."""
    allowed = _allowed_cpus()
    siblings = {_siblings_of(cpu, _TOPOLOGY) for cpu in allowed}
    return _within_quota(len(siblings))


def cgroup_cpu_limit(root: Path = _CGROUP) -> float | None:
    """CPU quota of this process's control group in cores (2.5 = two and a half), None where there is none.

    ``root`` holds ``cpu.max`` (version 2: "quota period" or "max period", microseconds) or ``cpu/cpu.cfs_quota_us``
    and ``cpu/cpu.cfs_period_us`` (version 1; -1 means none).
    """
    version2 = _first_line(root / "cpu.max")
    if version2 is not None:
        quota, _, period = version2.partition(" ")
    else:
        quota = _first_line(root / "cpu" / "cpu.cfs_quota_us") or ""
        period = _first_line(root / "cpu" / "cpu.cfs_period_us") or ""
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _allowed_cpus() -> frozenset[int]:
    # macOS and Windows have no affinity call in the standard library.
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _siblings_of(cpu: int, topology: Path) -> str:
    return _first_line(topology / f"cpu{cpu}" / "topology" / "thread_siblings_list") or f"cpu{cpu}"


def _within_quota(cores: int) -> int:
    limit = cgroup_cpu_limit()
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError):
        return None


def runtime_threads(threads: int | None) -> int:
    """Threads of a runtime: ``threads``, or None for one per physical core. Raises UsageError below 1."""
    if threads is not None and threads < 1:
        raise UsageError(
            "the number of threads cannot be used", expected="1 or more", found=str(threads), do="give --threads 1"
        )
    return physical_cores() if threads is None else threads
