"""The formula of the latency model, by hand; and what must hold whatever the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.artifacts.plan import Precision
from qtoolkit.bench.jetson_devices import JetsonDevice, find_jetson
from qtoolkit.bench.layer_work import LayerWork, NetworkWork
from qtoolkit.bench.roofline import Coefficients, fitted_model, kernel_times_ms, model_latency, network_ms

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
# 2048 int8, 1024 fp16, 512 fp32 MACs a clock and SM: of one SM at 1000 MHz 2.048e9, 1.024e9, 0.512e9 a ms.
DEVICE = JetsonDevice("jetson-test", "maxn", "Test", "ampere", 1, 1000.0, 10.0, "", "")
PLAIN = Coefficients(
    efficiency={FP32: 0.5, FP16: 0.5, INT8: 0.25}, memory_efficiency=0.5, launch=0.01, decode=2.0, narrow=0.0
)
HEAVY = LayerWork("a", "Conv", macs=512_000_000, read=10, written=10, weights=10, channels=64)
MOVING = LayerWork("b", "MaxPool", macs=0, read=3_000_000, written=2_000_000)

kernels = st.builds(
    LayerWork, st.just("k"), st.just("Conv"), macs=st.integers(0, 10**11), read=st.integers(1, 10**8),
    written=st.integers(1, 10**8), weights=st.integers(0, 10**8), channels=st.integers(0, 2048),
    precision=st.sampled_from((FP32, FP16, INT8)),
)  # fmt: skip
devices = st.sampled_from([find_jetson(name) for name in ("jetson", "jetson-agx-orin-64gb", "jetson@7w")])


def one(kernel, device=DEVICE, coefficients=PLAIN):
    (ms,) = kernel_times_ms([kernel], device, coefficients)
    return ms


@pytest.mark.parametrize(("precision", "ms"), [(FP32, 2.0), (FP16, 1.0), (INT8, 1.0)])
def test_a_kernel_bound_by_arithmetic(precision, ms):
    """fp32: 0.512e9 MACs / (0.512e9 a ms · 0.5); fp16: half of that; int8: twice the peak at half the efficiency."""
    assert one(HEAVY.at(precision)) == pytest.approx(0.01 + ms)


@pytest.mark.parametrize(("precision", "ms"), [(FP32, 4.0), (FP16, 2.0), (INT8, 1.0)])
def test_a_kernel_bound_by_memory(precision, ms):
    """5e6 elements of 4, 2 or 1 bytes at half of 10e6 bytes a ms."""
    assert one(MOVING.at(precision)) == pytest.approx(0.01 + ms)


def test_a_narrow_layer_is_slower():
    """At as many channels as ``narrow`` a layer runs at half its rate; a kernel without a weight is not concerned."""
    narrow = PLAIN.model_copy(update={"narrow": 64.0})
    assert one(HEAVY, coefficients=narrow) == pytest.approx(0.01 + 2 * 2.0)
    assert one(replace(HEAVY, channels=0), coefficients=narrow) == pytest.approx(0.01 + 2.0)


def test_a_conversion_reads_one_precision_and_writes_the_other():
    """1e6 elements: 2 bytes read, 1 written, at 5e6 bytes a ms."""
    work = LayerWork("c", "Convert", 0, 1_000_000, 1_000_000, precision=FP16, written_as=INT8)
    assert one(work) == pytest.approx(0.01 + 0.6)


def test_a_network_is_the_sum_and_its_decoding():
    """Launches and decoding take half as long at twice the clock, arithmetic too; memory as long as before."""
    network = NetworkWork((HEAVY, MOVING), decodes=True)
    assert network_ms(network, DEVICE, PLAIN) == pytest.approx(2 * 0.01 + 2.0 + 4.0 + 2.0)
    assert network_ms(replace(network, decodes=False), DEVICE, PLAIN) == pytest.approx(2 * 0.01 + 2.0 + 4.0)
    assert network_ms(network, replace(DEVICE, gpu_mhz=2000.0), PLAIN) == pytest.approx(0.01 + 1.0 + 4.0 + 1.0)


def test_int8_runs_in_fp16_on_a_gpu_without_it():
    nano = find_jetson("jetson-nano-4gb")
    assert one(HEAVY.at(INT8), nano) == one(HEAVY.at(FP16), nano)
    network = NetworkWork((HEAVY.at(FP16), replace(MOVING, op="Convert", precision=FP16, written_as=INT8),
                           replace(HEAVY, name="b").at(INT8)), decodes=False, layers=frozenset("ab"))  # fmt: skip
    latency = model_latency(network, nano)
    assert latency.ms == pytest.approx(2 * one(HEAVY.at(FP16), nano, fitted_model().coefficients))
    assert latency.conversions == 0
    assert "NVIDIA Jetson Nano 4GB has no int8: its int8 layers are modelled in fp16." in latency.remarks


@given(kernels, devices, st.floats(1.0, 10.0))
def test_more_work_is_never_faster(kernel, device, factor):
    coefficients = fitted_model().coefficients
    for name in ("macs", "read", "written", "weights"):
        larger = replace(kernel, **{name: int(getattr(kernel, name) * factor) + 1})
        assert one(larger, device, coefficients) >= one(kernel, device, coefficients)


@given(kernels, devices, st.floats(1.0, 4.0))
def test_a_faster_device_is_never_slower(kernel, device, factor):
    coefficients = fitted_model().coefficients
    for name in ("gpu_mhz", "bandwidth_gbs"):
        faster = replace(device, **{name: getattr(device, name) * factor})
        assert one(kernel, faster, coefficients) <= one(kernel, device, coefficients)
    more_sms = replace(device, sms=device.sms + 1)
    assert one(kernel, more_sms, coefficients) <= one(kernel, device, coefficients)


@given(kernels, devices)
def test_fewer_bits_are_never_slower_within_one_kernel_on_orin(kernel, device):
    times = [one(kernel.at(precision), device, fitted_model().coefficients) for precision in (FP32, FP16, INT8)]
    assert times == sorted(times, reverse=True)


@given(kernels, devices)
def test_no_kernel_takes_less_than_its_launch(kernel, device):
    coefficients = fitted_model().coefficients
    assert one(kernel, device, coefficients) > coefficients.launch * 1000.0 / device.gpu_mhz


class TestRange:
    """Where the band holds, and what is said where it does not."""

    network = NetworkWork((replace(HEAVY, macs=5 * 10**9),), decodes=False, layers=frozenset("a"))

    def test_inside_the_band_is_that_of_the_fit(self):
        latency = model_latency(self.network.at(FP16), find_jetson("jetson"))
        assert latency.error_band_pct == fitted_model().error_band_pct
        assert latency.remarks == ()
        assert (latency.device_key, latency.batch, latency.precisions) == (
            "jetson-orin-nano-8gb-super@maxn", 1, {"fp16": 1},
        )  # fmt: skip

    @pytest.mark.parametrize("name", ["jetson-nano-4gb", "jetson-xavier-nx", "jetson-agx-thor-t5000"])
    def test_another_generation(self, name):
        latency = model_latency(self.network.at(FP16), find_jetson(name))
        assert latency.error_band_pct is None
        assert "Extrapolated: the model was fitted and checked on ampere GPUs" in latency.remarks[0]
        assert "is off by" in latency.remarks[0]

    @pytest.mark.parametrize("macs", [10**8, 10**12])
    def test_a_network_smaller_or_larger_than_all_that_were_checked(self, macs):
        network = NetworkWork((replace(HEAVY, macs=macs).at(FP16),), decodes=False)
        latency = model_latency(network, find_jetson("jetson"))
        assert latency.error_band_pct is None
        assert f"the network has {macs / 1e9:.2f} GMACs" in latency.remarks[0]

    @pytest.mark.parametrize("name", ["jetson@7w", "jetson-agx-orin-64gb@15w"])
    def test_fewer_sms_or_a_slower_clock_than_in_any_point(self, name):
        device = find_jetson(name)
        latency = model_latency(self.network.at(FP16), device)
        assert latency.error_band_pct is None
        assert f"not with {device.sms} at {device.gpu_mhz:g}" in latency.remarks[0]

    def test_a_mix_is_told_apart(self):
        mixed = NetworkWork(
            (self.network.kernels[0].at(FP16), replace(HEAVY, name="b").at(INT8)), False, frozenset("ab")
        )
        latency = model_latency(mixed, find_jetson("jetson"))
        assert latency.error_band_pct == fitted_model().error_band_pct
        assert "No published latency is of a mix" in latency.remarks[0]

    def test_a_batch(self):
        latency = model_latency(replace(self.network, batch=2), find_jetson("jetson"))
        assert latency.error_band_pct is None
        assert any("batch 2" in remark for remark in latency.remarks)

    def test_fp32_is_called_tf32(self):
        assert "TF32" in model_latency(self.network, find_jetson("jetson")).remarks[0]
        assert not any("TF32" in each for each in model_latency(self.network, find_jetson("jetson-tx2")).remarks)
