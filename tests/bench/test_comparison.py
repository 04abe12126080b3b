"""A ratio, its interval, a verdict; from one run and from two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtoolkit.bench.comparison import (
    Comparison,
    check_max_ratio,
    compare_files,
    compare_in_one_run,
    read_bench,
    verdict,
)
from qtoolkit.bench.latency_result import LatencyResult, Ratio, p50_ratio, separate_p50_ratio
from qtoolkit.errors import GateFailed, InputFileError, UsageError

MACHINE = {"cpu": "a processor", "architecture": "x86_64", "cores_logical": 2, "governor": None}


def samples(median_ms: float, seed: int, cycles: int = 20, spread: float = 0.02) -> np.ndarray[Any, Any]:
    return median_ms * (1 + spread * np.random.default_rng(seed).standard_normal((cycles, 5)))


def record(variant: str, samples_ms: np.ndarray[Any, Any], **changes: Any) -> LatencyResult:
    return LatencyResult.model_validate(
        {
            "variant": variant, "target": "ort-cpu", "device": "a processor", "runtime": "onnxruntime",
            "version": "1.0", "provider": "CPU", "threads": 2, "batch": 1, "input_size_wh": None,
            "input_shapes": {"x": (1, 3)}, "inputs": "seed 0", "options": {}, "model_sha256": "ab", "warm_up_s": 1.0,
            "warm_up_count": 10, "warm_up_stable": True, "count": samples_ms.size, "block": samples_ms.shape[1],
            "p50_ms": float(np.median(samples_ms)), "p90_ms": 1.0, "p99_ms": 1.0, "mean_ms": 1.0, "min_ms": 1.0,
            "ratio": 1.0, "ratio_lo": 1.0, "ratio_hi": 1.0, "idle_cpu_pct": 0.0, "block_medians_ms": (),
            "samples_ms": tuple(samples_ms.ravel().tolist()), **changes,
        }
    )  # fmt: skip


def saved(path: Path, *records: LatencyResult, machine: dict[str, Any] | None = None) -> Path:
    rows = [
        {"network": each.variant, "inputs": "noise", "latency": json.loads(each.model_dump_json())} for each in records
    ]
    path.write_text(json.dumps({"results": rows, "environment": machine or MACHINE}))
    return path


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.8, 0.9, "faster"), (1.1, 1.2, "slower"), (0.9, 1.1, "not shown")]
)
def test_verdicts(low: float, high: float, expected: str) -> None:
    assert verdict(Ratio(ratio=(low + high) / 2, ratio_lo=low, ratio_hi=high)) == expected


def test_two_files_of_the_same_network(tmp_path: Path) -> None:
    before, after = record("net.onnx", samples(10.0, 0)), record("net.onnx", samples(8.0, 1, cycles=30))
    old, new = saved(tmp_path / "a.json", before), saved(tmp_path / "b.json", after)
    (found,) = compare_files(read_bench(old), read_bench(new))
    assert found.ratio == pytest.approx(0.8, rel=0.02)
    assert found.ratio_lo < found.ratio < found.ratio_hi
    assert (found.verdict, found.interleaved, found.differing) == ("faster", False, {})


def test_equal_networks_are_not_shown_to_differ() -> None:
    shown = 0
    for seed in range(40):
        found = separate_p50_ratio(samples(10.0, seed, spread=0.1), samples(10.0, seed + 1000, spread=0.1), seed=seed)
        shown += verdict(found) != "not shown"
    assert shown <= 6  # 2 of 40 on average


def test_drift_between_the_occasions_is_not_hidden_by_pairing() -> None:
    drift = np.linspace(1, 2, 20)[:, None]
    first, second = samples(10.0, 0) * drift, samples(7.0, 1) * drift
    paired, separate = p50_ratio(second, first), separate_p50_ratio(second, first)
    assert separate.ratio_hi - separate.ratio_lo > 3 * (paired.ratio_hi - paired.ratio_lo)


@pytest.mark.parametrize(
    ("changes", "machine", "name"),
    [
        ({"threads": 1}, MACHINE, "threads"),
        ({"version": "2.0"}, MACHINE, "version"),
        ({"input_shapes": {"x": (1, 4)}}, MACHINE, "input shapes"),
        ({"options": {"spinning": False}}, MACHINE, "options"),
        ({}, {**MACHINE, "cpu": "another"}, "cpu"),
        ({}, {**MACHINE, "governor": "powersave"}, "governor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_conditions_are_refused_unless_forced(
    changes: dict[str, Any], machine: dict[str, Any], name: str, tmp_path: Path
) -> None:
    old = read_bench(saved(tmp_path / "a.json", record("net.onnx", samples(10.0, 0))))
    new = read_bench(saved(tmp_path / "b.json", record("net.onnx", samples(10.0, 1), **changes), machine=machine))
    with pytest.raises(UsageError, match="were not measured under the same conditions") as caught:
        compare_files(old, new)
    assert name in str(caught.value.found)
    (found,) = compare_files(old, new, force=True)
    assert list(found.differing) == [name]


def test_networks_are_matched_by_name(tmp_path: Path) -> None:
    names = ("a.onnx", "b.onnx")
    old = saved(tmp_path / "1.json", *(record(name, samples(10.0, 0)) for name in names))
    new = saved(tmp_path / "2.json", *(record(name, samples(20.0, 1)) for name in reversed(names)))
    found = compare_files(read_bench(old), read_bench(new))
    assert [(each.network, each.against, each.verdict) for each in found] == [
        ("b.onnx", "b.onnx", "slower"),
        ("a.onnx", "a.onnx", "slower"),
    ]
    only = read_bench(saved(tmp_path / "3.json", record("c.onnx", samples(5.0, 1))))
    with pytest.raises(UsageError, match="no network in common"):
        compare_files(read_bench(old), only)
    single = read_bench(saved(tmp_path / "4.json", record("d.onnx", samples(10.0, 1))))
    assert compare_files(single, only)[0].against == "d.onnx"


def test_one_run_is_compared_with_its_first() -> None:
    first = record("float", samples(10.0, 0))
    second = record("int8", samples(7.0, 0), ratio=0.7, ratio_lo=0.69, ratio_hi=0.71)
    (found,) = compare_in_one_run({"float": first, "int8": second})
    assert (found.network, found.against, found.verdict, found.interleaved) == ("int8", "float", "faster", True)


@pytest.mark.parametrize("content", ["no json", "[]", '{"results": []}', '{"results": [{"network": "a"}]}'])
def test_files_that_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputFileError, match="results in"):
        read_bench(tmp_path / "x.json")
    with pytest.raises(InputFileError, match="cannot be read"):
        read_bench(tmp_path / "missing.json")


def test_the_gate() -> None:
    def comparison(low: float, ratio: float, high: float) -> Comparison:
        return Comparison(
            network="b", against="a", ratio=ratio, ratio_lo=low, ratio_hi=high, verdict="slower", interleaved=True
        )

    check_max_ratio((comparison(1.0, 1.04, 1.08),), 1.05)
    with pytest.raises(GateFailed, match=r"b takes 1\.100 × a \(1\.080–1\.120\)\n"):
        check_max_ratio((comparison(1.08, 1.1, 1.12),), 1.05)
    with pytest.raises(GateFailed, match="which does not show it: measure longer with --until"):
        check_max_ratio((comparison(1.0, 1.1, 1.2),), 1.05)
