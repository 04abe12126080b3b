"""How quiet the machine was while figures were made: what others used, what a hypervisor took, how the clock moved.

Read from /proc and /sys where the system tells it; None where it does not. Nothing is estimated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from qtoolkit.bench.latency_result import LatencyResult

__all__ = ["IDLE_CHECK_S", "NoiseWatch", "RunNoise", "noise_causes"]

IDLE_CHECK_S = 0.3
"""How long the machine is watched before anything is started."""

_BUSY_PCT = 5.0
_STEAL_PCT = 0.5
_CLOCK_SPREAD = 0.03
_DRIFT_PCT = 3.0
_STEADY_GOVERNOR = "performance"


class RunNoise(BaseModel):
    """What else went on during one run. Percentages are of all hardware threads the system shows; None: not told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    busy_before_pct: float | None
    """Processor time in use in the check before the run, when nothing of it had been started."""
    others_pct: float | None
    """Processor time that other processes used during the run."""
    steal_pct: float | None
    """Processor time that the hypervisor gave to other guests."""
    load_before: float | None
    """Load average of the minute before."""
    governor: str | None
    clock_mhz: tuple[float, float] | None
    """Lowest and highest clock rate of a core seen during the run."""
    throttled: int | None
    """How often the processor cut its clock for heat during the run."""

    @property
    def quiet(self) -> bool:
        """Whether nothing the system tells speaks against the figures."""
        return not _machine_causes(self)


@dataclass(frozen=True)
class _Ticks:
    busy: int
    steal: int
    total: int


class NoiseWatch:
    """Watches one run: ``start()`` before the workers are, ``look()`` now and then, ``finish()`` when they have ended.

    ``root`` is where proc/ and sys/ lie; another one than / is for tests.
    """

    def __init__(self, root: Path = Path("/"), *, idle_check_s: float = IDLE_CHECK_S) -> None:
        self._proc, self._cpus = root / "proc", root / "sys/devices/system/cpu"
        self._idle_check_s = idle_check_s
        self._clocks: list[float] = []

    def start(self) -> None:
        """Watch the machine for a moment, then note where the run begins."""
        self._load_before = _load_average(self._proc / "loadavg")
        before = self._ticks()
        time.sleep(self._idle_check_s)
        self._busy_before_pct = _percent(before, self._ticks(), "busy")
        self._began_s, self._own_s = time.perf_counter(), _own_cpu_s()
        self._began, self._throttled = self._ticks(), self._throttle_count()
        self.look()

    def look(self) -> None:
        """Note the clock rates of this moment."""
        for path in self._cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
            khz = _number(path)
            if khz is not None:
                self._clocks.append(khz / 1e3)

    def finish(self) -> RunNoise:
        """What went on since ``start``. Call it when the run's own processes have been waited for."""
        ended, own_s, throttled = self._ticks(), _own_cpu_s(), self._throttle_count()
        used = None if own_s is None or self._own_s is None else own_s - self._own_s
        governor = _text(self._cpus / "cpu0/cpufreq/scaling_governor")
        return RunNoise(
            seconds=time.perf_counter() - self._began_s,
            busy_before_pct=self._busy_before_pct,
            others_pct=_others(self._began, ended, used),
            steal_pct=_percent(self._began, ended, "steal"),
            load_before=self._load_before,
            governor=governor,
            clock_mhz=(min(self._clocks), max(self._clocks)) if self._clocks else None,
            throttled=None if throttled is None or self._throttled is None else throttled - self._throttled,
        )

    def _ticks(self) -> _Ticks | None:
        line = (_text(self._proc / "stat") or "").split("\n", 1)[0].split()
        if len(line) < 9 or line[0] != "cpu":
            return None
        user, nice, system, idle, iowait, irq, softirq, steal = (int(each) for each in line[1:9])
        busy = user + nice + system + irq + softirq
        return _Ticks(busy, steal, busy + idle + iowait + steal)

    def _throttle_count(self) -> int | None:
        counts = [_number(path) for path in self._cpus.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
        known = [int(count) for count in counts if count is not None]
        return sum(known) if known else None


def noise_causes(noise: RunNoise, results: Iterable[LatencyResult] = ()) -> tuple[str, ...]:
    """What may have made the figures move, most likely first, each in words; says so where nothing shows."""
    causes = _machine_causes(noise)
    for result in results:
        drift_pct = _drift_pct(result.block_medians_ms)
        if abs(drift_pct) > _DRIFT_PCT:
            how = "slower" if drift_pct > 0 else "faster"
            causes.append(f"{result.variant} became {abs(drift_pct):.0f} % {how} from the first third to the last")
    if causes:
        return tuple(causes)
    return ("neither load nor frequency scaling shows: the times differ by themselves, so give it more time",)


def _machine_causes(noise: RunNoise) -> list[str]:
    causes = []
    if noise.others_pct is not None and noise.others_pct > _BUSY_PCT:
        causes.append(f"load: other processes used {noise.others_pct:.0f} % of the machine")
    elif noise.busy_before_pct is not None and noise.busy_before_pct > _BUSY_PCT:
        causes.append(f"load: the machine was {noise.busy_before_pct:.0f} % busy before the run began")
    if noise.steal_pct is not None and noise.steal_pct > _STEAL_PCT:
        causes.append(f"load: the hypervisor gave {noise.steal_pct:.1f} % of the machine to other guests (steal)")
    if noise.throttled:
        causes.append(f"frequency scaling: the processor cut its clock for heat {noise.throttled} times")
    if noise.clock_mhz is not None and noise.clock_mhz[1] > noise.clock_mhz[0] * (1 + _CLOCK_SPREAD):
        low, high = noise.clock_mhz
        causes.append(f"frequency scaling: the clock moved between {low:.0f} and {high:.0f} MHz")
    elif noise.governor not in (None, _STEADY_GOVERNOR):
        causes.append(f"frequency scaling: the governor is {noise.governor}, not {_STEADY_GOVERNOR}")
    return causes


def _drift_pct(block_medians_ms: Sequence[float]) -> float:
    third = len(block_medians_ms) // 3
    if third == 0:
        return 0.0
    first, last = np.median(block_medians_ms[:third]), np.median(block_medians_ms[-third:])
    return float(100 * (last / first - 1)) if first > 0 else 0.0


def _others(before: _Ticks | None, after: _Ticks | None, own_s: float | None) -> float | None:
    if before is None or after is None or own_s is None or after.total <= before.total:
        return None
    own_ticks = own_s * _ticks_per_second()
    return max(0.0, 100.0 * (after.busy - before.busy - own_ticks) / (after.total - before.total))


def _percent(before: _Ticks | None, after: _Ticks | None, part: str) -> float | None:
    if before is None or after is None or after.total <= before.total:
        return None
    return float(100.0 * (getattr(after, part) - getattr(before, part)) / (after.total - before.total))


def _ticks_per_second() -> float:
    try:
        return float(os.sysconf("SC_CLK_TCK"))
    except (AttributeError, OSError, ValueError):
        return 100.0


def _own_cpu_s() -> float | None:
    """Processor time of this process and of those it has waited for."""
    try:
        import resource
    except ImportError:
        return None
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)


def _load_average(path: Path) -> float | None:
    first = (_text(path) or "").split(" ", 1)[0]
    try:
        return float(first)
    except ValueError:
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None
