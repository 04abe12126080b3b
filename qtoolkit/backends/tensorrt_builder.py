"""From ONNX to an engine: TensorRT's parser and builder, nothing of running. Works with TensorRT and TensorRT-RTX.

*Weak* typing (TensorRT 8.5 to 10.x): tensors are float32 in the graph, the builder's FP16 and INT8 flags let it choose.
*Strong* typing (10.x, 11, RTX): each tensor is computed in its type in the graph, and there are no such flags.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from qtoolkit.artifacts.files import write_bytes
from qtoolkit.backends.tensorrt_library import can_type_strongly, can_type_weakly
from qtoolkit.backends.tensorrt_messages import Message, message_recorder, problems
from qtoolkit.backends.tensorrt_progress import BuildProgress, heard_of_layers, progress_monitor
from qtoolkit.errors import ModelFileError, UnavailableError, UsageError

__all__ = ["BuildSettings", "BuiltEngine", "ShapeRange", "build_engine"]

_MB = 1 << 20
# Layers without arithmetic of their own, whose precision must not be set.
_NO_PRECISION = ("CONSTANT", "SHAPE", "CAST", "ASSERTION", "CONDITION", "IDENTITY")


@dataclass(frozen=True)
class ShapeRange:
    """Smallest, usual and largest shape of one input: what an engine with free dimensions is made for."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True)
class BuildSettings:
    """strongly_typed   else weakly, by the flags ``fp16`` and ``int8``
    float32_nodes       ONNX nodes that stay in float32 in a weakly typed network, whatever the flags
    workspace_mb        limit of the memory that layers may use while they run, MiB; None: TensorRT's own
    timing_cache        file with the measured times of earlier builds: read, and written again
    shapes              input → its range, for every input with free dimensions
    compute_capabilities  GPUs the engine is for, such as ``8.6``; TensorRT-RTX only, empty: its own choice
    tf32                float32 layers may be computed in TF32 (TensorRT's default)
    optimization_level  0 (built fastest) to 5 (searched longest), from TensorRT 8.6 on; None: its own, 3
    """

    strongly_typed: bool
    fp16: bool = False
    int8: bool = False
    float32_nodes: frozenset[str] = frozenset()
    workspace_mb: int | None = None
    timing_cache: Path | None = None
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = True
    optimization_level: int | None = None


@dataclass(frozen=True, eq=False)
class BuiltEngine:
    """``plan``: the engine's bytes; ``messages``: what TensorRT said, its verbose ones left out."""

    plan: bytes
    messages: tuple[Message, ...]
    layers: int
    parse_s: float
    build_s: float


def build_engine(
    trt: Any,
    model: onnx.ModelProto,
    settings: BuildSettings,
    subject: str,
    progress: BuildProgress = lambda phase, done, total: None,
) -> BuiltEngine:
    """An engine of ``model`` by the library ``trt``; ``subject`` names the network in messages.

    ``progress`` is called with (phase, done, total) where this version tells it; what it raises ends the build.

    Raises ModelFileError where the parser refuses a node or the builder finds no way, UsageError for a dialect or an
    option that this version does not have, UnavailableError where the builder does not start.
    """
    _check_dialect(trt, settings)
    recorder = message_recorder(trt)
    builder = _builder(trt, recorder)
    network = builder.create_network(_network_flags(trt, settings))
    parsed_at = time.monotonic()
    parser = trt.OnnxParser(network, recorder)
    if not parser.parse(model.SerializeToString()):
        raise _parser_error(parser, model, subject)
    parse_s = time.monotonic() - parsed_at
    config = _configured(trt, builder, network, settings)
    if (monitor := progress_monitor(trt, progress)) is not None:
        config.progress_monitor = monitor
    else:
        recorder.hear = heard_of_layers(progress, int(network.num_layers))
    built_at = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    build_s = time.monotonic() - built_at
    if monitor is not None:
        monitor.raise_again()
    if plan is None:
        said = problems(recorder.messages)
        raise ModelFileError(
            f"TensorRT {trt.__version__} cannot build {subject}",
            expected="a network that this version and this GPU support",
            found=said[-1].text[:400] if said else "no reason given",
            do="see what the message names; more --workspace-mb helps where it names memory",
        )
    if settings.timing_cache is not None:
        write_bytes(settings.timing_cache, bytes(config.get_timing_cache().serialize()))
    return BuiltEngine(bytes(plan), tuple(recorder.messages), int(network.num_layers), parse_s, build_s)


def _check_dialect(trt: Any, settings: BuildSettings) -> None:
    if settings.strongly_typed and not can_type_strongly(trt):
        raise UnavailableError(
            f"TensorRT {trt.__version__} does not know strongly typed networks",
            expected="TensorRT 10 or newer",
            found=trt.__version__,
            do="build for --target tensorrt (weakly typed)",
        )
    if not settings.strongly_typed and not can_type_weakly(trt):
        raise UnavailableError(
            f"TensorRT {trt.__version__} does not know weakly typed networks",
            expected="TensorRT 8.5 to 10",
            found=trt.__version__,
            do="build for --target tensorrt-strong",
        )


def _builder(trt: Any, recorder: Any) -> Any:
    try:
        return trt.Builder(recorder)
    # What pybind11 makes of a builder that found no GPU.
    except (TypeError, RuntimeError) as error:
        said = problems(recorder.messages)
        raise UnavailableError(
            f"the builder of TensorRT {trt.__version__} does not start",
            expected="an NVIDIA GPU and a driver that fits this version",
            found=said[-1].text[:200] if said else str(error),
            do="build on the machine that the engine is for; `qtool build --target tensorrt-rtx` needs no GPU",
        ) from error


def _network_flags(trt: Any, settings: BuildSettings) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    flags = 1 << int(kinds.EXPLICIT_BATCH) if hasattr(kinds, "EXPLICIT_BATCH") else 0
    return flags | (1 << int(kinds.STRONGLY_TYPED) if settings.strongly_typed else 0)


def _parser_error(parser: Any, model: onnx.ModelProto, subject: str) -> ModelFileError:
    if parser.num_errors == 0:
        return ModelFileError(f"TensorRT cannot read {subject}", found="no reason given", do="export it again")
    error = parser.get_error(0)
    name, operator = "", ""
    index = int(error.node())
    if 0 <= index < len(model.graph.node):
        node = model.graph.node[index]
        name, operator = node.name or next(iter(node.output), ""), node.op_type
    if hasattr(error, "node_name"):  # from TensorRT 10 on
        name, operator = error.node_name() or name, error.node_operator() or operator
    at = f" at node {name!r} ({operator})" if name else ""
    return ModelFileError(
        f"TensorRT's parser refuses {subject}{at}",
        expected="operators and Q/DQ pairs that TensorRT takes",
        found=" ".join(str(error.desc()).split())[:400],
        do="quantize the float network for this target with `qtool quantize --target`, or keep the layer in float",
    )


def _configured(trt: Any, builder: Any, network: Any, settings: BuildSettings) -> Any:
    config = builder.create_builder_config()
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb * _MB)
    # Without it the inspector tells names only, and nobody knows which layers run in int8.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.optimization_level is not None:
        _set_optimization_level(trt, config, settings.optimization_level)
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if not settings.strongly_typed:
        _set_precisions(trt, network, config, settings)
    _set_shapes(builder, network, config, settings)
    _set_timing_cache(config, settings)
    if settings.compute_capabilities:
        _set_capabilities(trt, config, settings.compute_capabilities)
    return config


def _set_optimization_level(trt: Any, config: Any, level: int) -> None:
    if not hasattr(config, "builder_optimization_level"):
        raise UsageError(
            f"TensorRT {trt.__version__} has no levels of optimization",
            expected="TensorRT 8.6 or newer",
            found=f"level {level}",
            do="leave it out",
        )
    config.builder_optimization_level = level


def _set_precisions(trt: Any, network: Any, config: Any, settings: BuildSettings) -> None:
    if settings.fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    if settings.int8:
        config.set_flag(trt.BuilderFlag.INT8)
    if not (settings.fp16 or settings.int8) or not settings.float32_nodes:
        return
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        floats = all(output.dtype == trt.DataType.FLOAT for output in outputs)
        # The parser may put its own layers beside a node's, which it names after it.
        if not floats or getattr(layer.type, "name", "") in _NO_PRECISION:
            continue
        if layer.name in settings.float32_nodes:
            layer.precision = trt.DataType.FLOAT
            for i in range(layer.num_outputs):
                layer.set_output_type(i, trt.DataType.FLOAT)


def _set_shapes(builder: Any, network: Any, config: Any, settings: BuildSettings) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [tensor for tensor in inputs if any(size < 0 for size in tuple(tensor.shape))]
    missing = [tensor.name for tensor in free if tensor.name not in settings.shapes]
    if missing:
        raise UsageError(
            f"input {missing[0]!r} has free dimensions",
            expected="a range of shapes for it",
            found="none",
            do="give the input size, or export the network with fixed shapes",
        )
    if not free:
        return
    profile = builder.create_optimization_profile()
    for tensor in free:
        shapes = settings.shapes[tensor.name]
        profile.set_shape(tensor.name, shapes.smallest, shapes.usual, shapes.largest)
    if config.add_optimization_profile(profile) < 0:
        raise UsageError(
            "the range of shapes cannot be used",
            expected="smallest ≤ usual ≤ largest in every dimension, and the network's fixed ones as they are",
            found=str(dict(settings.shapes)),
            do="give another range",
        )


def _set_timing_cache(config: Any, settings: BuildSettings) -> None:
    if settings.timing_cache is None:
        return
    stored = settings.timing_cache.read_bytes() if settings.timing_cache.exists() else b""
    cache = config.create_timing_cache(stored)
    # One of another version or GPU does not fit: the measurements start anew, and the file is replaced.
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _set_capabilities(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    if not hasattr(trt, "ComputeCapability"):
        raise UsageError(
            "an engine of TensorRT is for the GPU it is built on",
            expected="no compute capability with this target",
            found=", ".join(capabilities),
            do="leave it out, or build for --target tensorrt-rtx",
        )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = f"SM{capability.replace('.', '')}"
        kind = getattr(trt.ComputeCapability, name, None)
        if kind is None or not config.set_compute_capability(kind, index):
            known = sorted(each for each in dir(trt.ComputeCapability) if each.startswith("SM"))
            raise UsageError(
                f"TensorRT-RTX {trt.__version__} builds no engine for compute capability {capability}",
                expected=", ".join(f"{each[2:-1]}.{each[-1]}" for each in known),
                found=capability,
                do="choose one of them",
            )
