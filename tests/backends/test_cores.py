"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qtoolkit.backends import cores


def test_counts_are_within_what_the_machine_has() -> None:
    assert 1 <= cores.physical_cores() <= cores.logical_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        pytest.param("max 100000\n", None, id="no quota"),
        pytest.param("250000 100000\n", 2.5, id="two and a half cores"),
        pytest.param("50000 100000\n", 0.5, id="half a core"),
        pytest.param("nonsense\n", None, id="not understood"),
    ],
)
def test_reads_the_quota_of_version_2(tmp_path: Path, content: str, limit: float | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert cores.cgroup_cpu_limit(tmp_path) == limit


@pytest.mark.parametrize(("quota", "limit"), [("150000", 1.5), ("-1", None)], ids=["quota", "none"])
def test_reads_the_quota_of_version_1(tmp_path: Path, quota: str, limit: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cores.cgroup_cpu_limit(tmp_path) == limit


def test_no_control_group_is_no_quota(tmp_path: Path) -> None:
    assert cores.cgroup_cpu_limit(tmp_path) is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 8), (2.5, 3), (0.5, 1), (64.0, 8)])
def test_a_quota_cuts_the_count(monkeypatch: pytest.MonkeyPatch, limit: float | None, expected: int) -> None:
    monkeypatch.setattr(cores, "_allowed_cpus", lambda: frozenset(range(8)))
    monkeypatch.setattr(cores, "cgroup_cpu_limit", lambda: limit)
    assert cores.logical_cores() == expected


def test_two_hardware_threads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_allowed_cpus", lambda: frozenset(range(4)))
    monkeypatch.setattr(cores, "_siblings_of", lambda cpu, _: f"{cpu % 2},{cpu % 2 + 2}")
    monkeypatch.setattr(cores, "cgroup_cpu_limit", lambda: None)
    assert (cores.logical_cores(), cores.physical_cores()) == (4, 2)
