"""Which tensors go from unit to unit, in the float network and in its quantized form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtoolkit.graph.layers import Structure
from qtoolkit.graph.placement import Placement
from qtoolkit.graph.qdq import read_names
from qtoolkit.graph.units import Unit
from qtoolkit.graph.view import node_name

__all__ = ["UnitTraffic", "unit_traffic"]


@dataclass(frozen=True)
class UnitTraffic:
    """Of one ``unit``: what it reads and what is read behind it, each as tensor of the quantized graph → that of the
    float graph. The pairs behind the tensors that a unit makes belong to it."""

    unit: Unit
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def unit_traffic(structure: Structure, placement: Placement, units: Sequence[Unit]) -> tuple[UnitTraffic, ...]:
    """The traffic of ``units``, in order. What last layers put out is taken as it is, in front of any pair."""
    return tuple(
        UnitTraffic(unit, _read_inside(structure, placement, unit), _read_behind(structure, placement, unit))
        for unit in units
    )


def _read_inside(structure: Structure, placement: Placement, unit: Unit) -> dict[str, str]:
    inside = set(unit.nodes)
    readers = {tensor: [name for name in _readers(structure, tensor) if name in inside] for tensor in unit.inputs}
    return _reversed(read_names(placement, readers))


def _read_behind(structure: Structure, placement: Placement, unit: Unit) -> dict[str, str]:
    others = structure.tail | set(unit.nodes)
    readers = {tensor: [name for name in _readers(structure, tensor) if name not in others] for tensor in unit.outputs}
    last = {structure.layers[name].output for name in structure.last}
    return _reversed(read_names(placement, readers)) | {tensor: tensor for tensor in unit.outputs if tensor in last}


def _readers(structure: Structure, tensor: str) -> list[str]:
    return [node_name(node) for node in structure.view.consumers(tensor)]


def _reversed(names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {name: tensor for tensor, each in names.items() for name in each}
