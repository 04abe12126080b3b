from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qtoolkit.graph.channel_groups import PINNED, channel_groups, scalable_layers
from qtoolkit.graph.view import GraphView

WEIGHTS = {"w": (4, 3), "v": (4, 4), "u": (2, 2), "d": (4, 1), "e": (3, 4)}
INTEGERS = {"halves": [2, 2], "one": [1], "two": [2], "four": [4], "minus": [-1], "low": [-9]}


@pytest.fixture
def groups(parse_network):
    """``groups("t = Relu(x)")`` → the groups of a network in which a convolution makes x and one reads t."""

    def make(text: str, reads: str = "t", last: str = "v"):
        model = parse_network(
            f"""net (float[1,3,4,4] images) => (float[1,3,a,b] y)
            {{
              x = Conv(images, w, bias)
              {text}
              z = Conv({reads}, {last})
              y = Conv(z, e{"2" if last == "u" else ""})
            }}"""
        )
        values = {name: np.ones((*shape, 1, 1), np.float32) for name, shape in (WEIGHTS | {"e2": (3, 2)}).items()}
        values |= {name: np.array(value, np.int64) for name, value in INTEGERS.items()}
        values |= {"bias": np.ones(4, np.float32), "constant": np.ones((1, 1, 1, 1), np.float32)}
        values["twice"] = np.array([1, 1, 2, 2], np.float32)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
        return channel_groups(GraphView(onnx.shape_inference.infer_shapes(model, strict_mode=True)))

    return make


@pytest.mark.parametrize("text", [
    "t = Relu(x)", "t = LeakyRelu<alpha = 0.1>(x)", "t = Identity(x)", "t = MaxPool<kernel_shape = [1, 1]>(x)",
    "t = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)", "t = GlobalAveragePool(x)",
    "t = Resize(x, , twice)",
])  # fmt: skip
def test_what_hands_channels_on(groups, text):
    found = groups(text)
    assert found["t"].tolist() == found["x"].tolist()
    assert len({PINNED, *found["t"]}) == 5


@pytest.mark.parametrize("text", [
    "t = Sigmoid(x)", "s = Sigmoid(x)\nt = Mul(x, s)", "t = Softmax<axis = 1>(x)", "t = Add(x, constant)",
    "t = Transpose<perm = [0, 1, 3, 2]>(x)", "t = Clip(x)",
    "t = Resize<coordinate_transformation_mode = \"tf_crop_and_resize\">(x, , twice)",
])  # fmt: skip
def test_what_pins_them(groups, text):
    found = groups(text)
    assert set(found["x"]) == {PINNED}
    assert PINNED not in found["z"]  # behind the next convolution they are free again


def test_one_reader_that_cannot_take_it_is_enough(groups):
    found = groups("t = Relu(x)\ns = Sigmoid(t)")
    assert set(found["x"]) == {PINNED}


def test_the_network_own_tensors_stay(groups):
    found = groups("t = Relu(x)")
    assert {*found["images"], *found["y"]} == {PINNED}


def test_a_sum_joins_both(groups):
    found = groups("a = Conv(x, v)\nt = Add(a, x)")
    assert found["a"].tolist() == found["x"].tolist() == found["t"].tolist()
    assert PINNED not in found["a"]


def test_convolutions_join_nothing(groups):
    found = groups("t = Conv<group = 4>(x, d)")
    assert not set(found["x"]) & set(found["t"])


def test_parts_of_a_tensor(groups):
    found = groups("p, q = Split<axis = 1>(x, halves)\nt = Concat<axis = 1>(q, p)")
    x = found["x"].tolist()
    assert (found["p"].tolist(), found["q"].tolist(), found["t"].tolist()) == (x[:2], x[2:], x[2:] + x[:2])


@pytest.mark.parametrize(("text", "expected", "last"), [
    ("t = Slice(x, two, four, one)", slice(2, 4), "u"),
    ("t = Slice(x, minus, low, one, minus)", slice(None, None, -1), "v"),
    ("t = Slice(x, one, four, two)", slice(None), "v"),
])  # fmt: skip
def test_slices(groups, text, expected, last):
    found = groups(text, last=last)
    assert found["t"].tolist() == found["x"][expected].tolist()
    assert PINNED not in found["x"]


def test_a_concat_of_other_axes_pins(groups):
    assert set(groups("t = Concat<axis = 2>(x, x)")["x"]) == {PINNED}


def test_a_convolution_with_a_computed_weight_is_not_scaled(parse_network):
    model = parse_network("net (float[1,3,4,4] images, float[4,3,1,1] w) => (float[1,4,4,4] y) { y = Conv(images, w) }")
    assert scalable_layers(GraphView(model)) == ()
