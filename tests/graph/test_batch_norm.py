from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from qtoolkit.graph.batch_norm import fold_batch_norms_

CHANNELS = 4
# Node that makes t with CHANNELS channels, shapes of its constants, shape of t, batch norms that go.
LAYERS = {
    "conv": ("Conv(images, w, b)", {"w": (4, 6, 1, 1), "b": (4,)}, (1, 4, 5, 5), 1),
    "conv without bias": ("Conv(images, w)", {"w": (4, 6, 3, 3)}, (1, 4, 3, 3), 1),
    "grouped conv": ("Conv<group = 2>(images, w, b)", {"w": (4, 3, 1, 1), "b": (4,)}, (1, 4, 5, 5), 1),
    "transposed conv": ("ConvTranspose(images, w, b)", {"w": (6, 4, 2, 2), "b": (4,)}, (1, 4, 6, 6), 1),
    "grouped transposed conv": ("ConvTranspose<group = 2>(images, w)", {"w": (6, 2, 2, 2)}, (1, 4, 6, 6), 1),
    "gemm": ("Gemm(flat, w, b)", {"w": (150, 4), "b": (4,)}, (1, 4), 1),
    "gemm with factors": (
        "Gemm<transB = 1, alpha = 0.5, beta = 3.0>(flat, w, b)",
        {"w": (4, 150), "b": (1, 4)},
        (1, 4),
        1,
    ),
    "gemm with a scalar bias": ("Gemm(flat, w, b)", {"w": (150, 4), "b": ()}, (1, 4), 1),
    "no layer before": ("MaxPool<kernel_shape = [2, 2]>(conv4)", {}, (1, 4, 4, 4), 0),
    "activation between": ("Relu(conv4)", {}, (1, 4, 5, 5), 0),
}


def _network(parse_network, call, shapes, t_shape, *, tail="y = Relu(n)", opset=13):
    output = f"float[{','.join(map(str, t_shape))}]"
    model = parse_network(
        f"""net (float[1,6,5,5] images) => ({output} y) <int64[2] rows = {{1, 150}}>
        {{
          flat = Reshape(images, rows)
          conv4 = Conv(images, w4)
          [layer] t = {call}
          n = BatchNormalization<epsilon = 0.01>(t, gamma, beta, mean, variance)
          {tail}
        }}""",
        opset=opset,
    )
    random = np.random.default_rng(3)
    constants = {"w4": (CHANNELS, 6, 1, 1), **shapes, "gamma": (4,), "beta": (4,), "mean": (4,)}
    for name, shape in constants.items():
        value = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
    variance = random.uniform(0.2, 2, CHANNELS).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(variance, "variance"))
    return model


def _feeds():
    return {"images": np.random.default_rng(5).normal(size=(1, 6, 5, 5)).astype(np.float32)}


@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_the_batch_norm_moves_into_the_layer_and_results_stay(parse_network, run_network, case):
    call, shapes, t_shape, folded = case
    model = _network(parse_network, call, shapes, t_shape)
    before = run_network(model, _feeds())["y"]
    assert fold_batch_norms_(model) == folded
    left = [node.op_type for node in model.graph.node]
    assert ("BatchNormalization" in left) is not bool(folded)
    np.testing.assert_allclose(run_network(model, _feeds())["y"], before, rtol=1e-5, atol=1e-5)


def test_weights_by_hand(parse_network):
    model = parse_network(
        """net (float[1,1,2,2] images) => (float[1,2,2,2] y)
        <float[2,1,1,1] w = {2, 3}, float[2] b = {1, -1}, float[2] gamma = {1, 4}, float[2] beta = {0.5, 0},
         float[2] mean = {1, 2}, float[2] variance = {3, 0}>
        { t = Conv(images, w, b)  y = BatchNormalization<epsilon = 1.0>(t, gamma, beta, mean, variance) }"""
    )
    assert fold_batch_norms_(model) == 1
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # s = 1/√(3+1) = 0.5 and 4/√(0+1) = 4
    np.testing.assert_allclose(constants["w"].ravel(), [1.0, 12.0])
    # (1 − 1)·0.5 + 0.5 and (−1 − 2)·4 + 0
    np.testing.assert_allclose(constants["b"], [0.5, -12.0])
    assert model.graph.node[0].output[0] == "y"


def test_a_layer_with_another_reader_keeps_its_batch_norm(parse_network):
    model = _network(parse_network, *LAYERS["conv"][:3], tail="r = Neg(t)  s = Add(n, r)  y = Relu(s)")
    assert fold_batch_norms_(model) == 0


def test_a_layer_that_makes_a_graph_output_keeps_its_batch_norm(parse_network):
    model = _network(parse_network, *LAYERS["conv"][:3])
    model.graph.output.append(model.graph.output[0])
    model.graph.output[1].name = "t"
    assert fold_batch_norms_(model) == 0


def test_a_batch_norm_in_training_form_stays(parse_network):
    model = _network(parse_network, *LAYERS["conv"][:3], opset=15)
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    norm.attribute.add(name="training_mode", i=1, type=2)
    norm.output.extend(["running_mean", "running_variance"])
    assert fold_batch_norms_(model) == 0


def test_a_shared_weight_is_copied_and_the_other_layer_keeps_its_values(parse_network, run_network):
    tail = "other = Conv(images, w, b)  s = Add(n, other)  y = Relu(s)"
    model = _network(parse_network, *LAYERS["conv"][:3], tail=tail)
    before = run_network(model, _feeds())["y"]
    shared = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "w")
    assert fold_batch_norms_(model) == 1
    after = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "w")
    np.testing.assert_array_equal(after, shared)
    np.testing.assert_allclose(run_network(model, _feeds())["y"], before, rtol=1e-5, atol=1e-5)


def test_two_batch_norms_behind_one_layer_go_one_after_the_other(parse_network, run_network):
    tail = "m = BatchNormalization(n, gamma, beta, mean, variance)  y = Relu(m)"
    model = _network(parse_network, *LAYERS["conv"][:3], tail=tail)
    before = run_network(model, _feeds())["y"]
    assert fold_batch_norms_(model) == 1
    assert fold_batch_norms_(model) == 1
    np.testing.assert_allclose(run_network(model, _feeds())["y"], before, rtol=1e-5, atol=1e-5)
