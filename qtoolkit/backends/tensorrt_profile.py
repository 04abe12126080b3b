"""Time of each layer inside an engine, from TensorRT's own profiler, told in names of the ONNX graph."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qtoolkit.backends.tensorrt_inspector import EngineLayer, onnx_nodes_in

__all__ = ["ENGINE_PREFIX", "median_times", "profile_recorder", "times_by_node"]

ENGINE_PREFIX = "engine:"
"""In front of the name of an engine's layer that computes no node of the ONNX graph, such as a change of layout."""


def profile_recorder(trt: Any) -> Any:
    """An ``IProfiler`` for ``trt`` that appends (layer, milliseconds) to ``times``."""

    class Recorder(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, float(ms)))

    return Recorder()


def median_times(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Engine layer → median of its reported milliseconds."""
    collected: dict[str, list[float]] = {}
    for name, ms in times:
        collected.setdefault(name, []).append(ms)
    return {name: statistics.median(each) for name, each in collected.items()}


def times_by_node(
    times: Mapping[str, float], layers: Iterable[EngineLayer], main_nodes: Collection[str], nodes: Collection[str]
) -> dict[str, float]:
    """Milliseconds per ONNX node, slowest first.

    ``times`` per layer of the engine; ``layers`` those of the inspector, which know more names than the profiler;
    ``main_nodes`` the nodes that a fused layer's time is counted to (the network's layers), ``nodes`` all of them. A
    layer that computes several main nodes at once is shared out evenly; what computes none is under ``engine:NAME``.
    """
    by_name = {layer.name: layer.onnx_nodes for layer in layers}
    found: dict[str, float] = {}
    for name, ms in times.items():
        told = by_name.get(name) or onnx_nodes_in(name, "", nodes)
        owners = [node for node in told if node in main_nodes] or list(told[:1]) or [f"{ENGINE_PREFIX}{name}"]
        for owner in owners:
            found[owner] = found.get(owner, 0.0) + ms / len(owners)
    return dict(sorted(found.items(), key=lambda item: -item[1]))
