"""Layers that a target does not let choose their precision freely."""

from __future__ import annotations

import onnx

from qtoolkit.artifacts.target import Target
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["wide_implications"]


def wide_implications(model: onnx.ModelProto, target: Target) -> tuple[tuple[str, str], ...]:
    """Pairs (a, b) of layers: if a is at 16 bit, b must be too.

    Rule ``concat_forces_inputs``: a Concat cannot change precision, so a layer that reads one at 16 bit needs all that
    goes into it at 16 bit: the layers nearest behind its inputs. Concats behind one another pass the demand on. A
    target without such a rule gives no pair.
    """
    if not target.concat_forces_inputs:
        return ()
    view = GraphView(model)
    layers = {layer.name: layer for layer in find_layers(model)}
    pairs: dict[tuple[str, str], None] = {}
    for name, layer in layers.items():
        for source in _layers_behind_concat(view, layer.input, set(layers)):
            if source != name:
                pairs[name, source] = None
    return tuple(pairs)


def _layers_behind_concat(view: GraphView, tensor: str, layers: set[str]) -> list[str]:
    """The layers nearest behind ``tensor`` on paths that pass a Concat."""
    found: dict[str, None] = {}
    pending, seen = [(tensor, False)], set[tuple[str, bool]]()
    while pending:
        current, passed = pending.pop()
        producer = view.producer(current)
        if producer is None or (current, passed) in seen:
            continue
        seen.add((current, passed))
        if node_name(producer) in layers:
            if passed:
                found[node_name(producer)] = None
            continue
        behind = passed or producer.op_type == "Concat"
        pending += [(name, behind) for name in producer.input if name and not view.is_constant(name)]
    return list(found)
