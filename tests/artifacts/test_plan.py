from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.artifacts.plan import Precision, PrecisionPlan, uniform_plan
from qtoolkit.errors import PlanFileError

# YAML folds line separators; no tool writes them, or control characters, into names.
printable = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
names = st.text(printable, min_size=1, max_size=20)
WRITTEN = """\
version: 1
model_sha256: abc
target: ort-cpu
made_by: hand
layers:
  /model.0/conv/Conv: int8
  /model.1/conv/Conv: fp16
"""


def read_text(tmp_path, text):
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    return PrecisionPlan.read(path)


@pytest.mark.parametrize(
    ("precision", "weight_bits", "activation_bits", "is_16bit", "is_integer"),
    [
        (Precision.FP32, 32, 32, False, False),
        (Precision.FP16, 16, 16, True, False),
        (Precision.INT16, 8, 16, True, True),
        (Precision.INT16W16, 16, 16, True, True),
        (Precision.INT8, 8, 8, False, True),
    ],
    ids=lambda value: value.value if isinstance(value, Precision) else None,
)
def test_bits_of_each_precision(precision, weight_bits, activation_bits, is_16bit, is_integer):
    assert (precision.weight_bits, precision.activation_bits) == (weight_bits, activation_bits)
    assert (precision.is_16bit, precision.is_integer) == (is_16bit, is_integer)


@given(
    layers=st.dictionaries(names, st.sampled_from(Precision), min_size=1, max_size=8),
    made_by=st.text(printable, max_size=40),
)
def test_a_plan_is_read_as_it_was_written(tmp_path_factory, layers, made_by):
    path = tmp_path_factory.getbasetemp() / "any-plan.yaml"
    plan = PrecisionPlan(model_sha256="ab", target="ort-cpu", made_by=made_by, layers=layers)
    plan.write(path)
    again = PrecisionPlan.read(path)
    assert again == plan
    assert list(again.layers) == list(layers)


@pytest.mark.parametrize("name", ["on", "null", "1", "1e3", "2024-01-01", "a: b", "# a", "/x/Conv", "ü"])
def test_names_that_yaml_would_take_for_something_else(tmp_path, name):
    uniform_plan([name], Precision.INT8).write(tmp_path / "plan.yaml")
    assert list(PrecisionPlan.read(tmp_path / "plan.yaml").layers) == [name]


def test_the_file_says_how_to_use_it_and_gives_a_line_to_each_layer(tmp_path):
    plan = read_text(tmp_path, WRITTEN)
    plan.write(tmp_path / "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    assert "--plan mine.yaml" in text
    assert "fp32, fp16, int16, int16w16, int8" in text
    assert text.endswith(WRITTEN)


def test_an_edit_by_hand_changes_one_layer(tmp_path):
    plan = read_text(tmp_path, WRITTEN.replace("/model.0/conv/Conv: int8", "/model.0/conv/Conv: fp32  # the image"))
    assert plan.layers == {"/model.0/conv/Conv": Precision.FP32, "/model.1/conv/Conv": Precision.FP16}


def test_layers_alone_are_enough(tmp_path):
    plan = read_text(tmp_path, "layers: {a: int8}")
    assert (plan.version, plan.target, plan.layers) == (1, "", {"a": Precision.INT8})


@pytest.mark.parametrize(
    ("text", "place", "found"),
    [
        (WRITTEN.replace("fp16", "fp8"), "layers./model.1/conv/Conv", "'fp8'"),
        (WRITTEN + "speed: high\n", "speed", "'high'"),
        (WRITTEN.replace("version: 1", "version: 2"), "version", "2"),
        ("layers: {}", "layers", "{}"),
        ("layers: [a, b]", "layers", "['a', 'b']"),
        ("target: ort-cpu", "layers", "Field required"),
        ("", "the file", "None"),
        ("just text", "the file", "'just text'"),
    ],
    ids=[
        *("unknown precision", "unknown key", "unknown version", "no layer"),
        *("a list", "layers missing", "empty file", "no mapping"),
    ],
)
def test_a_wrong_plan_names_the_place_and_what_is_there(tmp_path, text, place, found):
    with pytest.raises(PlanFileError) as caught:
        read_text(tmp_path, text)
    assert f"is not valid at {place}\n" in str(caught.value)
    assert found in caught.value.found
    assert "fp32, fp16, int16, int16w16, int8" in caught.value.expected
    assert "--mixed" in caught.value.do
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("text", ["layers: {a: int8", "layers: !!python/object:os.system {}"], ids=["broken", "a tag"])
def test_what_is_not_plain_yaml_cannot_be_read(tmp_path, text):
    with pytest.raises(PlanFileError, match="cannot be read"):
        read_text(tmp_path, text)


def test_a_missing_plan_and_a_binary_one_cannot_be_read(tmp_path):
    with pytest.raises(PlanFileError, match=r"none\.yaml cannot be read"):
        PrecisionPlan.read(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\x93\xff\x00")
    with pytest.raises(PlanFileError, match="binary cannot be read"):
        PrecisionPlan.read(tmp_path / "binary")


def test_a_plan_must_name_exactly_the_layers_of_the_network():
    plan = uniform_plan(["a", "b", "c"], Precision.INT8)
    plan.check_layers(["c", "b", "a"])
    with pytest.raises(PlanFileError) as caught:
        plan.check_layers(["a", "d", "e"])
    assert str(caught.value).splitlines() == [
        "the plan does not fit the network",
        "  expected: one precision for each of its 3 layers",
        "  found: 2 unknown and 2 missing layers; not in the network: b, c; not in the plan: d, e",
        "  do: make the plan anew with: qtool sensitivity MODEL --mixed 0.3 --out DIR",
    ]


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (["a"], "1 unknown and 0 missing layers; not in the network: b"),
        ("abc", "0 unknown and 1 missing layers; not in the plan: c"),
    ],
    ids=["one too many", "one too few"],
)
def test_only_what_is_wrong_is_listed(layers, found):
    with pytest.raises(PlanFileError) as caught:
        uniform_plan(["a", "b"], Precision.INT8).check_layers(layers)
    assert caught.value.found == found


def test_long_lists_of_unknown_layers_are_cut():
    with pytest.raises(PlanFileError) as caught:
        uniform_plan([f"l{i}" for i in range(9)], Precision.INT8).check_layers(["l0"])
    assert caught.value.found == "8 unknown and 0 missing layers; not in the network: l1, l2, l3, l4, l5"


def test_a_uniform_plan_carries_its_facts():
    plan = uniform_plan(["b", "a"], Precision.FP16, target="tensorrt", model_sha256="ab", made_by="test")
    assert list(plan.layers.items()) == [("b", Precision.FP16), ("a", Precision.FP16)]
    assert (plan.target, plan.model_sha256, plan.made_by) == ("tensorrt", "ab", "test")


def test_layers_by_precision_in_the_plans_order():
    kinds = {"a": "int8", "b": "int16w16", "c": "fp16", "d": "fp32", "e": "int16"}
    plan = PrecisionPlan(layers={name: Precision(kind) for name, kind in kinds.items()})
    assert plan.layers_16bit == ("b", "c", "e")
    assert plan.layers_at(Precision.FP32, Precision.INT8) == ("a", "d")


def test_changes_make_a_new_plan():
    plan = uniform_plan(["a", "b"], Precision.INT8, made_by="before")
    changed = plan.with_layers({"b": Precision.FP16})
    assert changed.layers == {"a": Precision.INT8, "b": Precision.FP16}
    assert changed.made_by == "before"
    assert plan.with_layers({}, made_by="after").made_by == "after"
    assert plan.layers["b"] is Precision.INT8
