"""Time of each layer, from the runtime's own profile: what keeping it at 16 bit adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import onnx
from numpy.typing import NDArray

from qtoolkit.backends.onnxruntime_cpu import per_node_times
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["NodeTimes", "UniformTimes", "layer_times_ms", "uniform_times"]

NodeTimes = Callable[[onnx.ModelProto], Mapping[str, float]]
"""Network → milliseconds per node of it, as a runtime's own profiler tells them."""


def layer_times_ms(
    model: onnx.ModelProto,
    layers: frozenset[str],
    feed: Mapping[str, NDArray[Any]],
    threads: int | None = None,
    node_times: NodeTimes | None = None,
) -> dict[str, float]:
    """Milliseconds of each layer with all that follows it up to the next layer (activation, Q/DQ, Casts, Concat …).

    ``layers`` are the layers' names in ``model``, which may be quantized. What stands before the first layer counts to
    it. ``node_times`` measures the nodes; None: ONNX Runtime does, with ``threads``.
    """
    measured = per_node_times(model, feed, threads=threads) if node_times is None else node_times(model)
    owners = _owners(GraphView(model), layers)
    times = dict.fromkeys(layers, 0.0)
    for node, ms in measured.items():
        if (owner := owners.get(node)) is not None:
            times[owner] += ms
    return times


class UniformTimes(NamedTuple):
    """Milliseconds of each layer in two networks, all of it at 16 bit (``wide``) and at 8 (``narrow``).

    Conversions at the borders of a mix are in neither: see ``border_times``.
    """

    wide: Mapping[str, float]
    narrow: Mapping[str, float]

    @property
    def added_ms(self) -> dict[str, float]:
        """What each layer takes longer at 16 bit than at 8; negative where 16 bit is the faster one."""
        return {name: wide - self.narrow[name] for name, wide in self.wide.items()}


def uniform_times(
    wide_model: onnx.ModelProto,
    int8_model: onnx.ModelProto,
    layers: frozenset[str],
    feed: Mapping[str, NDArray[Any]],
    threads: int | None = None,
    node_times: NodeTimes | None = None,
) -> UniformTimes:
    """Profile both networks, as ``layer_times_ms`` does one."""
    return UniformTimes(*(layer_times_ms(each, layers, feed, threads, node_times) for each in (wide_model, int8_model)))


def _owners(view: GraphView, layers: frozenset[str]) -> dict[str, str]:
    """Node → the layer it is counted to: itself, else the layer its first data input comes from.

    What works on constants alone (the DQ of a weight, which the runtime runs each time) is counted to its reader's.
    """
    owners: dict[str, str] = {}
    first = next((node_name(node) for node in view.nodes if node_name(node) in layers), None)
    of_constants: set[str] = set()
    for node in view.nodes:
        name = node_name(node)
        if name in layers:
            owners[name] = name
            continue
        data = [tensor for tensor in node.input if tensor not in of_constants and not view.is_constant(tensor)]
        if not any(data):
            of_constants.update(node.output)
            continue
        producers = [view.producer(tensor) for tensor in data]
        known = [owners[node_name(each)] for each in producers if each is not None and node_name(each) in owners]
        if known or first is not None:
            owners[name] = known[0] if known else str(first)
    for node in reversed(view.nodes):
        readers = [node_name(each) for tensor in node.output for each in view.consumers(tensor)]
        owned = [owners[reader] for reader in readers if reader in owners]
        if owned:
            owners.setdefault(node_name(node), owned[0])
    return owners
