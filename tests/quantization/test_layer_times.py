from __future__ import annotations

import onnx
import pytest

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.quantization import layer_times
from qtoolkit.quantization.layer_times import layer_times_ms, uniform_times

# Convolution a with a quantized weight, a residual add, Gemm b with a weight that is dequantized and transposed.
NETWORK = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[1,1,2,2] images) => (float[1,3] y)
<float[1,1,1,1] wa = {2.0}, int8[3,4] wb = {1,2,3,4,5,6,7,8,9,1,2,3}, float s = {0.5}, int8 z = {0}> {
    [scaled] x = Mul(images, s)
    [a] a_out = Conv(x, wa)
    [relu] a_act = Relu(a_out)
    [added] sum = Add(a_act, x)
    [flat] f = Flatten(sum)
    [wb_dq] wb_float = DequantizeLinear(wb, s, z)
    [wb_t] wb_turned = Transpose <perm = [1, 0]> (wb_float)
    [b] b_out = MatMul(f, wb_turned)
    [out] y = Sigmoid(b_out)
}
"""


@pytest.fixture
def network() -> onnx.ModelProto:
    return onnx.parser.parse_model(NETWORK)


@pytest.fixture
def profile(monkeypatch):
    """``profile(*times)``: what the runtime would measure, one after the other."""

    def will_be(*times: dict[str, float]) -> list[dict[str, object]]:
        answers, asked = iter(times), []

        def measured(model, feed, **options):
            asked.append({"model": model, "feed": feed, **options})
            return next(answers)

        monkeypatch.setattr(layer_times, "per_node_times", measured)
        return asked

    return will_be


class TestOwners:
    @pytest.mark.parametrize(
        ("node", "layer"),
        [
            pytest.param("a", "a", id="a layer itself"),
            pytest.param("scaled", "a", id="before the first layer"),
            pytest.param("relu", "a", id="activation"),
            pytest.param("added", "a", id="add: its first input decides"),
            pytest.param("flat", "a", id="further behind"),
            pytest.param("wb_dq", "b", id="dequantized weight: the layer that reads it"),
            pytest.param("wb_t", "b", id="transposed weight"),
            pytest.param("out", "b", id="behind the last layer"),
        ],
    )
    def test_every_node_counts_to_one_layer(self, network, profile, node, layer):
        profile({node: 3.0})
        assert layer_times_ms(network, frozenset("ab"), {}) == {"a": 0.0, "b": 0.0} | {layer: 3.0}

    def test_times_of_a_layer_are_added_up(self, network, profile):
        profile({"b": 8.0, "a": 4.0, "relu": 2.0, "wb_dq": 1.0, "out": 0.5, "scaled": 0.25})
        assert layer_times_ms(network, frozenset("ab"), {}) == {"a": 6.25, "b": 9.5}

    def test_what_the_runtime_added_counts_to_none(self, network, profile):
        profile({"a": 1.0, "runtime:ReorderInput": 5.0})
        assert layer_times_ms(network, frozenset("ab"), {}) == {"a": 1.0, "b": 0.0}

    def test_a_convolution_that_is_no_layer_counts_to_the_layer_before(self, network, profile):
        profile({"a": 1.0, "b": 2.0, "out": 4.0})
        assert layer_times_ms(network, frozenset("a"), {}) == {"a": 7.0}

    def test_model_feed_and_threads_are_handed_on(self, network, profile):
        asked = profile({})
        feed = {"images": object()}
        layer_times_ms(network, frozenset("ab"), feed, 3)
        assert asked == [{"model": network, "feed": feed, "threads": 3}]


def test_added_time_is_the_difference_and_may_be_negative(network, profile):
    asked = profile({"a": 5.0, "relu": 1.0, "b": 2.0}, {"a": 2.0, "b": 2.5, "wb_dq": 0.5})
    narrow = onnx.ModelProto()
    narrow.CopyFrom(network)
    assert uniform_times(network, narrow, frozenset("ab"), {}, threads=2).added_ms == {"a": 4.0, "b": -1.0}
    assert asked[0]["model"] is network and asked[1]["model"] is narrow


@pytest.mark.parametrize("precision", list(Precision), ids=lambda each: each.value)
def test_no_time_of_a_real_network_is_lost(quantizer, photos, monkeypatch, precision):
    names = frozenset(layer.name for layer in quantizer.layers)
    model = quantizer.quantize(uniform_plan(sorted(names), precision)).model
    measured: list[dict[str, float]] = []
    original = layer_times.per_node_times

    def quickly(*arguments, **options):
        measured.append(original(*arguments, runs=3, warm_up=1, **options))
        return measured[-1]

    monkeypatch.setattr(layer_times, "per_node_times", quickly)
    times = layer_times_ms(model, names, photos(1)[0], threads=1)
    owned = {node: ms for node, ms in measured[0].items() if not node.startswith("runtime:")}
    assert set(times) == names
    assert all(ms > 0 for ms in times.values())
    assert sum(times.values()) == pytest.approx(sum(owned.values()))
    # Only changes of the memory layout belong to no layer: not a convolution, and no Cast of a 16-bit tensor.
    added = {node.removeprefix("runtime:") for node in measured[0]} - set(owned)
    assert added <= {"ReorderInput", "ReorderOutput", "Transpose"}
    assert sum(owned.values()) > 0.5 * sum(measured[0].values())
