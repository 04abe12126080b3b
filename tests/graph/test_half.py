from __future__ import annotations

import numpy as np
import onnx
import pytest

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.half import FP16_LIMIT, convert_half
from qtoolkit.graph.layers import decode_tail, find_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.numerics.similarity import sqnr_db

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16

CHAIN = """net (float[1,1,4,4] images) => (float[1,1,4,4] y)
<float[1,1,1,1] w1 = {2.0}, float[1] b1 = {0.5}, float[1,1,1,1] w2 = {3.0}, float[1,1,1,1] w3 = {4.0}> {
    [a] a = Conv(images, w1, b1)
    [r] r = Relu(a)
    [b] b = Conv(r, w2)
    [s] s = Relu(b)
    [c] y = Conv(s, w3)
}"""


@pytest.fixture(scope="module")
def chain(parse_network):
    return prepare_network(parse_network(CHAIN))


def casts(model):
    return [(node.input[0], node.output[0], node.attribute[0].i) for node in model.graph.node if node.op_type == "Cast"]


def inferred_types(model):
    view = GraphView(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True))
    return {output: view.elem_type(output) for node in view.nodes for output in node.output}


def test_casts_stand_at_the_borders_only(chain):
    half = convert_half(chain, ["a", "b"])
    onnx.checker.check_model(half, full_check=True)
    assert casts(half) == [("images", "images/fp16", FLOAT16), ("s/fp16", "s", FLOAT)]
    types = inferred_types(half)
    assert [types[name] for name in ("a/fp16", "r/fp16", "b/fp16", "s/fp16", "s", "y")] == [FLOAT16] * 4 + [FLOAT] * 2


def test_a_float_layer_in_the_middle_has_a_cast_on_either_side(chain):
    half = convert_half(chain, ["a", "c"])
    assert casts(half) == [
        ("images", "images/fp16", FLOAT16),
        ("r/fp16", "r", FLOAT),
        ("s", "s/fp16", FLOAT16),
        ("y/fp16", "y", FLOAT),
    ]


def test_constants_of_fp16_layers_are_stored_as_fp16_and_the_others_as_they_were(chain):
    constants = {tensor.name: tensor.data_type for tensor in convert_half(chain, ["a"]).graph.initializer}
    assert constants == {"w1/fp16": FLOAT16, "b1/fp16": FLOAT16, "w2": FLOAT, "w3": FLOAT}


def test_a_tensor_is_cast_once_however_many_read_it(parse_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,4,4] images) => (float[1,1,4,4] y, float[1,1,4,4] z) <float[1,1,1,1] w = {2.0}> {
                [a] a = Conv(images, w)
                [b] b = Conv(images, w)
                [y] y = Conv(a, w)
                [z] z = Conv(a, w)
                [c] c = Abs(b)
            }"""
        )
    )
    half = convert_half(model, ["a", "b"])
    assert [source for source, _, _ in casts(half)] == ["images", "a/fp16"]
    # One copy in fp16 for the two, and the float weight of the layers behind them.
    assert sorted(tensor.name for tensor in half.graph.initializer) == ["w", "w/fp16"]


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_the_whole_pose_network_in_fp16_is_near_the_float_one(tiny_pose_model, run_network, image, activation):
    model = prepare_network(tiny_pose_model(activation))
    half = convert_half(model, [layer.name for layer in find_layers(model)])
    onnx.checker.check_model(half, full_check=True)
    feeds = {"images": image(64)}
    expected, found = run_network(model, feeds)["output0"], run_network(half, feeds)["output0"]
    assert found.dtype == np.float32
    assert 45 < sqnr_db(expected, found) < 120


def test_only_image_and_last_layers_have_casts_and_the_tail_computes_in_float(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    half = convert_half(model, [layer.name for layer in find_layers(model)])
    heads = {f"head.{branch}.{level}.1.out" for branch in ("box", "score", "keypoints") for level in range(3)}
    assert {output for _, output, _ in casts(half)} == {"images/fp16"} | heads
    tail, types = decode_tail(model), inferred_types(half)
    read_by_tail = {name for node in half.graph.node if node_name(node) in tail for name in node.input}
    assert not {name for name in read_by_tail if types.get(name) == FLOAT16}


def test_the_scales_of_a_resize_stay_float32(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    half = convert_half(model, [layer.name for layer in find_layers(model)])
    resize = next(node for node in half.graph.node if node.op_type == "Resize")
    view = GraphView(half)
    assert list(resize.input[1:]) == ["", "up.scales"]
    assert view.constant("up.scales").dtype == np.float32
    assert resize.input[0].endswith("/fp16")


def test_names_inputs_and_outputs_stay_and_the_float_network_too(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    before = model.SerializeToString(deterministic=True)
    half = convert_half(model, ["stem", "c2f.b", "head.box.0.1"])
    assert list(half.graph.input) == list(model.graph.input)
    assert list(half.graph.output) == list(model.graph.output)
    names = [node_name(node) for node in half.graph.node if node.op_type != "Cast"]
    assert names == [node_name(node) for node in model.graph.node if node.op_type != "Cast"]
    assert model.SerializeToString(deterministic=True) == before


def test_without_layers_the_network_is_given_back(chain):
    assert convert_half(chain, []) is chain


def test_an_operator_with_one_float_input_stays_in_float(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    types = inferred_types(convert_half(model, ["c2f.b"]))
    # c2f.add adds the skip, which is float.
    assert types["c2f.b.act/fp16"] == FLOAT16
    assert types["c2f.add"] == FLOAT


def test_a_named_operator_does_not_follow(chain):
    half = convert_half(chain, ["a", "b"], keep_float=["r"])
    types = inferred_types(half)
    assert types["r"] == FLOAT and "r/fp16" in types
    assert types["s/fp16"] == FLOAT16


def test_a_clip_without_an_upper_bound_stays_in_float(parse_network, run_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,1,2] images) => (float[1,1,1,2] y)
            <float[1,1,1,1] w = {2.0}, float low = {0.0}, float high = {3.4e38}, float six = {6.0}> {
                [a] a = Conv(images, w)
                [open] open = Clip(a, low, high)
                [b] b = Conv(open, w)
                [six] limited = Clip(b, low, six)
                [c] y = Conv(limited, w)
            }"""
        )
    )
    half = convert_half(model, ["a", "b", "c"])
    types = inferred_types(half)
    assert types["open"] == FLOAT
    assert types["limited/fp16"] == FLOAT16
    x = np.array([[[[-1.0, 1.0]]]], np.float32)
    np.testing.assert_array_equal(run_network(half, {"images": x})["y"], [[[[0.0, 8.0]]]])


def test_a_constant_of_a_layer_beyond_fp16_is_an_error(parse_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,4,4] images) => (float[1,1,4,4] y) <float[1,1,1,1] big = {70000.0}> {
                [a] y = Conv(images, big)
            }"""
        )
    )
    with pytest.raises(ModelFileError, match=r"constant 'big' does not fit fp16\n  expected: .*65504\n  found: 70000"):
        convert_half(model, ["a"])


def test_the_limit_is_numpys():
    assert float(np.finfo(np.float16).max) == FP16_LIMIT


def test_a_tensor_that_only_the_body_of_an_if_reads_is_there_in_float(parse_network, run_network):
    model = parse_network(
        """net (float[1,1,2,2] images, bool more) => (float[1,1,2,2] y)
        <float[1,1,1,1] w = {1.0}, float[1] k = {10.0}> {
            [a] a = Conv(images, w)
            [if] y = If(more) <
                then_branch = larger () => (float[1,1,2,2] t) { t = Add(a, k) },
                else_branch = same () => (float[1,1,2,2] e) { e = Identity(a) }
            >
        }"""
    )
    half = convert_half(onnx.shape_inference.infer_shapes(model), ["a"])
    onnx.checker.check_model(half, full_check=True)
    x = np.full((1, 1, 2, 2), 7.0, np.float32)
    np.testing.assert_array_equal(run_network(half, {"images": x, "more": np.array(True)})["y"], x + 10)
