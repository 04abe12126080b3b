from __future__ import annotations

import pytest
from onnx import defs, helper

from qtoolkit.graph.view import GraphView
from qtoolkit.training.onnx_operators import table
from qtoolkit.training.onnx_operators.site import Site, UnsupportedNode
from qtoolkit.training.onnx_operators.table import OPERATORS, build_operator, is_known


def test_no_operator_belongs_to_two_families():
    assert sum(len(family.OPERATORS) for family in table._FAMILIES) == len(OPERATORS)


def test_every_name_is_an_operator_of_onnx():
    standard = {schema.name for schema in defs.get_all_schemas() if schema.domain == ""}
    assert set(OPERATORS) - standard == ({"Swish"} if defs.onnx_opset_version() < 24 else set())


@pytest.mark.parametrize(
    ("op_type", "domain", "known"),
    [
        ("Conv", "", True),
        ("Conv", "ai.onnx", True),
        ("QuantizeLinear", "com.microsoft", True),
        ("Conv", "com.microsoft", False),
        ("NonMaxSuppression", "", False),
    ],
)
def test_operators_are_known_by_name_and_domain(op_type, domain, known):
    assert is_known(helper.make_node(op_type, ["x"], ["y"], domain=domain)) is known


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("NonZeroes(x)", "unknown operator"),
        ('Resize <antialias = 1, mode = "linear"> (x)', "antialias"),
        ('Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x)', "coordinates tf_crop_and_resize"),
        ("LRN <size = 4> (x)", "an even size"),
        ("Unsqueeze (x)", "no axes"),
        ("Cast <to = 8> (x)", "type string"),
        ('ScatterND <reduction = "add"> (x, i, u)', "a reduction"),
        ("DequantizeLinear <block_size = 16> (x, s)", "blocks"),
        ("BatchNormalization <training_mode = 1> (x, s, b, m, v)", "training_mode 1"),
    ],
)
def test_what_a_node_uses_that_is_not_there_is_named(parse_network, node, reason):
    given = ", ".join(f"float[3] {name}" for name in "xiusbmv")
    model = parse_network(f"net ({given}) => (float[3] y) {{ y = {node} }}", opset=18)
    with pytest.raises(UnsupportedNode, match=f"^{reason}$"):
        build_operator(Site(model.graph.node[0], GraphView(model), 18))
