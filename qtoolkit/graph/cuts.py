"""Blocks of a network between the places where all of it hangs on one tensor."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qtoolkit.graph.layers import Structure
from qtoolkit.graph.view import node_name

__all__ = ["Block", "find_blocks"]


@dataclass(frozen=True)
class Block:
    """The nodes between two single tensors: its ``layers`` in graph order, the ``tensors`` made in it, and its
    ``end``, the tensor through which everything that follows sees it."""

    layers: tuple[str, ...]
    tensors: frozenset[str]
    end: str


def find_blocks(structure: Structure, ends: Collection[str], fewest_layers: int) -> tuple[Block, ...]:
    """Blocks from the input on, each of at least ``fewest_layers`` layers and ending at one of ``ends``.

    Behind the last place where a single tensor carries everything (such as in front of a feature pyramid) there are
    none.
    """
    view = structure.view
    left = {name: len(view.consumer_indices(name)) for name in view.inputs}
    blocks: list[Block] = []
    layers: list[str] = []
    tensors: set[str] = set()
    for index, node in enumerate(view.nodes):
        name = node_name(node)
        if name in structure.tail:
            continue
        if name in structure.layers:
            layers.append(name)
        for read in set(view.reads(index)) & left.keys():
            left[read] -= 1
            if left[read] <= 0:
                del left[read]
        for made in (output for output in node.output if output and not view.is_constant(output)):
            tensors.add(made)
            left[made] = len(view.consumer_indices(made))
        alone = next(iter(left)) if len(left) == 1 else None
        if alone in ends and alone in tensors and len(layers) >= fewest_layers:
            blocks.append(Block(tuple(layers), frozenset(tensors), str(alone)))
            layers, tensors = [], set()
    return tuple(blocks)
