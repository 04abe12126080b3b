"""Which 8-bit tensors take their ranges together, and how a range is made wider or narrower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qtoolkit.graph.activations import is_unit_interval, silu_around
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.placement import Placement
from qtoolkit.numerics.affine import IntegerGrid

__all__ = ["Range", "RangeGroup", "range_groups", "stretched"]

Range = tuple[float, float]


@dataclass(frozen=True)
class RangeGroup:
    """8-bit Q/DQ pairs that are searched together: those of one range, or of the two around a SiLU.

    ``pairs`` (tensor, 8) in graph order, ``sources_of_pairs`` the tensor whose range each uses; ``ranges`` are those to
    start from, of each range that may change: a Sigmoid's 0 … 1 between the two of a SiLU is a pair, and stays.
    """

    pairs: tuple[tuple[str, int], ...]
    sources_of_pairs: tuple[str, ...]
    ranges: Mapping[str, Range]

    @property
    def sources(self) -> tuple[str, ...]:
        """Tensors whose ranges may change."""
        return tuple(self.ranges)


def range_groups(
    structure: Structure, placement: Placement, range_of: Callable[[str, int], Range]
) -> tuple[RangeGroup, ...]:
    """The groups of ``placement``, in graph order of their first pairs; ``range_of`` gives (source, 8) → range.

    The two ranges of a SiLU are one group where each is its tensors' own; a range that a Concat lends is that Concat's.
    """
    view, by_source = structure.view, dict[str, list[tuple[str, int]]]()
    for key, pair in placement.tensors.items():
        if pair.bit_width == 8:
            by_source.setdefault(pair.range_of, []).append(key)
    members: dict[str, list[str]] = {}
    for source in by_source:
        around = silu_around(view, source)
        together = around is not None and set(around) <= by_source.keys()
        members.setdefault(around[0] if together and around is not None else source, []).append(source)
    groups = [_group(structure, by_source, leader, sources, range_of) for leader, sources in members.items()]
    return tuple(group for group in groups if group.ranges)


def _group(
    structure: Structure,
    by_source: Mapping[str, Sequence[tuple[str, int]]],
    leader: str,
    sources: Sequence[str],
    range_of: Callable[[str, int], Range],
) -> RangeGroup:
    free = [source for source in sources if not is_unit_interval(structure.view, source)]
    inside = [tensor for tensor in _sigmoid_of(structure, leader) if tensor in by_source] if len(free) > 1 else []
    pairs = [(key, source) for source in (*free, *inside) for key in by_source[source]]
    ranges = {source: range_of(source, 8) for source in free}
    return RangeGroup(tuple(key for key, _ in pairs), tuple(source for _, source in pairs), ranges)


def _sigmoid_of(structure: Structure, before: str) -> Sequence[str]:
    readers = structure.view.consumers(before)
    return [str(node.output[0]) for node in readers if node.op_type == "Sigmoid"]


def stretched(bounds: Range, factor: float, grid: IntegerGrid) -> Range:
    """``bounds`` with a step ``factor`` times as wide on ``grid``.

    On a symmetric grid, or where both sides reach about as far, both move; else the nearer end stays, as the dip of a
    SiLU needs it, and the farther one moves until the width is ``factor`` times the old one.
    """
    lo, hi = min(bounds[0], 0.0), max(bounds[1], 0.0)
    if grid.symmetric or 2.0 * min(-lo, hi) >= max(-lo, hi):
        return lo * factor, hi * factor
    return (lo, lo + factor * (hi - lo)) if hi > -lo else (hi - factor * (hi - lo), hi)
