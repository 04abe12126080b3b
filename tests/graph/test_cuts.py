from __future__ import annotations

from qtoolkit.graph.cuts import find_blocks
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.load import prepare_network


def blocks_of(model, fewest, ends=None):
    structure = Structure.of(model)
    every = {output for node in structure.view.nodes for output in node.output}
    return structure, find_blocks(structure, every if ends is None else ends, fewest)


def test_every_block_hangs_on_its_end_alone(tiny_pose_model):
    model = prepare_network(tiny_pose_model("silu"))
    structure, blocks = blocks_of(model, 1)
    assert blocks
    view, seen = structure.view, set()
    for block in blocks:
        seen |= block.tensors
        crossing = {
            name
            for node in view.nodes
            for name in node.input
            if name in seen and not any(output in seen for output in node.output)
        }
        assert crossing == {block.end}


def test_blocks_follow_each_other_and_share_nothing(tiny_pose_model):
    structure, blocks = blocks_of(prepare_network(tiny_pose_model("relu")), 1)
    layers = [name for block in blocks for name in block.layers]
    assert layers == list(structure.layers)[: len(layers)]
    assert sum(len(block.tensors) for block in blocks) == len(frozenset().union(*(block.tensors for block in blocks)))


def test_small_blocks_are_joined_and_ends_are_those_allowed(tiny_pose_model):
    model = prepare_network(tiny_pose_model("relu"))
    _, single = blocks_of(model, 1)
    _, joined = blocks_of(model, 2)
    assert all(len(block.layers) >= 2 for block in joined)
    assert len(joined) < len(single)
    assert blocks_of(model, 1, ends=())[1] == ()
