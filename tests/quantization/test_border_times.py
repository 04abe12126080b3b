from __future__ import annotations

from collections.abc import Callable, Collection
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.artifacts.plan import Precision, uniform_plan
from qtoolkit.quantization import border_times as module
from qtoolkit.quantization.border_times import BorderTimes, border_times, two_colours
from qtoolkit.quantization.layer_times import UniformTimes, uniform_times
from qtoolkit.quantization.selection import conversion_cost


@pytest.fixture
def network() -> onnx.ModelProto:
    """a (4 channels) → b (8 channels) → c, and a → d: 1 × 1 convolutions at 2 × 2 pixels."""

    def conv(name: str, source: str, c_in: int, c_out: int):
        weight = numpy_helper.from_array(np.ones((c_out, c_in, 1, 1), np.float32), f"w_{name}")
        return helper.make_node("Conv", [source, weight.name], [name], name=name), weight

    made = [conv("a", "x", 3, 4), conv("b", "a", 4, 8), conv("c", "b", 8, 1), conv("d", "a", 4, 1)]
    sides = {"a": 4, "b": 8, "c": 1, "d": 1}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, c, 2, 2]) for name, c in sides.items()}
    graph = helper.make_graph(
        [node for node, _ in made], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 2])],
        [values["c"], values["d"]], [weight for _, weight in made], value_info=[values["a"], values["b"]],
    )  # fmt: skip
    return helper.make_model(graph)


@pytest.fixture
def measured(monkeypatch) -> Callable[..., BorderTimes]:
    """Times of a runtime in which a layer takes 2 ms at 16 bit and 1 at 8, and conversions take what is given."""

    def run(model: onnx.ModelProto, narrowing: float, widening: float, readers: dict[str, str]) -> BorderTimes:
        def times(network, names, feed, threads):
            wide = network.wide
            found = {}
            for name in names:
                differs = any((reader in wide) != (name in wide) for reader in readers[name])
                found[name] = (2.0 if name in wide else 1.0) + differs * (narrowing if name in wide else widening)
            return found

        monkeypatch.setattr(module, "layer_times_ms", times)
        uniform = UniformTimes(dict.fromkeys(readers, 2.0), dict.fromkeys(readers, 1.0))
        return border_times(model, lambda wide: SimpleNamespace(wide=set(wide)), uniform, {})

    return run


READERS = {"a": "bd", "b": "c", "c": "", "d": ""}


def test_both_directions_of_every_layer_that_is_read(network, measured):
    found = measured(network, 0.25, 0.5, READERS)
    assert found.narrowing == {"a": 0.25, "b": 0.25}
    assert found.widening == {"a": 0.5, "b": 0.5}


def test_noise_makes_no_conversion_a_gain(network, measured):
    assert set(measured(network, -0.5, -0.25, READERS).narrowing.values()) == {0.0}


def test_a_layer_that_was_seen_at_no_border_takes_the_rate_of_the_others(network, measured, monkeypatch):
    """b and c have one colour: b is not measured; a's 0.32 ms are for 16 elements, so b's 32 take 0.64."""
    monkeypatch.setattr(module, "two_colours", lambda names, neighbours: {"a": False, "b": True, "c": True, "d": True})
    found = measured(network, 0.32, 0.16, READERS)
    assert found.narrowing == pytest.approx({"a": 0.32, "b": 0.64})
    assert found.widening == pytest.approx({"a": 0.16, "b": 0.32})


def test_as_terms_of_the_program(network):
    conversions = BorderTimes({"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 20.0}).conversions(network)

    def cost(wide: Collection[str]) -> float:
        return conversion_cost(conversions, wide, "abcd")

    assert (cost("a"), cost("b"), cost("d"), cost("ab"), cost("abd"), cost("abcd")) == (1.0, 12.0, 10.0, 3.0, 2.0, 0.0)


def test_neighbours_get_two_colours_where_they_can():
    chain = {"a": "b", "b": "c", "c": "d", "d": ""}
    assert list(two_colours("abcd", chain).values()) == [False, True, False, True]
    # a reads nothing, b reads a, c reads a and b: it cannot differ from both.
    triangle = two_colours("abc", {"a": "bc", "b": "c", "c": ""})
    assert triangle["a"] != triangle["b"]


def test_on_the_real_runtime(quantizer, photos, pose):
    """Every conversion takes some time that is not absurd beside the network's."""
    layers = [layer.name for layer in quantizer.layers]
    plan = uniform_plan(layers, Precision.INT8, model_sha256="0" * 64, target="ort-cpu", made_by="test")

    def network_with(wide: Collection[str]) -> onnx.ModelProto:
        return quantizer.quantize(plan.with_layers(dict.fromkeys(wide, Precision.FP16))).model

    uniform = uniform_times(network_with(layers), network_with(()), frozenset(layers), photos(1)[0], threads=1)
    found = border_times(pose, network_with, uniform, photos(1)[0], threads=1)
    assert set(found.narrowing) == set(found.widening) < set(layers)
    assert all(0.0 <= ms < 50.0 for ms in (*found.narrowing.values(), *found.widening.values()))
    assert any(ms > 0 for ms in found.narrowing.values())
