"""What else a machine did, from /proc and /sys trees made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qtoolkit.bench import noise
from qtoolkit.bench.noise import NoiseWatch, RunNoise, noise_causes

QUIET = RunNoise(
    seconds=10.0,
    busy_before_pct=1.0,
    others_pct=0.5,
    steal_pct=0.0,
    load_before=0.1,
    governor="performance",
    clock_mhz=(3000.0, 3010.0),
    throttled=0,
)


def result(variant: str, *block_medians_ms: float) -> Any:
    return SimpleNamespace(variant=variant, block_medians_ms=block_medians_ms)


def ticks(root: Path, user: int, idle: int, steal: int = 0) -> None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n")


def cpu(root: Path, number: int, **files: object) -> None:
    for name, content in files.items():
        path = root / f"sys/devices/system/cpu/cpu{number}" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def test_a_run_on_a_busy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_own_cpu_s", iter([5.0, 7.0]).__next__)
    monkeypatch.setattr(noise, "_ticks_per_second", lambda: 100.0)
    ticks(tmp_path, user=1000, idle=1000)
    (tmp_path / "proc/loadavg").write_text("1.50 1.00 0.50 2/100 4242\n")
    cpu(tmp_path, 0, cpufreq__scaling_cur_freq=3_000_000, cpufreq__scaling_governor="powersave")
    cpu(tmp_path, 0, thermal_throttle__core_throttle_count=4)
    watch = NoiseWatch(tmp_path, idle_check_s=0.0)
    watch.start()
    # 1000 ticks more: 300 busy, 200 of them ours, 20 stolen.
    ticks(tmp_path, user=1300, idle=1680, steal=20)
    cpu(tmp_path, 0, cpufreq__scaling_cur_freq=2_000_000, thermal_throttle__core_throttle_count=6)
    watch.look()
    found = watch.finish()
    assert found.others_pct == pytest.approx(10.0)
    assert found.steal_pct == pytest.approx(2.0)
    assert (found.load_before, found.governor, found.throttled) == (1.5, "powersave", 2)
    assert found.clock_mhz == (2000.0, 3000.0)
    assert not found.quiet
    assert noise_causes(found) == (
        "load: other processes used 10 % of the machine",
        "load: the hypervisor gave 2.0 % of the machine to other guests (steal)",
        "frequency scaling: the processor cut its clock for heat 2 times",
        "frequency scaling: the clock moved between 2000 and 3000 MHz",
    )


def test_the_idle_check_sees_what_runs_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks(tmp_path, user=0, idle=0)
    monkeypatch.setattr(noise.time, "sleep", lambda _: ticks(tmp_path, user=40, idle=60))
    watch = NoiseWatch(tmp_path)
    watch.start()
    found = watch.finish()
    assert found.busy_before_pct == pytest.approx(40.0)
    assert noise_causes(found) == ("load: the machine was 40 % busy before the run began",)


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    watch = NoiseWatch(tmp_path, idle_check_s=0.0)
    watch.start()
    found = watch.finish()
    told = found.model_dump(exclude={"seconds"})
    assert set(told.values()) == {None}
    assert found.quiet


def test_this_machine() -> None:
    watch = NoiseWatch(idle_check_s=0.05)
    watch.start()
    found = watch.finish()
    assert found.seconds >= 0
    assert found.others_pct is None or 0 <= found.others_pct <= 100


def test_a_quiet_machine_names_no_cause() -> None:
    assert QUIET.quiet
    assert noise_causes(QUIET, [result("int8", 1.0, 1.0, 1.0)]) == (
        "neither load nor frequency scaling shows: the times differ by themselves, so give it more time",
    )


def test_a_governor_that_lets_the_clock_move() -> None:
    noisy = QUIET.model_copy(update={"governor": "schedutil"})
    assert noise_causes(noisy) == ("frequency scaling: the governor is schedutil, not performance",)


def test_a_network_that_slows_down_is_named() -> None:
    assert noise_causes(QUIET, [result("int8", 10.0, 10.5, 11.0)]) == (
        "int8 became 10 % slower from the first third to the last",
    )
