"""Modelled times of layers, borders and networks, as selection and the scorecard use them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.backends.targets import find_target
from qtoolkit.bench.jetson_devices import find_jetson
from qtoolkit.bench.network_work import network_work
from qtoolkit.bench.roofline import fitted_model, network_ms
from qtoolkit.errors import UsageError
from qtoolkit.graph.layers import find_layers, layer_neighbours
from qtoolkit.quantization.modelled_times import (
    check_device,
    device_inputs,
    modelled_added_ms,
    modelled_conversions,
    modelled_latencies,
)
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.selection import conversion_cost

COEFFICIENTS = fitted_model().coefficients


def test_added_times_of_all_layers_are_what_the_whole_network_gains_but_for_what_is_no_layer(relu_pose):
    added = modelled_added_ms(relu_pose, "jetson")
    assert set(added) == {layer.name for layer in find_layers(relu_pose)}
    network, device = network_work(relu_pose), find_jetson("jetson")
    layers = replace(network, decodes=False, kernels=tuple(k for k in network.kernels if k.name in network.layers))
    gain = network_ms(layers.at(Precision.FP16), device, COEFFICIENTS) - network_ms(
        layers.at(Precision.INT8), device, COEFFICIENTS
    )
    assert sum(added.values()) == pytest.approx(gain)
    assert all(ms >= 0 for ms in added.values())


def test_without_int8_nothing_is_gained_and_nothing_converted(relu_pose):
    assert set(modelled_added_ms(relu_pose, "jetson-nano-4gb").values()) == {0.0}
    assert modelled_conversions(relu_pose, "jetson-nano-4gb") == ()


def test_a_conversion_by_hand(relu_pose):
    """A launch, and 2 + 1 bytes for each element of the output."""
    device = find_jetson("jetson")
    neighbours = layer_neighbours(relu_pose)
    written = {kernel.name: kernel.written for kernel in network_work(relu_pose).kernels}
    conversions = modelled_conversions(relu_pose, "jetson")
    assert {each.layer for each in conversions} == {name for name, readers in neighbours.items() if readers}
    for each in conversions:
        memory = 3 * written[each.layer] / (102.4e6 * COEFFICIENTS.memory_efficiency)
        assert each.cost == pytest.approx(COEFFICIENTS.launch * 1000.0 / device.gpu_mhz + memory)
        assert each.readers == neighbours[each.layer]


def test_what_selection_adds_up_is_what_the_written_network_costs(relu_pose, calibrated):
    """One layer after the other at 16 bit: the sum of added times and conversions against the file that is made."""
    target = find_target("tensorrt")
    quantizer = Quantizer(relu_pose, target, calibrated(relu_pose, "tensorrt"))
    layers = [layer.name for layer in find_layers(relu_pose)]
    added, conversions = modelled_added_ms(relu_pose, "jetson"), modelled_conversions(relu_pose, "jetson")
    device, int8 = find_jetson("jetson"), uniform_plan(layers, Precision.INT8)

    def written_ms(plan):
        return network_ms(network_work(quantizer.quantize(plan).model), device, COEFFICIENTS)

    base = written_ms(int8)
    off = []
    for count in range(1, len(layers), 5):
        wide = layers[:count]
        plan = int8.with_layers(dict.fromkeys(wide, Precision.FP16))
        predicted = sum(added[name] for name in wide) + conversion_cost(conversions, wide, layers)
        off.append(abs(written_ms(plan) - base - predicted))
    # Residual adds and pooling stand between layers and are converted for themselves: a launch or two.
    assert max(off) < 4 * COEFFICIENTS.launch


def test_latencies_of_files(relu_pose, tmp_path):
    path = tmp_path / "float.onnx"
    path.write_bytes(relu_pose.SerializeToString())
    figures = modelled_latencies({"float": path, "again": path}, "jetson")
    assert list(figures) == ["float", "again"]
    assert not any(each.measured for each in figures.values())
    assert (figures["again"].ratio, figures["again"].target) == (1.0, "tensorrt")


def test_the_hash_of_a_stage_depends_on_the_mode():
    assert device_inputs(None) == []
    assert device_inputs("jetson") == device_inputs("jetson-orin-nano-8gb-super@maxn")
    assert device_inputs("jetson") != device_inputs("jetson@15w")


@pytest.mark.parametrize("target", ["ort-cpu", "openvino-cpu", "tidl"])
def test_a_device_goes_with_tensorrt_only(target):
    check_device(None, find_target(target))
    check_device("jetson", find_target("tensorrt"))
    with pytest.raises(UsageError, match=f"target {target} makes no networks for jetson"):
        check_device("jetson", find_target(target))
