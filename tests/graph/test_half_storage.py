from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from qtoolkit.bench.cost import network_cost
from qtoolkit.graph.half_storage import FEWEST_ELEMENTS, store_half
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import load_network, prepare_network

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def network(tiny_pose_model):
    return prepare_network(tiny_pose_model("silu"))


@pytest.fixture(scope="module")
def stored(network):
    return store_half(network)


@pytest.fixture(scope="module")
def loaded(stored, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "stored.onnx"
    onnx.save(stored, path)
    return load_network(path)


def two_layers(parse_network, **weights):
    """Convolutions ``a`` and ``b`` of 16 by 16 channels; ``weights`` replace theirs (seeded noise), by name."""
    text = """net (float[1,16,8,8] images) => (float[1,16,8,8] y)
    <float[16,16,1,1] a = {0}, float[16,16,1,1] b = {0}, float[16] bias = {0}> {
        [first] x = Conv(images, a, bias)
        [second] y = Conv(x, b)
    }"""
    random = np.random.default_rng(0)
    values = {name: random.normal(0, 0.3, (16, 16, 1, 1)) for name in ("a", "b")} | weights
    values["bias"] = random.normal(0, 0.3, 16)
    model = parse_network(text.replace("{0}", "{0.0}"))
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()
    )
    return model


class TestFile:
    def test_it_is_valid_and_about_half(self, network, stored):
        onnx.checker.check_model(stored, full_check=True)
        assert stored.ByteSize() < 0.62 * network.ByteSize()
        assert network_cost(stored).weights_bytes < 0.52 * network_cost(network).weights_bytes
        assert network_cost(stored).params_m == network_cost(network).params_m
        assert network_cost(stored).gmacs == network_cost(network).gmacs

    def test_large_weights_are_fp16_and_cast_under_their_old_names(self, network, stored):
        halves = {tensor.name for tensor in stored.graph.initializer if tensor.data_type == FLOAT16}
        before = constants(network)
        weights = {f"{name}/half" for name in before if name.endswith(".weight") and before[name].size >= 256}
        assert halves == weights
        casts = {node.output[0]: node.input[0] for node in stored.graph.node if node.name.endswith("/half/Cast")}
        assert casts == {name.removesuffix("/half"): name for name in weights}
        assert [node for node in stored.graph.node if node.op_type != "Cast"] == list(network.graph.node)

    def test_the_network_it_was_made_of_is_left_alone(self, network):
        before = network.SerializeToString(deterministic=True)
        once = store_half(network)
        assert network.SerializeToString(deterministic=True) == before
        assert store_half(network) == once
        assert store_half(once) == once

    def test_anchors_in_the_decode_tail_stay_exact(self, tiny_pose_model):
        network = prepare_network(tiny_pose_model("silu", input_size=256))
        anchors = constants(network)["anchors"]
        assert anchors.size >= FEWEST_ELEMENTS
        assert np.array_equal(constants(store_half(network))["anchors"], anchors)


class TestRules:
    def test_what_fp16_cannot_hold_stays_float32(self, parse_network):
        large = np.full((16, 16, 1, 1), 0.5)
        large[3, 2] = 65520.0
        small = np.full((16, 16, 1, 1), 2.0**-15)
        for odd in (large, small, np.full((16, 16, 1, 1), np.nan)):
            found = constants(store_half(two_layers(parse_network, a=odd)))
            assert set(found) == {"a", "b/half", "bias"}
            assert np.array_equal(found["a"], odd.astype(np.float32), equal_nan=True)

    def test_the_bounds_themselves_are_stored(self, parse_network):
        edge = np.full((16, 16, 1, 1), 65504.0)
        stored = store_half(two_layers(parse_network, a=edge, b=np.full((16, 16, 1, 1), 2.0**-14)))
        assert np.array_equal(constants(stored)["a/half"].astype(np.float64), edge)
        assert set(constants(stored)) == {"a/half", "b/half", "bias"}

    def test_a_weight_that_is_an_input_or_an_output_too_stays(self, parse_network):
        listed = two_layers(parse_network)
        listed.graph.input.append(onnx.helper.make_tensor_value_info("a", FLOAT, (16, 16, 1, 1)))
        given = two_layers(parse_network)
        given.graph.output.append(onnx.helper.make_tensor_value_info("a", FLOAT, (16, 16, 1, 1)))
        for model in (listed, given):
            assert set(constants(store_half(model))) == {"a", "b/half", "bias"}

    def test_a_weight_that_two_read_is_cast_once(self, parse_network):
        model = two_layers(parse_network)
        model.graph.node[1].input[1] = "a"
        stored = store_half(model)
        assert [node.op_type for node in stored.graph.node] == ["Cast", "Conv", "Conv"]


class TestLoading:
    def test_it_is_the_float_network_with_rounded_weights(self, network, loaded):
        assert [node.SerializeToString() for node in loaded.graph.node] == [
            node.SerializeToString() for node in network.graph.node
        ]
        before, after = constants(network), constants(loaded)
        assert after.keys() == before.keys()
        for name, value in before.items():
            rounded = value.astype(np.float16).astype(np.float32)
            assert after[name].dtype == value.dtype
            assert np.array_equal(after[name], value) or np.array_equal(after[name], rounded)
        assert find_layers(loaded) == find_layers(network)

    def test_a_weight_beyond_the_limit_of_folding_is_folded_too(self, parse_network, tmp_path):
        """4.5 MB in float32: a result of that size that grows would stay a node, were it no Cast."""
        model = parse_network(
            """net (float[1,1,1,1] images) => (float[1,1125000] y) <float[1,1125000] w = {0.0}> {
                [flat] flat = Flatten <axis = 1> (images)
                [gemm] y = Gemm(flat, w)
            }"""
        )
        values = np.random.default_rng(0).normal(0, 1, (1, 1125000)).astype(np.float32)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
        onnx.save(store_half(prepare_network(model)), tmp_path / "wide.onnx")
        assert (tmp_path / "wide.onnx").stat().st_size < 2.3e6
        loaded = load_network(tmp_path / "wide.onnx")
        assert [node.op_type for node in loaded.graph.node] == ["Flatten", "Gemm"]

    def test_parity_with_onnx_runtime(self, network, stored, loaded, run_network, image):
        feeds = {"images": image(64)}
        float32, half, again = (run_network(model, feeds)["output0"] for model in (network, stored, loaded))
        # The same arithmetic on the same weights, whoever casts them.
        assert np.array_equal(half, again)
        blocks = {"boxes": slice(0, 4), "score": slice(4, 5), "keypoints": slice(5, None)}
        for rows in blocks.values():
            scale = np.abs(float32[:, rows]).max()
            assert 0 < np.abs(half[:, rows] - float32[:, rows]).max() < 5e-3 * scale
