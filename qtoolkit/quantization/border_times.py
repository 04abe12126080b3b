"""What the borders between 8 and 16 bit cost in time: measured in networks in which neighbours differ.

A layer at 16 bit whose output is read at 8 needs it rounded; one at 8 bit that is read at 16 needs it brought back.
Neither is there in a uniform network, so both are taken from two mixed ones. Layers get one of two colours, each the
other one of most layers it reads; in one network the first colour is at 16 bit, in the other the second::

    border[i] = time of layer i in the mixed network − its time in the uniform one of its precision

``layer_times_ms`` counts what follows a layer to it, conversions included. A layer all of whose readers have its own
colour was not seen at a border: it takes the median of the others' milliseconds per element.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from statistics import median
from typing import Any, NamedTuple

import onnx
from numpy.typing import NDArray

from qtoolkit.graph.layers import Layer, find_layers, layer_neighbours
from qtoolkit.graph.view import GraphView
from qtoolkit.quantization.layer_times import UniformTimes, layer_times_ms
from qtoolkit.quantization.selection import Conversion

__all__ = ["BorderTimes", "border_times", "two_colours"]


class BorderTimes(NamedTuple):
    """Milliseconds by layer: ``narrowing`` where it is at 16 bit and read at 8, ``widening`` the other way round."""

    narrowing: Mapping[str, float]
    widening: Mapping[str, float]

    def conversions(self, model: onnx.ModelProto) -> tuple[Conversion, ...]:
        """The same as terms of the integer program."""
        found = []
        for name, readers in layer_neighbours(model).items():
            if readers and name in self.narrowing:
                found.append(Conversion(name, readers, self.narrowing[name], "narrowed"))
                found.append(Conversion(name, readers, self.widening[name], "widened"))
        return tuple(found)


def border_times(
    model: onnx.ModelProto,
    network_with: Callable[[Collection[str]], onnx.ModelProto],
    uniform: UniformTimes,
    feed: Mapping[str, NDArray[Any]],
    threads: int | None = None,
) -> BorderTimes:
    """Times at the borders of every layer of the float ``model`` that another one reads, measured on ONNX Runtime.

    ``network_with(wide)`` makes the network in which those layers are at 16 bit and the others at 8; ``uniform`` are
    the times in those of one precision.
    """
    layers, neighbours = find_layers(model), layer_neighbours(model)
    names = frozenset(layer.name for layer in layers)
    second = {name for name, colour in two_colours([layer.name for layer in layers], neighbours).items() if colour}

    def times(wide: Collection[str]) -> dict[str, float]:
        return layer_times_ms(network_with(wide), names, feed, threads)

    mixes = [(chosen, times(chosen)) for chosen in (second, names - second)]
    narrowing: dict[str, float] = {}
    widening: dict[str, float] = {}
    for name in names:
        for chosen, found in mixes:
            if not any((reader in chosen) != (name in chosen) for reader in neighbours.get(name, ())):
                continue
            if name in chosen:
                narrowing[name] = max(0.0, found[name] - uniform.wide[name])
            else:
                widening[name] = max(0.0, found[name] - uniform.narrow[name])
    sizes = _elements(model, layers)
    read = [layer.name for layer in layers if neighbours.get(layer.name)]
    return BorderTimes(_completed(narrowing, read, sizes), _completed(widening, read, sizes))


def two_colours(names: Sequence[str], neighbours: Mapping[str, Collection[str]]) -> dict[str, bool]:
    """A colour for each layer, in topological order: the other one of most layers that it reads."""
    votes: dict[str, Counter[bool]] = {name: Counter() for name in names}
    colours: dict[str, bool] = {}
    for name in names:
        colours[name] = votes[name][False] > votes[name][True]
        for reader in neighbours.get(name, ()):
            votes[reader][colours[name]] += 1
    return colours


def _elements(model: onnx.ModelProto, layers: Sequence[Layer]) -> dict[str, int]:
    view = GraphView(model)
    return {layer.name: prod(side or 1 for side in view.shape(layer.output) or ()) for layer in layers}


def _completed(times: Mapping[str, float], names: Sequence[str], sizes: Mapping[str, int]) -> dict[str, float]:
    rate = median(ms / sizes[name] for name, ms in times.items()) if times else 0.0
    return {name: times.get(name, rate * sizes[name]) for name in names}
