from __future__ import annotations

import pytest

from qtoolkit.backends.targets import TARGETS, find_target
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.neighbours import wide_implications

FORCING = find_target("tidl")


@pytest.fixture(scope="module")
def pose(tiny_pose_model):
    return prepare_network(tiny_pose_model())


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.concat_forces_inputs])
def test_targets_without_the_rule_force_nothing(pose, name):
    assert wide_implications(pose, find_target(name)) == ()


def test_a_layer_behind_a_concat_forces_the_layers_in_front_of_it(pose):
    pairs = wide_implications(pose, FORCING)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {
        ("c2f.out", "c2f.in"),
        ("c2f.out", "c2f.b"),
        ("sppf.out", "sppf.in"),
        ("neck16", "sppf.out"),
        ("neck16", "down16"),
    }


def test_concats_behind_one_another_pass_the_demand_on(parse_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,4,4] images) => (float[1,1,4,4] y)
            <float[1,1,1,1] w = {2.0}, float[1,4,1,1] w4 = {1.0, 2.0, 3.0, 4.0}> {
                [a] a = Conv(images, w)
                [b] b = Conv(images, w)
                [c] c = Conv(images, w)
                ab = Concat<axis = 1>(a, b)
                abc = Concat<axis = 1>(ab, c, images)
                r = Relu(abc)
                [y] y = Conv(r, w4)
            }"""
        )
    )
    assert set(wide_implications(model, FORCING)) == {("y", "a"), ("y", "b"), ("y", "c")}


def test_a_layer_that_reads_no_concat_forces_nothing(parse_network):
    model = prepare_network(
        parse_network(
            """net (float[1,1,4,4] images) => (float[1,1,4,4] y) <float[1,1,1,1] w = {2.0}> {
                [a] a = Conv(images, w)
                b = Relu(a)
                [y] y = Conv(b, w)
            }"""
        )
    )
    assert wide_implications(model, FORCING) == ()
