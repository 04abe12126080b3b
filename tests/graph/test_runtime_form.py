from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.backends.targets import TARGETS
from qtoolkit.graph.runtime_form import runtime_form


@pytest.fixture
def network(parse_network):
    """A tail: keypoints get the grid, then the bins of a box are weighed."""
    grid = ", ".join(map(str, np.arange(180, dtype=np.float32)))
    return parse_network(
        f"""net (float[1,90,17,2] keypoints, float[1,16,4,9] bins) => (float[1,90,17,2] y, float[1,16,4,9] p)
        <float[90,1,2] grid = {{{grid}}}> {{
            y = Add(keypoints, grid)
            p = Softmax <axis = 1> (bins)
        }}"""
    )


def test_ort_cpu_gets_what_is_slow_there_written_out(network, run_network):
    changed = runtime_form(network, TARGETS["ort-cpu"], ["y", "p"])
    operators = [node.op_type for node in changed.graph.node]
    assert {"Expand", "Add", "Exp"} <= set(operators) and "Softmax" not in operators
    random = np.random.default_rng(0)
    shapes = {"keypoints": (1, 90, 17, 2), "bins": (1, 16, 4, 9)}
    feeds = {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    expected, found = run_network(network, feeds), run_network(changed, feeds)
    np.testing.assert_array_equal(found["y"], expected["y"])
    np.testing.assert_allclose(found["p"], expected["p"], rtol=2e-6, atol=1e-6)
    # What is not of the tail stays.
    assert runtime_form(network, TARGETS["ort-cpu"], []) is network


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "ort-cpu"])
def test_other_targets_get_the_network_as_it_is(network, name):
    assert runtime_form(network, TARGETS[name], ["y", "p"]) is network
