from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.graph.identity import remove_identities_

HEAD = "net (float[1,3,4,4] images) => (float[1,3,4,4] y)"
# Body, nodes that stay.
CASES = {
    "between nodes": ("{ a = Relu(images)  b = Identity(a)  y = Neg(b) }", ["Relu", "Neg"]),
    "chain of three": ("{ a = Identity(images)  b = Identity(a)  c = Identity(b)  y = Neg(c) }", ["Neg"]),
    "makes the output": ("{ a = Relu(images)  y = Identity(a) }", ["Relu"]),
    "output read elsewhere": ("{ a = Relu(images)  y = Identity(a)  b = Neg(a)  c = Abs(b) }", ["Relu", "Neg", "Abs"]),
    "input straight to output": ("{ y = Identity(images) }", ["Identity"]),
    "dropout at rest": ("{ a = Dropout(images)  y = Neg(a) }", ["Neg"]),
    "dropout whose mask is read": (
        "{ a, m = Dropout(images)  f = Cast<to=1>(m)  y = Mul(a, f) }",
        ["Dropout", "Cast", "Mul"],
    ),
    "dropout that trains": (
        "<float r = {0.5}, bool t = {1}> { a = Dropout(images, r, t)  y = Neg(a) }",
        ["Dropout", "Neg"],
    ),
    "dropout with its flag off": ("<float r = {0.5}, bool t = {0}> { a = Dropout(images, r, t)  y = Neg(a) }", ["Neg"]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_hands_its_input_on_goes_and_nothing_else(parse_network, case):
    body, left = case
    model = parse_network(f"{HEAD} {body}")
    before = len(model.graph.node)
    assert remove_identities_(model) == before - len(left)
    assert [node.op_type for node in model.graph.node] == left


@pytest.mark.parametrize("name", [name for name in CASES if name != "dropout that trains"])
def test_results_stay_the_same(parse_network, run_network, name):
    model = parse_network(f"{HEAD} {CASES[name][0]}")
    feeds = {"images": np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)}
    before = run_network(model, feeds)["y"]
    remove_identities_(model)
    np.testing.assert_array_equal(run_network(model, feeds)["y"], before)


def test_two_outputs_of_one_tensor_keep_both_names(parse_network):
    model = parse_network(
        "net (float[1,3,4,4] images) => (float[1,3,4,4] y, float[1,3,4,4] z) { y = Relu(images)  z = Identity(y) }"
    )
    assert remove_identities_(model) == 0


def test_a_tensor_that_a_body_reads_keeps_its_identity(parse_network):
    model = parse_network(
        """net (float[1,3,4,4] images, bool flag) => (float[1,3,4,4] y)
        {
          a = Identity(images)
          y = If (flag) <
            then_branch = yes () => (float[1,3,4,4] t) { t = Neg(a) },
            else_branch = no () => (float[1,3,4,4] e) { e = Abs(a) }
          >
        }"""
    )
    assert remove_identities_(model) == 0
