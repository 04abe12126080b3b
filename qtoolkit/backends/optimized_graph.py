"""Tells which node of a network a node of ONNX Runtime's rewritten graph came from.

The runtime renames as it rewrites: ``_token_7`` makes a name unique, ``/duplicated`` marks a copied DequantizeLinear,
``/QuickGeluFusion/`` a fusion, and a blocked-layout convolution is named after its *output tensor* plus ``_nchwc``.
Where it has no fp16 kernel, ``InsertedPrecisionFreeCast_`` before the name of an fp16 tensor is its float32 copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["Convolutions", "NodeOrigins", "named_copy", "sort_convolutions", "times_by_origin"]

_RUNTIME_MARK = re.compile(r"^InsertedPrecisionFreeCast_|(_token_\d+|_nchwc|/duplicated|/\w+Fusion/?|_quant)$")
_INTEGER_CONVOLUTIONS = frozenset({"QLinearConv", "ConvInteger"})
_FLOAT_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "NhwcConv", "ConvTranspose"})
_LAYOUT_CHANGES = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})
_CONVOLUTIONS = _INTEGER_CONVOLUTIONS | _FLOAT_CONVOLUTIONS
_EVENT_SUFFIX = "_kernel_time"


class Convolutions(NamedTuple):
    """Names of a network's convolutions by the arithmetic they run in, each in the order of the runtime."""

    int8: tuple[str, ...]
    floating: tuple[str, ...]


class NodeOrigins:
    """Looks up the node of ``model`` that a node of the rewritten graph stands for. Every node must have a name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        nodes = model.graph.node
        self._nodes = {node.name: node for node in nodes}
        self._producer = {tensor: node for node in nodes for tensor in node.output}
        self._by_constant = self._convolutions_by_constant(model)

    def origin(self, node: onnx.NodeProto) -> str | None:
        """Name of the node of the network, None where the runtime added ``node`` by itself."""
        if node.op_type in _CONVOLUTIONS:
            return self._convolution_origin(node)
        stem = self._stem(node.name, self._nodes)
        if stem is not None or node.op_type in _LAYOUT_CHANGES:
            # A layout change gives its output the name of the tensor it restores; it is not that tensor's producer.
            return stem
        tensors = [self._stem(node.name, self._producer), *node.output]
        return next((self._producer[each].name for each in tensors if each in self._producer), None)

    def _convolution_origin(self, node: onnx.NodeProto) -> str | None:
        stem = self._stem(node.name, self._nodes)
        if stem is not None and self._nodes[stem].op_type in _CONVOLUTIONS:
            return stem
        owners = {self._by_constant[name] for name in node.input if name in self._by_constant}
        if len(owners) == 1:
            return owners.pop()
        tensor = self._stem(node.name, self._producer)
        candidates = ([tensor] if tensor is not None else []) + list(node.output)
        return next((found for each in candidates if (found := self._convolution_above(each)) is not None), None)

    def _convolution_above(self, tensor: str) -> str | None:
        """Nearest convolution that ``tensor`` comes from through nodes a convolution can absorb, None if not one."""
        frontier, seen = [tensor], set[str]()
        while frontier:
            nodes = [self._producer[each] for each in frontier if each in self._producer]
            found = {node.name for node in nodes if node.op_type in _CONVOLUTIONS}
            if found:
                return found.pop() if len(found) == 1 else None
            seen.update(frontier)
            frontier = [each for node in nodes for each in node.input if each not in seen]
        return None

    @staticmethod
    def _stem(name: str, known: Mapping[str, Any]) -> str | None:
        """``name`` itself where known, else what stays of it when the runtime's marks are taken off one by one."""
        while name not in known:
            shorter = _RUNTIME_MARK.sub("", name, count=1)
            if shorter == name:
                return None
            name = shorter
        return name

    def _convolutions_by_constant(self, model: onnx.ModelProto) -> dict[str, str]:
        """Weight or bias initializer → its convolution, for those that belong to one convolution only."""
        initializers = {each.name for each in model.graph.initializer}
        owners: dict[str, set[str]] = {}
        for node in model.graph.node:
            if node.op_type in _CONVOLUTIONS:
                for operand in node.input[1:]:
                    owners.setdefault(self._source_constant(operand, initializers), set()).add(node.name)
        return {constant: names.pop() for constant, names in owners.items() if len(names) == 1 and constant}

    def _source_constant(self, tensor: str, initializers: set[str]) -> str:
        """Initializer behind a weight, through its Q and DQ; empty where the operand is not constant."""
        while tensor not in initializers:
            node = self._producer.get(tensor)
            if node is None or node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
                return ""
            tensor = node.input[0]
        return tensor


def named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which every unnamed or doubly named node is called after its first output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken: set[str] = set()
    for node in copy.graph.node:
        if not node.name or node.name in taken:
            node.name = next((tensor for tensor in node.output if tensor), node.op_type)
        taken.add(node.name)
    return copy


def sort_convolutions(model: onnx.ModelProto, optimized: onnx.ModelProto) -> Convolutions:
    """Convolutions of ``optimized`` under their names in ``model``, split into integer and float ones."""
    origins = NodeOrigins(model)
    found: dict[bool, list[str]] = {True: [], False: []}
    for node in optimized.graph.node:
        if node.op_type in _CONVOLUTIONS:
            found[node.op_type in _INTEGER_CONVOLUTIONS].append(origins.origin(node) or node.name)
    return Convolutions(int8=tuple(found[True]), floating=tuple(found[False]))


def times_by_origin(
    events: Sequence[Mapping[str, Any]], model: onnx.ModelProto, optimized: onnx.ModelProto, *, skip_runs: int
) -> dict[str, float]:
    """Milliseconds per inference of each node of ``model``, slowest first, from a profile of ONNX Runtime.

    ``events``: Chrome trace events, times in microseconds; one ``model_run`` of category ``Session`` per inference
    encloses one ``NAME_kernel_time`` of category ``Node`` per node. The first ``skip_runs`` inferences are left out;
    the figure is the median over the others. Nodes the runtime added are summed under ``runtime:OpType``.
    """
    starts = np.sort([event["ts"] for event in events if event["name"] == "model_run"])
    labels = _labels(model, optimized)
    total_us: dict[str, NDArray[np.float64]] = {}
    for event in _kernel_events(events):
        name = event["name"].removesuffix(_EVENT_SUFFIX)
        label = labels.get(name, f"runtime:{event['args'].get('op_name', name)}")
        run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if run >= 0:
            total_us.setdefault(label, np.zeros(len(starts)))[run] += event["dur"]
    medians = {label: float(np.median(per_run[skip_runs:])) / 1e3 for label, per_run in total_us.items()}
    return dict(sorted(medians.items(), key=lambda pair: -pair[1]))


def _labels(model: onnx.ModelProto, optimized: onnx.ModelProto) -> dict[str, str]:
    origins = NodeOrigins(model)
    return {node.name: origins.origin(node) or f"runtime:{node.op_type}" for node in optimized.graph.node}


def _kernel_events(events: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return (event for event in events if event["cat"] == "Node" and event["name"].endswith(_EVENT_SUFFIX))
