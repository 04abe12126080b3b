from __future__ import annotations

import json

import pytest

from qtoolkit.backends.tensorrt_inspector import check_int8, engine_layers, onnx_nodes_in
from qtoolkit.errors import QtoolError

NODES = ("/model.0/conv/Conv", "/model.0/act/Sigmoid", "/model.0/act/Mul", "/model.1/conv/Conv", "/model.2/Concat")


def layer(name, kind="CaskConvolution", given="Row major Int8 format", metadata=None, key="Format/Datatype", **more):
    record = {"Name": name, "LayerType": kind, "Inputs": [{"Name": "x", key: given}], "Outputs": [], **more}
    return record if metadata is None else record | {"Metadata": metadata}


def read(*layers):
    return engine_layers(json.dumps({"Layers": layers}), NODES)


@pytest.mark.parametrize(
    ("name", "metadata", "expected"),
    [
        ("/model.0/conv/Conv", "", [0]),
        ("weight + QuantizeLinear_4 + /model.0/conv/Conv", "", [0]),
        ("PWN(PWN(/model.0/act/Sigmoid), /model.0/act/Mul)", "", [1, 2]),
        ("/model.0/conv/Conv || /model.1/conv/Conv", "", [0, 3]),
        ("__myl_ConvMulSig_0x12", "[ONNX Layer: /model.0/conv/Conv]\x1e[ONNX Layer: /model.0/act/Mul]", [0, 2]),
        ("__myl_Conv", "[ONNX Layer: /model.1/conv/Conv]", [3]),
        ("Reformatting CopyNode for Input Tensor 0 to /model.0/conv/Conv + /model.0/act/Mul", "", []),
    ],
    ids=["plain", "with its weight", "pointwise", "side by side", "metadata of several", "metadata", "reformat"],
)
def test_onnx_nodes_are_found(name, metadata, expected):
    assert onnx_nodes_in(name, metadata, NODES) == tuple(NODES[i] for i in expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Half", "fp16"),
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("N/A due to dynamic shapes", "N/A due to dynamic shapes"),
        ("", "unknown"),
    ],
)
def test_types_are_read(text, expected):
    assert read(layer(NODES[0], given=text))[0].inputs == (expected,)
    assert read(layer(NODES[0], given=text, key="Datatype"))[0].inputs == (expected,)


def test_layers_that_do_not_run_in_int8_are_listed_with_the_reason():
    layers = read(
        layer(NODES[0]),
        layer(f"{NODES[3]} + {NODES[2]}", given="Half", Weights={"Type": "Half", "Count": 9}),
        layer(f"Reformatting CopyNode for Input Tensor 0 to {NODES[3]}", "Reformat"),
    )
    check = check_int8(layers, [NODES[0], NODES[3], NODES[4]])
    assert check.running == (NODES[0],)
    assert check.not_running == {
        NODES[3]: f"fused as '{NODES[3]} + {NODES[2]}', CaskConvolution on fp16, weights fp16",
        NODES[4]: "no layer of the engine names it",
    }


@pytest.mark.parametrize("text", ['{"Layers": ["a", "b"]}', "{}", "not JSON"], ids=["names only", "nothing", "text"])
def test_an_engine_without_details_says_so(text):
    with pytest.raises(QtoolError, match="the engine's inspector tells no layers"):
        engine_layers(text, NODES)
