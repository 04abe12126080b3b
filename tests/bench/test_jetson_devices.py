"""The table of Jetson devices and how a device is named."""

from __future__ import annotations

import pytest

from qtoolkit.artifacts.plan import Precision
from qtoolkit.bench.jetson_devices import (
    DEFAULT_DEVICE,
    MACS_PER_SM_CLOCK,
    find_jetson,
    is_jetson,
    jetson_devices,
    read_table,
)
from qtoolkit.errors import UsageError


def test_jetson_alone_is_the_orin_nano_8gb_super():
    device = find_jetson("jetson")
    assert device.label == f"{DEFAULT_DEVICE}@maxn" == "jetson-orin-nano-8gb-super@maxn"
    assert (device.sms, device.gpu_mhz, device.bandwidth_gbs) == (8, 1020, 102.4)


@pytest.mark.parametrize("name", ["jetson-agx-orin-64gb@30W", "JETSON-AGX-ORIN-64GB@30w"])
def test_a_power_mode(name):
    device = find_jetson(name)
    assert (device.sms, device.gpu_mhz, device.mode) == (8, 612, "30w")
    assert device.description == "NVIDIA Jetson AGX Orin 64GB at 30W (8 SMs, 612 MHz, 204.8 GB/s)"


def test_a_mode_of_the_default_device():
    assert find_jetson("jetson@15w").label == "jetson-orin-nano-8gb-super@15w"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("jetson-orin", "jetson, or one of jetson-nano-4gb, jetson-tx2"),
        ("jetson-agx-orin-64gb@99w", "jetson-agx-orin-64gb@maxn, jetson-agx-orin-64gb@50w"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(name, known):
    with pytest.raises(UsageError, match="expected: .*" + known):
        find_jetson(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("jetson", True), ("jetson-x", True), ("jetson@15w", True), ("jetsons", False), ("cpu", False)],
)
def test_is_jetson(name, expected):
    assert is_jetson(name) is expected


@pytest.mark.parametrize(
    ("name", "precision", "dense_tera_operations"),
    [
        ("jetson-orin-nano-8gb-super", Precision.INT8, 33.42),
        ("jetson-agx-orin-64gb", Precision.INT8, 85.2),
        ("jetson-agx-orin-64gb", Precision.FP16, 42.6),
        ("jetson-agx-orin-64gb", Precision.FP32, 21.3),
        ("jetson-agx-xavier-32gb", Precision.INT8, 22.56),
        ("jetson-tx2", Precision.FP16, 1.33),
    ],
)
def test_peaks_are_the_published_ones(name, precision, dense_tera_operations):
    """Published in 10¹² operations a second, two for a multiply-add."""
    assert 2 * find_jetson(name).macs_per_ms(precision) / 1e9 == pytest.approx(dense_tera_operations, rel=0.005)


def test_int8_is_fp16_where_there_is_none():
    nano, orin = find_jetson("jetson-nano-4gb"), find_jetson("jetson")
    assert nano.runs_as(Precision.INT8) is Precision.FP16
    assert orin.runs_as(Precision.INT8) is Precision.INT8


def test_every_row_is_usable_and_says_where_it_is_from():
    devices = jetson_devices()
    assert len({each.key for each in devices}) == 16
    assert len({each.label for each in devices}) == len(devices)
    for each in devices:
        assert each.generation in MACS_PER_SM_CLOCK
        assert each.sms > 0 and each.gpu_mhz > 0 and each.bandwidth_gbs > 0
        assert each.source and each.checked
        fastest = next(other for other in devices if other.key == each.key)
        assert each.sms * each.gpu_mhz <= fastest.sms * fastest.gpu_mhz


def test_every_point_names_its_source():
    rows = read_table("jetson_points.csv")
    assert len(rows) == 168
    assert all(row["source"] and float(row["ms"]) > 0 for row in rows)
