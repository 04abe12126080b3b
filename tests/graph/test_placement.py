from __future__ import annotations

import pytest

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.layers import Structure, decode_tail, find_layers, last_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.placement import place_qdq
from qtoolkit.graph.view import GraphView, node_name

ORT_CPU, TENSORRT = find_target("ort-cpu"), find_target("tensorrt")
# For networks so small that every layer is a last one or reads what one makes.
EVEN_LAST = ORT_CPU.model_copy(update={"float_last_inputs": False})
FP32, FP16, INT16, INT8 = Precision.FP32, Precision.FP16, Precision.INT16, Precision.INT8

# What the tiny pose network has between its layers besides activation functions.
OPERATOR_TENSORS = {
    *("c2f.left", "c2f.right", "c2f.add", "c2f.concat"),
    *("sppf.pool1", "sppf.pool2", "sppf.concat", "up", "up.concat"),
}


@pytest.fixture(scope="module")
def silu(tiny_pose_model):
    return prepare_network(tiny_pose_model("silu"))


@pytest.fixture(scope="module")
def relu(tiny_pose_model):
    return prepare_network(tiny_pose_model("relu"))


def inner_layers(model):
    return [layer for layer in find_layers(model) if layer.name not in last_layers(model)]


def all_at(model, precision, **others):
    """Every layer at ``precision``; ``others`` by name, with _ for the dots."""
    changed = {name.replace("_", "."): value for name, value in others.items()}
    return {layer.name: changed.get(layer.name, precision) for layer in find_layers(model)}


def readers_of(placement):
    return {key: pair.readers for key, pair in placement.tensors.items()}


def test_ort_cpu_quantizes_every_tensor_between_the_image_and_the_last_layers(silu):
    placement = place_qdq(silu, all_at(silu, INT8), ORT_CPU)
    expected = {"images"} | OPERATOR_TENSORS
    for layer in inner_layers(silu):
        expected |= {layer.output, f"{layer.name}.sigmoid", f"{layer.name}.act"}
    assert {tensor for tensor, _ in place_qdq(silu, all_at(silu, INT8), EVEN_LAST).tensors} == expected
    # What last layers alone read is float, and so is the SiLU in front of them.
    for name in (layer.input.removesuffix(".act") for layer in find_layers(silu) if layer.name in last_layers(silu)):
        expected -= {f"{name}.sigmoid", f"{name}.act"}
    assert {tensor for tensor, _ in placement.tensors} == expected
    assert {bits for _, bits in placement.tensors} == {8}
    assert placement.layers == all_at(silu, INT8)
    assert placement.layers_reading_float(Structure.of(silu)) == set(last_layers(silu))


def test_ort_cpu_leaves_the_last_layers_outputs_and_the_decode_tail_alone(silu):
    placement = place_qdq(silu, all_at(silu, INT8), ORT_CPU)
    tail, view = decode_tail(silu), GraphView(silu)
    made_by_tail = {output for node in view.nodes if node_name(node) in tail for output in node.output}
    made_by_last = {layer.output for layer in find_layers(silu) if layer.name in last_layers(silu)}
    assert len(made_by_last) == 9 and len(made_by_tail) > 30
    assert not {tensor for tensor, _ in placement.tensors} & (made_by_tail | made_by_last)


def test_a_value_out_of_8_bit_arithmetic_is_read_so_by_everybody(silu):
    readers = readers_of(place_qdq(silu, all_at(silu, INT8), ORT_CPU))
    assert readers.pop(("images", 8)) == {"stem"}
    assert set(readers.values()) == {None}


def test_a_last_layer_reads_8_bit_where_others_do_or_where_it_is_not_at_8_bit(silu, relu):
    last = {layer.name: layer for layer in find_layers(silu) if layer.name in last_layers(silu)}
    int16 = readers_of(place_qdq(silu, all_at(silu, INT8) | dict.fromkeys(last, INT16), ORT_CPU))
    for name, layer in last.items():
        assert int16[layer.input, 16] == {name}
    # A Relu is fused: what leaves the convolution is 8-bit already.
    int8 = readers_of(place_qdq(relu, all_at(relu, INT8), ORT_CPU))
    assert all(int8[layer.input, 8] is None for layer in last.values())


def test_a_tensor_that_a_last_layer_and_another_read_is_8_bit_for_both(parse_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,4,4] images) => (float[1,1,4,4] y, float[1,1,4,4] z) <float[1,1,1,1] w = {2.0}> {
                a = Conv(images, w)
                b = Tanh(a)
                y = Conv(b, w)
                c = Conv(b, w)
                z = Conv(c, w)
            }"""
        )
    )
    first, last, third, end = (layer.name for layer in find_layers(model))
    readers = readers_of(place_qdq(model, dict.fromkeys((first, last, third, end), INT8), ORT_CPU))
    assert readers == {("images", 8): {first}, ("a", 8): None, ("b", 8): {third}, ("c", 8): None}


def test_with_relu_the_pair_stands_behind_the_relu(relu):
    placement = place_qdq(relu, all_at(relu, INT8), ORT_CPU)
    expected = {"images"} | OPERATOR_TENSORS | {f"{layer.name}.act" for layer in inner_layers(relu)}
    assert {tensor for tensor, _ in placement.tensors} == expected


def test_a_relu_that_is_not_alone_does_not_move_the_pair(parse_network):
    model = parse_network(
        """net (float[1,1,4,4] images) => (float[1,1,4,4] y) <float[1,1,1,1] w = {2.0}> {
            a = Conv(images, w)
            b = Relu(a)
            c = Add(a, b)
            y = Conv(c, w)
        }"""
    )
    model = prepare_network(model)
    first, second = (layer.name for layer in find_layers(model))
    placement = place_qdq(model, {first: INT8, second: INT8}, EVEN_LAST)
    # The Relu has no kernel of its own in 8 bit, so the Add reads one 8-bit and one float tensor, both quantized.
    assert {tensor for tensor, _ in placement.tensors} == {"images", "a", "b", "c"}
    assert placement.tensors["a", 8].readers is None


def test_a_relu_in_front_of_a_graph_output_still_takes_the_pair(parse_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,4,4] images) => (float[1,1,4,4] y, float[1,1,4,4] a) <float[1,1,1,1] w = {2.0}> {
                a = Conv(images, w)
                b = Relu(a)
                y = Conv(b, w)
            }"""
        )
    )
    first, second = (layer.name for layer in find_layers(model))
    placement = place_qdq(model, {first: INT8, second: INT8}, ORT_CPU)
    # The convolution's own output is wanted by the caller in float: it cannot be fused away.
    assert "a" in {tensor for tensor, _ in placement.tensors}


def test_shape_operators_share_the_range_of_what_goes_in_and_a_concat_gives_its_own(silu):
    tensors = place_qdq(silu, all_at(silu, INT8), ORT_CPU).tensors
    shared = {tensor: pair.range_of for (tensor, _), pair in tensors.items() if pair.range_of != tensor}
    assert shared == {
        "c2f.left": "c2f.in.act",
        "c2f.right": "c2f.in.act",
        "c2f.add": "c2f.concat",
        "sppf.pool1": "sppf.in.act",
        "sppf.pool2": "sppf.in.act",
        "up": "sppf.out.act",
    }


def test_a_float_layer_between_int8_layers_ends_and_begins_8_bit(silu):
    placement = place_qdq(silu, all_at(silu, INT8, c2f_a=FP32), ORT_CPU)
    readers = readers_of(placement)
    assert "c2f.a" not in placement.layers
    assert readers["c2f.right", 8] is None
    assert not {("c2f.a.bn.out", 8), ("c2f.a.sigmoid", 8)} & set(readers)
    assert readers["c2f.a.act", 8] == {"c2f.b"}


def test_fp16_and_fp32_layers_are_the_same_to_the_placement(silu):
    assert place_qdq(silu, all_at(silu, INT8, c2f_a=FP16), ORT_CPU) == place_qdq(
        silu, all_at(silu, INT8, c2f_a=FP32), ORT_CPU
    )


def test_an_int16_layer_behind_an_int8_one_gets_16_bits_where_its_input_is_made_in_float(silu):
    placement = place_qdq(silu, all_at(silu, INT8, c2f_b=INT16), ORT_CPU)
    readers = readers_of(placement)
    # Nobody wants c2f.a.act in 8 bit, so SiLU runs in float behind the convolution's own 8-bit output.
    assert readers["c2f.a.bn.out", 8] is None
    assert not {("c2f.a.sigmoid", 8), ("c2f.a.act", 8)} & set(readers)
    assert readers["c2f.a.act", 16] == {"c2f.b"}


def test_an_int16_layer_reads_8_bits_where_an_int8_layer_wants_the_same_tensor_so(silu):
    heads = {f"head.{branch}.0.0": INT8 for branch in ("box", "score")}
    precisions = all_at(silu, FP32) | {"down8": INT8, "head.keypoints.0.0": INT16} | heads
    readers = readers_of(place_qdq(silu, precisions, ORT_CPU))
    assert readers["down8.act", 8] is None
    assert ("down8.act", 16) not in readers


def test_a_float_tensor_can_be_read_at_both_widths(silu):
    precisions = all_at(silu, FP32) | {"head.box.0.0": INT8, "head.keypoints.0.0": INT16}
    readers = readers_of(place_qdq(silu, precisions, ORT_CPU))
    assert readers["down8.act", 8] == {"head.box.0.0"}
    assert readers["down8.act", 16] == {"head.keypoints.0.0"}


def test_a_float_tensor_that_joins_8_bit_ones_is_quantized_for_that_operator_alone(silu):
    readers = readers_of(place_qdq(silu, all_at(silu, INT8, down16=FP32), ORT_CPU))
    # neck16 reads the Concat of up (8 bit) and down16.act (float, also read by down32).
    assert readers["down16.act", 8] >= {"up.concat.node", "down32"}
    assert readers["up.concat", 8] is None


def test_a_shape_operator_gives_the_range_of_what_goes_in_although_that_stays_float(silu):
    tensors = place_qdq(silu, all_at(silu, FP32) | {"c2f.a": INT8}, ORT_CPU).tensors
    assert ("c2f.in.act", 8) not in tensors
    assert tensors["c2f.right", 8].range_of == "c2f.in.act"
    assert tensors["c2f.right", 8].readers == {"c2f.a"}


def test_an_operator_with_a_constant_operand_stays_in_float(parse_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,4,4] images) => (float[1,1,4,4] y)
            <float[1,1,1,1] w = {2.0}, float[1] half = {0.5}> {
                a = Conv(images, w)
                b = Mul(a, half)
                y = Conv(b, w)
            }"""
        )
    )
    first, second = (layer.name for layer in find_layers(model))
    readers = readers_of(place_qdq(model, {first: INT8, second: INT8}, EVEN_LAST))
    assert readers == {("images", 8): {first}, ("a", 8): None, ("b", 8): {second}}


def test_a_plan_without_integer_layers_places_nothing(silu):
    for precision in (FP32, FP16):
        placement = place_qdq(silu, all_at(silu, precision), ORT_CPU)
        assert not placement.tensors and not placement.layers
    assert not place_qdq(silu, {}, ORT_CPU).tensors


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_tensorrt_quantizes_layer_inputs_and_residual_adds_only(tiny_pose_model, activation):
    model = prepare_network(tiny_pose_model(activation))
    readers = readers_of(place_qdq(model, all_at(model, INT8), TENSORRT))
    expected = {}
    for layer in find_layers(model):
        expected.setdefault((layer.input, 8), set()).add(layer.name)
    for tensor in ("c2f.right", "c2f.b.act"):
        expected.setdefault((tensor, 8), set()).add("c2f.add.node")
    assert readers == expected


def test_tensorrt_puts_nothing_between_a_convolution_and_its_activation(silu):
    tensors = {tensor for tensor, _ in place_qdq(silu, all_at(silu, INT8), TENSORRT).tensors}
    assert not tensors & {layer.output for layer in find_layers(silu)}
    assert not any(tensor.endswith(".sigmoid") for tensor in tensors)


def test_tensorrt_leaves_a_residual_add_between_float_layers_alone(silu):
    far = dict.fromkeys(("c2f.in", "c2f.a", "c2f.b", "c2f.out", "down4"), FP32)
    readers = readers_of(place_qdq(silu, all_at(silu, INT8) | far, TENSORRT))
    assert not any("c2f.add.node" in names for names in readers.values())


def test_the_network_is_not_changed(silu):
    before = silu.SerializeToString(deterministic=True)
    place_qdq(silu, all_at(silu, INT8), ORT_CPU)
    assert silu.SerializeToString(deterministic=True) == before
