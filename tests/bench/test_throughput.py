"""Images per second of runners of known duration, through worker processes, and the energy a meter counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtoolkit.bench.energy import EnergyMeter
from qtoolkit.bench.throughput import ThroughputResult, measure_throughput
from qtoolkit.errors import UsageError

Lasting = Callable[..., dict[str, Path]]


class Watts(EnergyMeter):
    """Ten watts, always."""

    source = "imagination"

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop_j(self) -> float:
        return 10 * (time.perf_counter() - self.began)


def measure(variants: dict[str, Path], **options: Any) -> dict[str, ThroughputResult]:
    settings: dict[str, Any] = {"seconds": 1.5, "warmup_s": 0.0, "timeout_s": 30.0, **options}
    return measure_throughput(variants, backend="stand_ins:Sleeping", **settings)


def slept_s(model: Path) -> float:
    """Mean time that the runners of a network really slept: longer than asked where others use the machine too."""
    times = [float(each) for log in model.parent.glob(f"{model.name}.*.slept") for each in log.read_text().split()]
    return sum(times) / len(times)


@pytest.mark.parametrize("streams", [1, 3])
def test_known_durations_come_out_right_to_2_percent(streams: int, lasting: Lasting) -> None:
    variants = lasting(slow=0.02, fast=0.01)
    found = measure(variants, streams=streams, seconds=3.0)
    rates = {name: streams / slept_s(path) for name, path in variants.items()}
    for name, rate in rates.items():
        assert found[name].images_per_second == pytest.approx(rate, rel=0.02), name
    assert found["fast"].images_per_second <= 100 * streams
    assert found["fast"].ratio == pytest.approx(rates["fast"] / rates["slow"], rel=0.03)
    assert found["fast"].ratio_lo <= found["fast"].ratio <= found["fast"].ratio_hi
    assert (found["slow"].ratio, found["slow"].streams) == (1.0, streams)


def test_a_batch_counts_as_so_many_images(lasting: Lasting) -> None:
    variants = lasting(only=0.01)
    found = measure(variants, options={"note": "batch 2"})["only"]
    assert found.batch == 2
    assert found.images_per_second == pytest.approx(2 / slept_s(variants["only"]), rel=0.03)
    assert len(found.turns_images_per_second) == 10


def test_streams_share_the_threads(lasting: Lasting) -> None:
    assert measure(lasting(only=0.01), streams=2, threads=5, seconds=0.2)["only"].threads == 2
    assert measure(lasting(only=0.01), streams=4, threads=1, seconds=0.2)["only"].threads == 1


def test_energy_of_an_image(lasting: Lasting) -> None:
    found = measure(lasting(only=0.01), meter=Watts())["only"]
    # Ten watts for ten milliseconds; the worker's rest after each turn counts too.
    assert found.millijoules_per_image is not None and 100 <= found.millijoules_per_image < 250
    assert found.energy_source == "imagination"


def test_without_a_meter_there_is_no_energy(lasting: Lasting) -> None:
    found = measure(lasting(only=0.01), seconds=0.2)["only"]
    assert (found.millijoules_per_image, found.energy_source) == (None, None)


@pytest.mark.parametrize("changed", [{"streams": 0}, {"seconds": 0.0}, {"seconds": float("nan")}], ids=str)
def test_counts_that_cannot_be_used(changed: dict[str, Any], lasting: Lasting) -> None:
    with pytest.raises(UsageError, match="the throughput cannot be measured so"):
        measure(lasting(only=0.0), **changed)
