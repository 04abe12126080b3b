"""What an engine really runs: its layers with their types, from TensorRT's inspector, told in names of the ONNX graph.

Reads the JSON of TensorRT 8.5 to 11.4: types stand in ``Format/Datatype`` ("… Int8 format", "… FP16 format", "Half",
"Float") or, from TensorRT 10.x on in some layers, in ``Datatype``; ONNX nodes in ``Metadata`` ("[ONNX Layer: NAME]",
from 8.6 on), else in the layer's own name, where fused ones are joined by " + ", " || ", or "PWN(A, B)".
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtoolkit.backends.tensorrt_messages import message_recorder
from qtoolkit.errors import QtoolError

__all__ = ["EngineLayer", "Int8Check", "check_int8", "engine_layers", "inspect_engine", "inspect_plan", "onnx_nodes_in"]

_METADATA = re.compile(r"\[ONNX Layer: (.*?)\]\x1e?(?=\x1e|\[ONNX Layer: |$)")
_SPLIT = re.compile(r" \+ | \|\| |, |\x1e")
_DRESSING = re.compile(r"^(?:PWN\()+|\)+$")
_REFORMAT = "Reformatting CopyNode"
_INT8 = re.compile(r"\bint8\b", re.IGNORECASE)
_HALF = re.compile(r"\b(fp16|half|float16)\b", re.IGNORECASE)
_FLOAT = re.compile(r"\b(fp32|float|float32|tf32)\b", re.IGNORECASE)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine. Types are ``int8``, ``fp16``, ``fp32``, or what TensorRT says else, one a tensor."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: str | None
    onnx_nodes: tuple[str, ...]


@dataclass(frozen=True)
class Int8Check:
    """``running``: layers that should run in int8 and do; ``not_running``: those that do not → what the inspector
    tells of why."""

    running: tuple[str, ...]
    not_running: Mapping[str, str]


def inspect_engine(trt: Any, engine: Any, onnx_nodes: Collection[str]) -> tuple[EngineLayer, ...]:
    """The layers of an open engine that was built with detailed verbosity."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return engine_layers(text, onnx_nodes)


def inspect_plan(trt: Any, plan: bytes, onnx_nodes: Collection[str]) -> tuple[EngineLayer, ...]:
    """The same of an engine's bytes. Call it only where a driver answers, on the GPU that it was built for."""
    engine = trt.Runtime(message_recorder(trt)).deserialize_cuda_engine(plan)
    if engine is None:
        raise _no_details("an engine that TensorRT cannot load")
    return inspect_engine(trt, engine, onnx_nodes)


def engine_layers(text: str, onnx_nodes: Collection[str]) -> tuple[EngineLayer, ...]:
    """The layers in the inspector's JSON; ``onnx_nodes`` are the names of the network's nodes.

    Raises QtoolError where the text holds no details.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise _no_details(str(error)) from error
    if layers and not isinstance(layers[0], dict):
        raise _no_details("names only")
    known = frozenset(onnx_nodes)
    return tuple(_layer(each, known) for each in layers)


def onnx_nodes_in(name: str, metadata: str, known: Collection[str]) -> tuple[str, ...]:
    """The ONNX nodes that a layer of an engine computes, from its metadata or else its name; only ``known`` ones."""
    told = [found for found in _METADATA.findall(metadata) if found in known]
    if not told and not name.startswith(_REFORMAT):
        parts = [_DRESSING.sub("", part.strip()) for part in _SPLIT.split(name)]
        told = [part for part in parts if part in known]
    return tuple(dict.fromkeys(told))


def check_int8(layers: Sequence[EngineLayer], expected: Collection[str]) -> Int8Check:
    """Which of the ONNX layers ``expected`` run on int8 inputs in the engine, and why the others do not."""
    running: list[str] = []
    failing: dict[str, str] = {}
    for name in expected:
        mine = [layer for layer in layers if name in layer.onnx_nodes and layer.kind != "Reformat"]
        if any("int8" in layer.inputs for layer in mine):
            running.append(name)
        elif not mine:
            failing[name] = "no layer of the engine names it"
        else:
            failing[name] = _reason(mine[0])
    return Int8Check(tuple(running), failing)


def _reason(layer: EngineLayer) -> str:
    types = ", ".join(dict.fromkeys(layer.inputs)) or "unknown types"
    weights = f", weights {layer.weights}" if layer.weights else ""
    fused = f"fused as {layer.name!r}, " if len(layer.onnx_nodes) > 1 else ""
    return f"{fused}{layer.kind} on {types}{weights}"


def _layer(record: Mapping[str, Any], known: frozenset[str]) -> EngineLayer:
    name, metadata = str(record.get("Name", "")), str(record.get("Metadata", ""))
    weights = record.get("Weights")
    return EngineLayer(
        name=name,
        kind=str(record.get("LayerType", "")),
        inputs=_types(record.get("Inputs", ())),
        outputs=_types(record.get("Outputs", ())),
        weights=_type(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else None,
        onnx_nodes=onnx_nodes_in(name, metadata, known),
    )


def _types(tensors: Any) -> tuple[str, ...]:
    return tuple(
        _type(" ".join(str(each.get(key, "")) for key in ("Datatype", "DataType", "Format/Datatype", "Format")))
        for each in tensors
        if isinstance(each, Mapping)
    )


def _type(text: str) -> str:
    for kind, pattern in (("int8", _INT8), ("fp16", _HALF), ("fp32", _FLOAT)):
        if pattern.search(text):
            return kind
    return " ".join(text.split()) or "unknown"


def _no_details(found: str) -> QtoolError:
    return QtoolError(
        "the engine's inspector tells no layers",
        expected="an engine built with detailed profiling verbosity, as `qtool build` does",
        found=found,
        do="build the engine again with `qtool build`",
    )
