from __future__ import annotations

import pytest

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.placement import place_qdq
from qtoolkit.numerics.affine import IntegerGrid, params_from_range
from qtoolkit.quantization.range_groups import range_groups, stretched

FREE = IntegerGrid(8, signed=False, symmetric=False)
EVEN = IntegerGrid(8, signed=True, symmetric=True)
POWER = IntegerGrid(8, signed=True, symmetric=True, power_of_two=True)


@pytest.fixture
def groups_of(pose):
    def find(target: str):
        structure = Structure.of(pose)
        placement = place_qdq(pose, dict.fromkeys(structure.layers, Precision.INT8), find_target(target), structure)
        return placement, range_groups(structure, placement, lambda tensor, bits: (-1.0, 1.0))

    return find


@pytest.mark.parametrize("target", ["ort-cpu", "tidl", "tensorrt"])
def test_every_range_is_in_one_group(groups_of, target):
    placement, groups = groups_of(target)
    sources = [source for group in groups for source in group.sources]
    ranges = {pair.range_of for pair in placement.tensors.values() if not pair.range_of.endswith(".sigmoid")}
    assert sorted(sources) == sorted(ranges)
    for group in groups:
        for key, source in zip(group.pairs, group.sources_of_pairs, strict=True):
            assert placement.tensors[key].range_of == source


def test_the_two_of_a_silu_with_the_sigmoid_between_them(groups_of):
    group = next(group for group in groups_of("ort-cpu")[1] if "stem.bn.out" in group.sources)
    assert group.sources == ("stem.bn.out", "stem.act")
    assert {tensor for tensor, _ in group.pairs} == {"stem.bn.out", "stem.act", "stem.sigmoid"}


@pytest.mark.parametrize(("bounds", "grid", "factor", "expected"), [
    ((0.0, 10.0), FREE, 0.5, (0.0, 5.0)),
    ((-0.3, 9.7), FREE, 0.5, (-0.3, 4.7)),
    ((-8.0, 2.0), FREE, 0.5, (-3.0, 2.0)),
    ((-6.0, 4.0), FREE, 0.5, (-3.0, 2.0)),
    ((-1.0, 4.0), EVEN, 0.5, (-0.5, 2.0)),
    ((2.0, 4.0), FREE, 2.0, (0.0, 8.0)),
])  # fmt: skip
def test_stretched(bounds, grid, factor, expected):
    assert stretched(bounds, factor, grid) == pytest.approx(expected)


@pytest.mark.parametrize("grid", [FREE, EVEN, POWER])
def test_the_step_is_so_many_times_as_wide(grid):
    before, after = (
        params_from_range(*bounds, grid).scale for bounds in ((-1.0, 7.0), stretched((-1.0, 7.0), 2, grid))
    )
    assert after == pytest.approx(2 * before)
