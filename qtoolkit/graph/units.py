"""A network as consecutive connected units: single layers, residual blocks, branches of a head.

Unlike ``cuts.find_blocks`` it leaves no layer out, for a unit may read several tensors, and others may go past it.

1. The nodes in front of the decode tail are cut, in graph order, at the last place before each next layer where at most
   one of the tensors made since the last cut is still read; after ``most_layers`` layers without such a place, anyway.
2. A unit of one layer whose output only the next unit reads joins it where that has several layers, or reads what the
   unit of one layer itself reads (a residual connection).
3. Chains of units that hang on one tensor each are joined up to ``_CHAIN`` layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qtoolkit.graph.layers import Structure
from qtoolkit.graph.view import node_name

__all__ = ["Unit", "find_units"]

_CHAIN = 4


@dataclass(frozen=True)
class Unit:
    """``nodes`` and, among them, ``layers``, by name in graph order; the activation tensors it reads from outside, its
    ``inputs``; those that it makes, its ``tensors``; and the ``outputs``, those of them that are read behind it by
    other units or that last layers put out."""

    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    tensors: tuple[str, ...]
    outputs: tuple[str, ...]


def find_units(structure: Structure, most_layers: int = 8) -> tuple[Unit, ...]:
    """The units of a prepared network, in an order in which each follows those that it reads. Every node in front of
    the decode tail is in exactly one of them."""
    nodes = [
        index
        for index, node in enumerate(structure.view.nodes)
        if node_name(node) not in structure.tail and node.op_type != "Constant"
    ]
    units = [_unit(structure, run) for run in _runs(structure, nodes, most_layers)]
    units = _joined(structure, units, _belongs_to_next, most_layers)
    return tuple(_joined(structure, units, _continues, min(_CHAIN, most_layers)))


def _runs(structure: Structure, nodes: Sequence[int], most_layers: int) -> list[list[int]]:
    """Step 1 of the module's text: runs of node indices."""
    runs: list[list[int]] = []
    start, layers, closed = 0, 0, None
    for position, index in enumerate(nodes):
        is_layer = node_name(structure.view.nodes[index]) in structure.layers
        if is_layer and (closed is not None or layers >= most_layers):
            end = position if closed is None else closed
            runs.append(list(nodes[start:end]))
            start, layers, closed = end, 0, None
        layers += is_layer
        if layers and len(_unit(structure, nodes[start : position + 1]).outputs) <= 1:
            closed = position + 1
        elif is_layer:
            closed = None
    if start < len(nodes):
        runs.append(list(nodes[start:]))
    return runs


def _joined(
    structure: Structure, units: Sequence[Unit], belong: Callable[[Unit, Unit], bool], most_layers: int
) -> list[Unit]:
    """Neighbours that ``belong`` together as one unit, where nobody else reads what the first makes."""
    by_name = {node_name(node): index for index, node in enumerate(structure.view.nodes)}
    joined: list[Unit] = []
    for unit in units:
        before = joined[-1] if joined else None
        if before is not None and len(before.layers) + len(unit.layers) <= most_layers and belong(before, unit):
            both = _unit(structure, [by_name[name] for name in (*before.nodes, *unit.nodes)])
            if set(both.outputs) == set(unit.outputs):
                joined[-1] = both
                continue
        joined.append(unit)
    return joined


def _belongs_to_next(first: Unit, second: Unit) -> bool:
    reads = set(second.inputs)
    residual = not reads.isdisjoint(first.inputs)
    return not reads.isdisjoint(first.outputs) and len(first.layers) == 1 and (len(second.layers) > 1 or residual)


def _continues(first: Unit, second: Unit) -> bool:
    return len(first.outputs) == 1 and first.outputs == second.inputs


def _unit(structure: Structure, nodes: Sequence[int]) -> Unit:
    view, inside = structure.view, set(nodes)
    names = [node_name(view.nodes[index]) for index in nodes]
    made = dict.fromkeys(name for index in nodes for name in view.nodes[index].output if name)
    read = dict.fromkeys(name for index in nodes for name in view.reads(index))
    last = {structure.layers[name].output for name in structure.last}

    def is_read_behind(tensor: str) -> bool:
        readers = set(view.consumer_indices(tensor)) - inside
        return any(node_name(view.nodes[index]) not in structure.tail for index in readers)

    return Unit(
        tuple(names),
        tuple(name for name in names if name in structure.layers),
        tuple(name for name in read if name not in made and not view.is_constant(name)),
        tuple(made),
        tuple(tensor for tensor in made if tensor in last or is_read_behind(tensor)),
    )
