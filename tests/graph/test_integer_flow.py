from __future__ import annotations

import pytest

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.integer_flow import integer_pairs
from qtoolkit.graph.layers import Structure, find_layers, last_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.placement import place_qdq

TIDL = find_target("tidl")
INT8, INT16, WIDE = Precision.INT8, Precision.INT16, Precision.INT16W16

# What the tiny pose network has between its layers besides activation functions, with their readers.
OPERATORS = {
    "c2f.left": {"c2f.concat.node"},
    "c2f.right": {"c2f.a", "c2f.add.node", "c2f.concat.node"},
    "c2f.add": {"c2f.concat.node"},
    "c2f.concat": {"c2f.out"},
    "sppf.pool1": {"sppf.pool2.node", "sppf.concat.node"},
    "sppf.pool2": {"sppf.concat.node"},
    "sppf.concat": {"sppf.out"},
    "up": {"up.concat.node"},
    "up.concat": {"neck16"},
}


@pytest.fixture(scope="module")
def relu(tiny_pose_model):
    return prepare_network(tiny_pose_model("relu"))


@pytest.fixture(scope="module")
def silu(tiny_pose_model):
    return prepare_network(tiny_pose_model("silu"))


def pairs_of(model, default, **others):
    changed = {name.replace("_", "."): value for name, value in others.items()}
    precisions = {layer.name: changed.get(layer.name, default) for layer in find_layers(model)}
    return integer_pairs(Structure.of(model), precisions, TIDL)


def inner_layers(model):
    return [layer for layer in find_layers(model) if layer.name not in last_layers(model)]


@pytest.mark.parametrize(("precision", "bits"), [(INT8, 8), (INT16, 16), (WIDE, 16)])
def test_every_tensor_in_front_of_the_last_layers_outputs_has_one_pair(relu, precision, bits):
    expected = {"images", *OPERATORS, *(f"{layer.name}.act" for layer in inner_layers(relu))}
    assert set(pairs_of(relu, precision)) == {(tensor, bits) for tensor in expected}


def test_operators_read_through_the_pairs_too(relu):
    pairs = pairs_of(relu, INT8)
    assert {tensor: pairs[tensor, 8] for tensor in OPERATORS} == OPERATORS


def test_a_silu_is_one_look_up_with_a_pair_on_either_side(silu):
    pairs = pairs_of(silu, INT8)
    expected = {"images", *OPERATORS}
    for layer in inner_layers(silu):
        expected |= {layer.output, f"{layer.name}.act"}
    assert {tensor for tensor, _ in pairs} == expected
    stem = find_layers(silu)[0]
    assert pairs[stem.output, 8] == {"stem.sigmoid.node", "stem.act.node"}


def test_a_16_bit_layer_behind_a_concat_has_all_of_it_at_16_bit(relu):
    pairs = pairs_of(relu, INT8, sppf_out=WIDE)
    for tensor in ("sppf.concat", "sppf.pool1", "sppf.pool2", "sppf.in.act"):
        assert (tensor, 16) in pairs and (tensor, 8) not in pairs
    assert {tensor for tensor, bits in pairs if bits == 16} == {
        "sppf.concat",
        "sppf.pool1",
        "sppf.pool2",
        "sppf.in.act",
    }


def test_a_tensor_that_is_read_at_both_widths_is_written_at_both(relu):
    pairs = pairs_of(relu, INT8, c2f_out=WIDE)
    assert pairs["c2f.right", 8] == {"c2f.a"}
    assert pairs["c2f.right", 16] == {"c2f.add.node", "c2f.concat.node"}
    # The Split in front of it cannot change precision: it runs at the wider one.
    assert ("c2f.in.act", 16) in pairs and ("c2f.in.act", 8) not in pairs


def test_a_16_bit_layer_writes_8_bit_where_8_bit_is_read(relu):
    pairs = pairs_of(relu, INT8, stem=WIDE)
    assert ("images", 16) in pairs and ("images", 8) not in pairs
    assert ("stem.act", 8) in pairs and ("stem.act", 16) not in pairs


def test_no_pair_between_an_add_and_the_relu_behind_it(parse_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,4,4] images) => (float[1,1,4,4] y) <float[1,1,1,1] w = {2.0}> {
                [a] a = Conv(images, w)
                [b] b = Conv(images, w)
                [add] s = Add(a, b)
                [relu] r = Relu(s)
                [c] c = Conv(r, w)
                [y] y = Conv(c, w)
            }"""
        )
    )
    pairs = integer_pairs(Structure.of(model), dict.fromkeys("abcy", INT8), TIDL)
    assert pairs == {
        ("images", 8): {"a", "b"},
        ("a", 8): {"add"},
        ("b", 8): {"add"},
        ("r", 8): {"c"},
        ("c", 8): {"y"},
    }


def test_a_layer_alone_bears_the_tensors_whose_width_it_decides(relu):
    assert set(integer_pairs(Structure.of(relu), {"sppf.out": INT8}, TIDL)) == {
        (tensor, 8) for tensor in ("sppf.concat", "sppf.pool1", "sppf.pool2", "sppf.in.act")
    }


def test_the_decode_tail_reads_what_the_layers_read(parse_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,4,4] images) => (float[1,1,4,4] y, float[1,1,4,4] z) <float[1,1,1,1] w = {2.0}> {
                [a] a = Conv(images, w)
                [b] y = Conv(a, w)
                [tail] z = Exp(a)
            }"""
        )
    )
    pairs = integer_pairs(Structure.of(model), {"a": INT8, "b": INT8}, TIDL)
    assert pairs["a", 8] == {"b", "tail"}


def test_placement_takes_these_pairs_and_shares_ranges_as_everywhere(relu):
    precisions = dict.fromkeys((layer.name for layer in find_layers(relu)), INT8)
    placement = place_qdq(relu, precisions, TIDL)
    assert set(placement.tensors) == set(integer_pairs(Structure.of(relu), precisions, TIDL))
    assert placement.tensors["sppf.pool2", 8].range_of == placement.tensors["sppf.in.act", 8].range_of
    assert placement.tensors["c2f.add", 8].range_of == "c2f.concat"
