"""What one kernel of a network asks of a GPU: multiply-adds, elements moved, precision."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qtoolkit.artifacts.plan import Precision

__all__ = ["CONVERSION", "LayerWork", "NetworkWork"]

CONVERSION = "Convert"
"""``op`` of a kernel that only changes the precision of a tensor."""


@dataclass(frozen=True)
class LayerWork:
    """One kernel, for the batch in the graph.

    ``macs`` multiply-adds; ``read`` and ``written`` elements of activations, ``weights`` elements of weight and bias.
    ``channels`` is the smaller of the input and the output channels of one group, 0 where there is no weight.
    ``written_as`` is the precision of what it writes, where that is not ``precision``.
    """

    name: str
    op: str
    macs: int
    read: int
    written: int
    weights: int = 0
    channels: int = 0
    precision: Precision = Precision.FP32
    written_as: Precision | None = None

    @property
    def moved_bytes(self) -> int:
        """Bytes read and written, weights included."""
        written = (self.written_as or self.precision).activation_bits
        return (self.precision.activation_bits * (self.read + self.weights) + written * self.written) // 8

    def at(self, precision: Precision) -> LayerWork:
        """The same kernel wholly in ``precision``."""
        return replace(self, precision=precision, written_as=None)


@dataclass(frozen=True)
class NetworkWork:
    """Kernels in the order of the graph; ``decodes``: whether decode arithmetic follows the last layers.

    ``layers`` are the names of the kernels that are layers of the network. ``batch`` is that of the graph.
    """

    kernels: tuple[LayerWork, ...]
    decodes: bool
    layers: frozenset[str] = frozenset()
    batch: int = 1

    @property
    def gmacs(self) -> float:
        """10⁹ multiply-adds of all kernels, for one image."""
        return sum(each.macs for each in self.kernels) / 1e9 / self.batch

    def at(self, precision: Precision) -> NetworkWork:
        """The network wholly in ``precision``: nothing is converted."""
        kernels = tuple(each.at(precision) for each in self.kernels if each.op != CONVERSION)
        return replace(self, kernels=kernels)

    def without(self, precision: Precision, instead: Precision) -> NetworkWork:
        """``instead`` in place of one precision; conversions between the two fall away."""
        kernels = []
        for each in self.kernels:
            written = each.written_as or each.precision
            new = replace(
                each,
                precision=instead if each.precision is precision else each.precision,
                written_as=instead if written is precision else written,
            )
            if new.op != CONVERSION or new.written_as is not new.precision:
                kernels.append(new)
        return replace(self, kernels=tuple(kernels))
