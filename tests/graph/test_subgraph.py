from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.subgraph import downstream_cut, extract
from qtoolkit.graph.view import GraphView


@pytest.fixture(scope="module")
def pose(tiny_pose_model):
    return prepare_network(tiny_pose_model())


@pytest.fixture(scope="module")
def tensors(pose, run_network, image):
    """Every tensor of the network for one image."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(pose)
    have = {value.name for value in pose.graph.output}
    tapped.graph.output.extend(value for value in pose.graph.value_info if value.name not in have)
    return {"images": image(64), **run_network(tapped, {"images": image(64)})}


def test_the_part_holds_only_what_it_needs_under_the_old_names(pose):
    part = extract(pose, ["images"], ["c2f.add"])
    assert [value.name for value in part.graph.input] == ["images"]
    assert [value.name for value in part.graph.output] == ["c2f.add"]
    layers = [layer.name for layer in find_layers(part)]
    assert layers == ["stem", "down4", "c2f.in", "c2f.a", "c2f.b"]
    names = {tensor.name for tensor in part.graph.initializer}
    assert names == {"c2f.halves", *(f"{name}.{kind}" for name in layers for kind in ("weight", "bias"))}
    onnx.checker.check_model(part, full_check=True)
    assert GraphView(part).shape("c2f.add") == (1, 8, 16, 16)


def test_the_part_computes_what_the_whole_computes(pose, tensors, run_network):
    part = extract(pose, ["down8.act", "c2f.concat"], ["down16.act", "c2f.out.act"])
    feeds = {name: tensors[name] for name in ("down8.act", "c2f.concat")}
    for name, values in run_network(part, feeds).items():
        np.testing.assert_allclose(values, tensors[name], rtol=1e-6, atol=1e-6)


def test_the_network_is_left_as_it_is(pose):
    before = pose.SerializeToString(deterministic=True)
    extract(pose, ["down8.act"], ["down16.act"])
    assert pose.SerializeToString(deterministic=True) == before


def test_a_cut_tensor_that_nothing_reads_is_left_out(pose):
    part = extract(pose, ["stem.act", "images", "down8.act"], ["down16.act"])
    assert [value.name for value in part.graph.input] == ["down8.act"]


def test_a_weight_can_be_fed_from_outside(pose, tensors, run_network):
    part = extract(pose, ["images", "stem.weight"], ["stem.act"])
    assert [value.name for value in part.graph.input] == ["images", "stem.weight"]
    assert GraphView(part).shape("stem.weight") == (8, 3, 3, 3)
    zeros = np.zeros((8, 3, 3, 3), np.float32)
    found = run_network(part, {"images": tensors["images"], "stem.weight": zeros})["stem.act"]
    assert np.ptp(found, axis=(2, 3)).max() == 0


def test_a_cut_that_leaves_a_path_from_the_image_is_an_error(pose):
    with pytest.raises(UsageError, match=r"does not separate(.|\n)*a path from input 'images'"):
        extract(pose, ["down16.act"], ["output0"])


def test_names_that_are_not_there_and_empty_parts(pose):
    with pytest.raises(UsageError, match="no tensor 'nowhere'"):
        extract(pose, ["nowhere"], ["output0"])
    with pytest.raises(UsageError, match=r"'stem\.act' on both sides"):
        extract(pose, ["stem.act"], ["stem.act"])
    with pytest.raises(UsageError, match="found: no output"):
        extract(pose, ["stem.act"], [])


def test_shapes_are_inferred_where_the_graph_does_not_record_them(tiny_pose_model):
    model = tiny_pose_model()
    assert not model.graph.value_info
    part = extract(model, ["down8.act"], ["down16.act"])
    assert GraphView(part).shape("down8.act") == (1, 24, 8, 8)


def test_a_cut_at_a_tensor_of_unknown_type_is_an_error():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13, "vendor" : 1]>
        net (float[1,3,4,4] images) => (float[1,3,4,4] y) { a = vendor.Thing(images)  y = Relu(a) }"""
    )
    with pytest.raises(ModelFileError, match="cannot be cut at tensor 'a'"):
        extract(model, ["a"], ["y"])


def test_downstream_cut_of_a_last_layer_reads_all_that_the_decode_needs(pose):
    cut = downstream_cut(pose, ["head.score.1.1"])
    assert cut.outputs == ("output0",)
    assert set(cut.inputs) == {
        "head.score.1.0.act",
        "head.score.0.flat",
        "head.score.2.flat",
        "box.pixels",
        "kp.flat",
    }


def test_downstream_cut_of_the_first_layer_is_the_image(pose):
    assert downstream_cut(pose, ["stem"]) == (("images",), ("output0",))


def test_downstream_cut_names_inputs_in_the_order_they_are_made(pose):
    cut = downstream_cut(pose, ["neck16"])
    order = [name for node in pose.graph.node for name in node.output]
    assert list(cut.inputs) == sorted(cut.inputs, key=order.index)


def test_downstream_cut_of_an_unknown_node(pose):
    with pytest.raises(UsageError, match="no node 'nobody'"):
        downstream_cut(pose, ["nobody"])


def test_a_change_reaches_only_the_outputs_behind_it(parse_network):
    model = parse_network(
        "net (float[2] images) => (float[2] y, float[2] z) { [a] y = Relu(images)  [b] z = Neg(images) }"
    )
    assert downstream_cut(model, ["b"]) == (("images",), ("z",))


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_running_behind_any_layers_gives_the_outputs_of_the_whole(pose, tensors, run_network, data):
    names = [layer.name for layer in find_layers(pose)]
    cut = downstream_cut(pose, data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)))
    part = extract(pose, cut.inputs, cut.outputs)
    found = run_network(part, {name: tensors[name] for name in cut.inputs})["output0"]
    np.testing.assert_allclose(found, tensors["output0"], rtol=1e-5, atol=1e-4)
