"""The stage ``build``: an ONNX network, float or quantized, becomes what a target's runtime opens.

For TensorRT and TensorRT-RTX that is an engine and its record; the other runtimes open ONNX, which is prepared, opened
once by the runtime itself, and written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

import qtoolkit
from qtoolkit.artifacts.files import prepare_out_dir, sha256_bytes, sha256_file, write_bytes
from qtoolkit.artifacts.target import Target
from qtoolkit.backends.engine_file import EngineRecord, machine_name, sidecar_path, write_engine
from qtoolkit.backends.nvidia_driver import Gpu, find_gpu, gpu_or_none
from qtoolkit.backends.onnxruntime_cpu import int8_convolutions
from qtoolkit.backends.table import open_runner, runner_class
from qtoolkit.backends.targets import TARGETS, find_target
from qtoolkit.backends.tensorrt_builder import BuildSettings, BuiltEngine, build_engine
from qtoolkit.backends.tensorrt_gpu import TensorRtGpu
from qtoolkit.backends.tensorrt_inspector import Int8Check, check_int8, inspect_plan
from qtoolkit.backends.tensorrt_library import TensorRtName, load_tensorrt
from qtoolkit.backends.tensorrt_messages import counted, problems
from qtoolkit.backends.tensorrt_rtx import rtx_capabilities
from qtoolkit.bench.cost import Cost, network_cost
from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.evaluation.end_to_end import with_nms_inside
from qtoolkit.graph.layer_precisions import float32_nodes, layer_precisions, precision_label
from qtoolkit.graph.load import load_network
from qtoolkit.graph.qdq_lint import lint_qdq
from qtoolkit.graph.strongly_typed import strongly_typed
from qtoolkit.graph.view import node_name

__all__ = ["BUILD_TARGETS", "BuildOptions", "BuildResult", "build", "engine_node_times"]

BUILD_TARGETS = tuple(name for name, target in TARGETS.items() if target.backend != "tidl")
"""Targets that ``build`` makes something for."""

_LIBRARIES: Mapping[str, TensorRtName] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


class BuildOptions(BaseModel):
    """What to build. ``out`` is a folder; ``timing_cache`` is ``timing.cache`` in it where none is given (TensorRT);
    ``compute_capabilities`` are for tensorrt-rtx, empty: all that it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Path
    target: str = "ort-cpu"
    out: Path = Path("runs/engines")
    nms: Literal["host", "onnx"] = "host"
    workspace_mb: int | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = Field(default=None, ge=0, le=5)
    input_size_wh: tuple[int, int] | None = None
    head: str | None = None


class BuildResult(BaseModel):
    """What ``build`` made. ``file`` is what the runtime opens, ``record`` the file beside an engine; ``onnx_sha256`` is
    that of the file it was built from.

    ``layers`` counts the network's layers by precision. ``int8_layers`` are those that the runtime runs in int8, None
    where only the device could tell; ``not_int8`` those that should and do not, with the reason as far as it is told.
    ``warnings`` are the linter's findings and what the library said, each with how often.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    target: str
    file: Path
    record: Path | None
    onnx_sha256: str
    library: str
    version: str
    built_for: tuple[str, ...]
    dialect: str | None
    precision: str
    nms: str
    layers: Mapping[str, int]
    int8_layers: int | None
    not_int8: Mapping[str, str]
    onnx_bytes: int
    file_bytes: int
    parse_s: float | None
    build_s: float | None
    warnings: Mapping[str, int]


def build(
    options: BuildOptions,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    *,
    gpu: Gpu | None = None,
) -> BuildResult:
    """Build ``options.model`` for ``options.target``; ``progress`` is called with (stage, done, total). ``gpu``: this
    machine's, where the driver has been asked already.

    Raises UnavailableError before any work where a library or a GPU is missing, ModelFileError where the network
    cannot be used, UsageError for an option that the target does not have.
    """
    target = find_target(options.target)
    _check_options(options, target)
    library = _LIBRARIES.get(target.backend)
    gpu = _device(target, library, gpu)
    out = prepare_out_dir(options.out)
    progress("reading the network", 0, 1)
    model = load_network(options.model, input_size_wh=options.input_size_wh, allow_quantized=True)
    if options.nms == "onnx":
        model = with_nms_inside(model, head=options.head)
    stem = options.model.stem + (".nms" if options.nms == "onnx" else "")
    if library is None:
        progress(f"opening it with {target.backend}", 0, 1)
        return _build_onnx(options, target, model, out / f"{stem}.{target.name}.onnx")
    progress("building the engine", 0, 1)
    return _build_engine(options, target, library, gpu, model, out / f"{stem}.{target.name}.engine", progress)


def engine_node_times(
    model: onnx.ModelProto, target: Target, feeds: Mapping[str, NDArray[Any]], folder: Path
) -> dict[str, float]:
    """Milliseconds per node of ``model``, in an engine that is built for it in ``folder`` and profiled on the GPU."""
    path = folder / "profiled.onnx"
    write_bytes(path, model.SerializeToString(deterministic=True))
    result = build(BuildOptions(model=path, target=target.name, out=folder))
    nodes = [node_name(node) for node in model.graph.node]
    with TensorRtGpu(result.file, onnx_sha256=result.onnx_sha256) as runner:
        return runner.node_times_ms(feeds, nodes, frozenset(layer_precisions(model)))


def _check_options(options: BuildOptions, target: Target) -> None:
    if target.name not in BUILD_TARGETS:
        raise UsageError(
            f"nothing can be built for target {target.name}",
            expected=f"one of {', '.join(BUILD_TARGETS)}",
            found=target.name,
            do="give the ONNX network to the vendor's own tools",
        )
    is_rtx, is_engine = target.backend == "tensorrt-rtx", target.backend in _LIBRARIES
    wrong = {
        "--workspace-mb": options.workspace_mb is not None and not is_engine,
        "--timing-cache": options.timing_cache is not None and (is_rtx or not is_engine),
        "--compute-capability": bool(options.compute_capabilities) and not is_rtx,
        "--optimization-level": options.optimization_level is not None and (is_rtx or not is_engine),
    }
    for option, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(
                f"{option} means nothing for target {target.name}",
                expected="options of that target",
                found=option,
                do="leave it out",
            )


def _device(target: Target, library: TensorRtName | None, known: Gpu | None) -> Gpu | None:
    """The GPU that an engine is for: None where it is built ahead of time, or is none."""
    if library is None:
        runner_class(target.backend)
        return None
    # The driver first: it is what a machine without a GPU lacks, and installing a library would not help.
    gpu = known or (find_gpu() if library == "tensorrt" else gpu_or_none())
    load_tensorrt(library)
    return gpu


def _build_engine(
    options: BuildOptions, target: Target, library: TensorRtName, gpu: Gpu | None, model: onnx.ModelProto, path: Path,
    progress: Callable[[str, int, int], None],
) -> BuildResult:  # fmt: skip
    precisions, cost = layer_precisions(model), network_cost(model)
    source_sha256 = sha256_file(options.model)
    if target.strongly_typed and target.opsets is not None:
        model = strongly_typed(model, opset=target.opsets[0])
    findings = lint_qdq(model, target)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise ModelFileError(
            f"{options.model.name} is not quantized as {target.name} needs it ({len(errors)} places)",
            expected="Q/DQ pairs as `qtool quantize --target` writes them",
            found=f"{errors[0].node}: {errors[0].what}",
            do=errors[0].do,
        )
    trt = load_tensorrt(library)
    kinds = set(precisions.values())
    settings = BuildSettings(
        strongly_typed=target.strongly_typed,
        fp16=bool(kinds & {"fp16", "int8"}),
        int8="int8" in kinds,
        float32_nodes=float32_nodes(model),
        workspace_mb=options.workspace_mb,
        timing_cache=(options.timing_cache or path.with_name("timing.cache")) if library == "tensorrt" else None,
        compute_capabilities=(options.compute_capabilities or rtx_capabilities()) if library == "tensorrt_rtx" else (),
        optimization_level=options.optimization_level,
    )
    engine = build_engine(trt, model, settings, options.model.name, progress)
    record = _record(options, target, library, trt.__version__, gpu, settings, engine, source_sha256, precisions, cost)
    write_engine(path, engine.plan, record)
    check = None if gpu is None else _inspected(library, trt, engine, model, precisions)
    return _engine_result(path, record, engine, check, precisions, model, [str(finding) for finding in findings])


def _record(
    options: BuildOptions, target: Target, library: TensorRtName, version: str, gpu: Gpu | None,
    settings: BuildSettings, engine: BuiltEngine, source_sha256: str, precisions: Mapping[str, str], cost: Cost,
) -> EngineRecord:  # fmt: skip
    ahead = library == "tensorrt_rtx"
    return EngineRecord(
        target=target.name,
        library=library,
        version=version,
        machine=machine_name(),
        gpu=None if ahead or gpu is None else gpu.name,
        compute_capabilities=settings.compute_capabilities
        if ahead
        else (() if gpu is None else (gpu.compute_capability,)),
        dialect="strong" if target.strongly_typed else "weak",
        precision=precision_label(precisions),
        nms=options.nms,
        tf32=settings.tf32,
        workspace_mb=options.workspace_mb,
        optimization_level=options.optimization_level,
        onnx_sha256=source_sha256,
        engine_sha256=sha256_bytes(engine.plan),
        engine_bytes=len(engine.plan),
        qtoolkit=qtoolkit.__version__,
        input_shapes=cost.input_shapes,
        gmacs=cost.gmacs,
    )


def _inspected(
    library: TensorRtName, trt: object, engine: BuiltEngine, model: onnx.ModelProto, precisions: Mapping[str, str]
) -> Int8Check | None:
    """Which layers run in int8, read from the engine itself on the GPU it was built on."""
    if library != "tensorrt":
        return None  # RTX chooses kernels when the engine is opened
    layers = inspect_plan(trt, engine.plan, [node_name(node) for node in model.graph.node])
    return check_int8(layers, [name for name, precision in precisions.items() if precision == "int8"])


def _engine_result(
    path: Path, record: EngineRecord, engine: BuiltEngine, check: Int8Check | None, precisions: Mapping[str, str],
    model: onnx.ModelProto, findings: list[str],
) -> BuildResult:  # fmt: skip
    return BuildResult(
        target=record.target,
        file=path,
        record=sidecar_path(path),
        onnx_sha256=record.onnx_sha256,
        library=record.library,
        version=record.version,
        built_for=(record.gpu,) if record.gpu else record.compute_capabilities,
        dialect=record.dialect,
        precision=record.precision,
        nms=record.nms,
        layers=_counts(precisions),
        int8_layers=None if check is None else len(check.running),
        not_int8={} if check is None else check.not_running,
        onnx_bytes=model.ByteSize(),
        file_bytes=record.engine_bytes,
        parse_s=round(engine.parse_s, 3),
        build_s=round(engine.build_s, 3),
        warnings={**dict.fromkeys(findings, 1), **counted(problems(engine.messages))},
    )


def _build_onnx(options: BuildOptions, target: Target, model: onnx.ModelProto, path: Path) -> BuildResult:
    content = model.SerializeToString(deterministic=True)
    with open_runner(target.backend, content) as runner:
        conditions = runner.conditions()
    precisions = layer_precisions(model)
    expected = [name for name, precision in precisions.items() if precision == "int8"]
    running: set[str] | None = None
    if target.backend == "ort-cpu" and expected:
        running = set(int8_convolutions(content, threads=1).int8)
        # Only convolutions are told apart there.
        expected = [node_name(n) for n in model.graph.node if n.op_type == "Conv" and node_name(n) in expected]
    write_bytes(path, content)
    float_reason = "ONNX Runtime made no integer convolution of it"
    return BuildResult(
        target=target.name,
        file=path,
        record=None,
        onnx_sha256=sha256_file(options.model),
        library=str(conditions["runtime"]),
        version=str(conditions["version"]),
        built_for=(),
        dialect=None,
        precision=precision_label(precisions),
        nms=options.nms,
        layers=_counts(precisions),
        int8_layers=None if running is None else sum(name in running for name in expected),
        not_int8={} if running is None else {name: float_reason for name in expected if name not in running},
        onnx_bytes=options.model.stat().st_size,
        file_bytes=len(content),
        parse_s=None,
        build_s=None,
        warnings={},
    )


def _counts(precisions: Mapping[str, str]) -> dict[str, int]:
    kinds = sorted(set(precisions.values()))
    return {kind: sum(value == kind for value in precisions.values()) for kind in kinds}
