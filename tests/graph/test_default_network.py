from __future__ import annotations

import pytest

from qtoolkit.errors import UnavailableError
from qtoolkit.graph import default_network as module
from qtoolkit.graph.default_network import default_network
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import load_network, network_input
from qtoolkit.graph.macs import count_macs
from qtoolkit.graph.view import GraphView

ACTIVATIONS = ("silu", "relu")


@pytest.fixture(scope="module")
def shipped():
    """The networks of the package, by activation, as they are loaded."""
    return {activation: load_network(default_network(activation)) for activation in ACTIVATIONS}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_shipped_networks(shipped, activation):
    model = shipped[activation]
    view = GraphView(model)
    assert network_input(model).shape == (1, 3, 320, 320)
    assert {name: view.shape(name) for name in view.outputs} == {"output0": (1, 6375, 57)}
    assert default_network(activation).stat().st_size <= 10e6
    operators = {node.op_type for node in model.graph.node}
    assert ("Relu" in operators) is (activation == "relu")


def test_they_have_the_same_layers(shipped):
    layers = [[layer.name for layer in find_layers(model)] for model in shipped.values()]
    assert layers[0] == layers[1]
    assert count_macs(shipped["silu"]).gmacs == pytest.approx(count_macs(shipped["relu"]).gmacs, rel=0.01)


def test_relu_is_the_default():
    assert default_network() == default_network("relu")


def test_an_installation_without_them(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    with pytest.raises(UnavailableError, match="the default network is not there") as caught:
        default_network("silu")
    assert caught.value.expected == "yolopose_n6_silu_320.onnx among the files of qtoolkit"
    assert caught.value.found == f"no such file in {tmp_path}"
    assert caught.value.exit_code == 4
