from __future__ import annotations

import pytest

from qtoolkit.graph.layers import Structure
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.units import find_units
from qtoolkit.graph.view import node_name


def layers_of(model, **options):
    return [unit.layers for unit in find_units(Structure.of(prepare_network(model)), **options)]


@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_every_node_in_front_of_the_tail_is_in_exactly_one_unit(tiny_pose_model, activation, most):
    structure = Structure.of(prepare_network(tiny_pose_model(activation)))
    units = find_units(structure, most)
    nodes = [name for unit in units for name in unit.nodes]
    expected = [node_name(node) for node in structure.view.nodes if node_name(node) not in structure.tail]
    assert nodes == expected
    assert [name for unit in units for name in unit.layers] == list(structure.layers)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_units_read_only_what_others_put_out_before(tiny_pose_model, activation):
    structure = Structure.of(prepare_network(tiny_pose_model(activation)))
    known = set(structure.view.inputs)
    for unit in find_units(structure):
        assert set(unit.inputs) <= known
        assert set(unit.outputs) <= set(unit.tensors)
        known |= set(unit.outputs)
    assert {structure.layers[name].output for name in structure.last} <= known


def test_a_layer_keeps_its_activation_function(tiny_pose_model):
    structure = Structure.of(prepare_network(tiny_pose_model("silu")))
    for unit in find_units(structure, 1):
        made = [structure.view.producer(tensor).op_type for tensor in unit.inputs if structure.view.producer(tensor)]
        assert "Sigmoid" not in made and "Conv" not in made


class TestJoined:
    @pytest.fixture
    def net(self, network_builder):
        return network_builder(0, "relu", batch_norm=False)

    def test_a_residual_block_is_one_unit(self, net):
        x = net.node("MaxPool", [net.conv("stem", "images", 3, 4, kernel=3)], "pool", kernel_shape=[2, 2])
        y = net.plain_conv("second", net.conv("first", x, 4, 4, kernel=3), 4, 4, kernel=1)
        net.plain_conv("head", net.node("Add", [x, y], "sum"), 4, 2, kernel=1)
        net.plain_conv("other", "sum", 4, 2, kernel=1)
        shapes = {"head.out": (1, 2, 7, 7), "other.out": (1, 2, 7, 7)}
        found = layers_of(net.model({"images": (1, 3, 8, 8)}, shapes), most_layers=2)
        assert found == [("stem",), ("first", "second"), ("head",), ("other",)]

    def test_layers_that_hang_together_too_long_are_cut_anyway(self, net):
        x = net.conv("stem", "images", 3, 4, kernel=1)
        net.node("Split", [x], ["left", "right"], axis=1)
        x = net.conv("b", net.conv("a", "left", 2, 2, kernel=1), 2, 2, kernel=1)
        net.plain_conv("head", net.node("Concat", ["right", x], "all", axis=1), 4, 2, kernel=1)
        model = net.model({"images": (1, 3, 8, 8)}, {"head.out": (1, 2, 8, 8)})
        units = find_units(Structure.of(prepare_network(model)), 1)
        assert [unit.layers for unit in units] == [("stem",), ("a",), ("b",), ("head",)]
        assert units[1].outputs == ("right", "a.act")
