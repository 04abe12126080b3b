from __future__ import annotations

from qtoolkit.backends.tensorrt_inspector import EngineLayer
from qtoolkit.backends.tensorrt_profile import median_times, times_by_node

NODES = ("conv1", "sigmoid1", "mul1", "conv2", "concat")
MAIN = ("conv1", "conv2")


def test_medians():
    assert median_times([("a", 1.0), ("b", 5.0), ("a", 9.0), ("a", 2.0)]) == {"a": 2.0, "b": 5.0}


def test_a_fused_layer_is_counted_to_the_networks_layer_in_it():
    assert times_by_node({"conv1 + PWN(sigmoid1, mul1)": 2.0, "concat": 3.0}, (), MAIN, NODES) == {
        "concat": 3.0, "conv1": 2.0,
    }  # fmt: skip


def test_what_is_computed_together_is_shared_out_and_layout_changes_stand_apart():
    found = times_by_node({"conv1 || conv2": 2.0, "Reformatting CopyNode": 0.5}, (), MAIN, NODES)
    assert found == {"conv1": 1.0, "conv2": 1.0, "engine:Reformatting CopyNode": 0.5}


def test_the_inspector_knows_what_the_name_does_not_tell():
    layers = [EngineLayer("__myl_Conv", "kgen", (), (), None, ("mul1", "conv2"))]
    assert times_by_node({"__myl_Conv": 1.5}, layers, MAIN, NODES) == {"conv2": 1.5}


def test_several_layers_of_one_node_add_up():
    assert times_by_node({"conv1": 1.0, "weight + conv1": 0.5}, (), MAIN, NODES) == {"conv1": 1.5}
