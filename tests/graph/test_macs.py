from __future__ import annotations

import onnx
import pytest

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.load import load_network, prepare_network
from qtoolkit.graph.macs import bops, count_macs

# Each count is worked out by hand from the formula in its comment.
CASES = {
    # 1·8·4·4 outputs · 3·3·3 weights each
    "conv": ("float[1,3,4,4] x, float[8,3,3,3] w", "float[1,8,4,4]", "Conv<pads=[1,1,1,1]>(x, w)", 128 * 27),
    # 1·8·2·2 outputs · 3·3·3
    "conv, stride 2": (
        "float[1,3,4,4] x, float[8,3,3,3] w",
        "float[1,8,2,2]",
        "Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)",
        32 * 27,
    ),
    # 1·6·4·4 outputs · 1·3·3: one input channel per group
    "depthwise conv": (
        "float[1,6,4,4] x, float[6,1,3,3] w",
        "float[1,6,4,4]",
        "Conv<pads=[1,1,1,1], group=6>(x, w)",
        96 * 9,
    ),
    # 1·8·4·4 inputs · 5·2·2, whatever the stride
    "transposed conv": (
        "float[1,8,4,4] x, float[8,5,2,2] w",
        "float[1,5,8,8]",
        "ConvTranspose<strides=[2,2]>(x, w)",
        128 * 20,
    ),
    # 1·8·4·4 inputs · 3·2·2: six output channels in two groups
    "grouped transposed conv": (
        "float[1,8,4,4] x, float[8,3,2,2] w",
        "float[1,6,8,8]",
        "ConvTranspose<strides=[2,2], group=2>(x, w)",
        128 * 12,
    ),
    # 2·5 outputs · 7
    "gemm": ("float[2,7] x, float[7,5] w", "float[2,5]", "Gemm(x, w)", 70),
    "gemm, both transposed": ("float[7,2] x, float[5,7] w", "float[2,5]", "Gemm<transA=1, transB=1>(x, w)", 70),
    # 3·4·5 outputs · 6
    "matmul of activations": ("float[3,4,6] x, float[3,6,5] w", "float[3,4,5]", "MatMul(x, w)", 360),
    "nothing to multiply": ("float[1,3,4,4] x, float[1,3,4,4] w", "float[1,3,4,4]", "Mul(x, w)", 0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_macs_of_one_node(parse_network, case):
    inputs, output, call, expected = case
    count = count_macs(parse_network(f"net ({inputs}) => ({output} y) {{ [node] y = {call} }}"))
    assert count.total == expected
    assert dict(count.per_node) == ({"node": expected} if expected else {})


def test_total_is_the_sum_of_the_nodes(tiny_pose_model):
    count = count_macs(prepare_network(tiny_pose_model()))
    assert count.total == sum(count.per_node.values())
    # stem: 8·32·32 outputs of 3·3·3; the DFL expectation counts too: 4·84 outputs of 16 bins
    assert count.per_node["stem"] == 8 * 32 * 32 * 27
    assert count.per_node["dfl.conv.node"] == 4 * 84 * 16
    assert count.gmacs == pytest.approx(count.total / 1e9)


def test_an_unknown_shape_is_an_error_that_names_the_node(parse_network):
    model = parse_network("net (float[1,3,H,W] x, float[8,3,3,3] w) => (float[1,8,h,w] y) { [stem] y = Conv(x, w) }")
    with pytest.raises(ModelFileError, match=r"node 'stem' \(Conv\) cannot be counted"):
        count_macs(model)


def test_bops_by_hand():
    assert bops(1000, 8, 8) == 64_000
    assert bops(1000, 8, 16) == 128_000
    assert bops(3, 32, 32) == 3072


@pytest.mark.real
def test_yolov8n_pose_at_640_has_its_published_flops(real_data):
    model = load_network(real_data / "models" / "yolov8n-pose.onnx")
    assert isinstance(model, onnx.ModelProto)
    assert 2 * count_macs(model).gmacs == pytest.approx(9.2, rel=0.02)
