"""ONNX Runtime on the processor: the one door to the ``onnxruntime`` package.

Besides the runner there is what one asks of this runtime only: the graph it really runs after its optimizations,
which convolutions of it are integer ones, and the time of each node.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from qtoolkit.backends.cores import runtime_threads
from qtoolkit.backends.optimized_graph import Convolutions, named_copy, sort_convolutions, times_by_origin
from qtoolkit.backends.runner import Condition, Runner, Signature, TensorSpec
from qtoolkit.errors import ModelFileError, UsageError

__all__ = [
    "GraphOptimization",
    "ModelSource",
    "OnnxRuntimeCpu",
    "int8_convolutions",
    "optimized_model",
    "per_node_times",
]

ModelSource = Path | str | bytes | onnx.ModelProto
GraphOptimization = Literal["all", "extended", "basic", "none"]

_PROVIDER = "CPUExecutionProvider"
_LEVELS: Mapping[str, Any] = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(uint32)": np.uint32,
    "tensor(int64)": np.int64,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
# The runtime's exceptions share no base but Exception.
_ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)
_ONLY_FATAL = 4


class OnnxRuntimeCpu(Runner):
    """An ONNX network on ONNX Runtime's CPU provider.

    ``model``: a path, the bytes of an ONNX file, or a ModelProto. ``threads``: intra-op threads, the calling one
    included; None takes every core this process may use. ``graph_optimization``: how far the runtime rewrites the
    graph; ``none`` runs every node as written, which bit-exact comparisons need. ``profile``: the runtime's profile
    (Chrome trace JSON) is written there on close. ``spinning``: whether idle threads poll for work (faster within one
    session, but they go on for tens of milliseconds after an inference and slow whatever else runs then).
    ``low_memory``: order the nodes so that tensors die early. A network with many extra outputs holds far less at once.
    ``arena``: keep freed memory for the next inference. It grows by doubling, so leave it out where outputs are kept.
    ``integer_kernels``: run operators between Q/DQ pairs on integers. Without them every pair is computed as written
    and all else in float, which is what simulating another device needs: the result is the same on every processor.
    """

    name = "ort-cpu"

    def __init__(
        self,
        model: ModelSource,
        *,
        threads: int | None = None,
        graph_optimization: GraphOptimization = "all",
        profile: Path | None = None,
        spinning: bool = True,
        low_memory: bool = False,
        arena: bool = True,
        integer_kernels: bool = True,
    ) -> None:
        super().__init__()
        if graph_optimization not in get_args(GraphOptimization):
            raise UsageError(
                "unknown level of graph optimization",
                expected=", ".join(get_args(GraphOptimization)),
                found=repr(graph_optimization),
                do="choose one of them",
            )
        self._model = model
        self._threads = runtime_threads(threads)
        self._graph_optimization = graph_optimization
        self._profile = profile
        self._spinning = spinning
        self._low_memory = low_memory
        self._arena = arena
        self._integer_kernels = integer_kernels
        self._session: onnxruntime.InferenceSession | None = None

    def conditions(self) -> dict[str, Condition]:
        """Runtime, version, provider, threads, level of graph optimization and spinning."""
        return {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": _PROVIDER,
            "threads": self._threads,
            "graph_optimization": self._graph_optimization,
            "spinning": self._spinning,
            **({} if self._integer_kernels else {"integer_kernels": False}),
        }

    def _open(self) -> Signature:
        self._session = self._new_session(self._session_options())
        return Signature(
            inputs={each.name: _spec(each) for each in self._session.get_inputs()},
            outputs={each.name: _spec(each) for each in self._session.get_outputs()},
        )

    def _infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Sequence[NDArray[Any]]:
        if self._session is None:  # the base opens first; only a subclass that breaks that rule comes here
            raise UsageError("the session is closed", expected="an open runner", found="none", do="call open()")
        try:
            arrays: list[NDArray[Any]] = self._session.run(outputs, feeds)
        except _ORT_ERRORS as error:
            raise _refused(self._model, "ONNX Runtime failed while running", error) from error
        return arrays

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None and self._profile is not None:
            written = Path(session.end_profiling())
            os.replace(written, self._profile)

    def _session_options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ONLY_FATAL
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = _LEVELS[self._graph_optimization]
        options.enable_cpu_mem_arena = self._arena
        if self._low_memory:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        if not self._spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not self._integer_kernels:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if self._profile is not None:
            options.enable_profiling = True
            # The runtime appends the time to this, so it gets a name of its own beside the wanted one.
            options.profile_file_prefix = str(self._profile.with_name(f".{self._profile.name}"))
        return options

    def _new_session(self, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        try:
            source = _source(self._model)
            return onnxruntime.InferenceSession(source, options, providers=[_PROVIDER])
        except (*_ORT_ERRORS, ValueError) as error:
            raise _refused(self._model, "ONNX Runtime cannot load", error) from error


def optimized_model(
    model: ModelSource, *, threads: int | None = None, graph_optimization: GraphOptimization = "all"
) -> onnx.ModelProto:
    """The graph ONNX Runtime runs on this processor after its own rewriting of ``model``.

    It holds nodes of the runtime's domains (``com.microsoft``, ``com.microsoft.nchwc``) and may fit this processor
    only: read it, do not ship it. Raises ModelFileError where the runtime refuses the network.
    """
    with tempfile.TemporaryDirectory(prefix="qtoolkit-") as folder:
        path = Path(folder) / "optimized.onnx"
        with _WritesOptimized(model, path, threads=threads, graph_optimization=graph_optimization):
            return onnx.load(path)


def int8_convolutions(model: ModelSource, *, threads: int | None = None) -> Convolutions:
    """Names of the convolutions of ``model`` that really run on integers, and of those that run in float.

    Unpacks as ``int8, floating``. A convolution runs on integers where ONNX Runtime made a QLinearConv (or
    ConvInteger) of it; one whose Q/DQ pairs it could not use is a float convolution between conversions, which is
    slower than no quantization at all.
    """
    named = named_copy(_loaded(model))
    return sort_convolutions(named, optimized_model(named, threads=threads))


def per_node_times(
    model: ModelSource,
    feeds: Mapping[str, NDArray[Any]],
    *,
    runs: int = 20,
    warm_up: int = 5,
    threads: int | None = None,
) -> dict[str, float]:
    """Milliseconds per node and inference: median over ``runs`` after ``warm_up`` inferences, slowest first.

    Keys are node names of ``model`` (the first output's name where a node has none). A node that the runtime fused
    into another or folded away is absent: its time is in the survivor's. What the runtime added (layout changes) is
    under ``runtime:OpType``. Profiling itself costs some 10 µs per node: read these as shares, not as a latency.
    """
    if runs < 1 or warm_up < 0:
        raise UsageError(
            "the counts of inferences cannot be used",
            expected="runs of 1 or more and warm_up of 0 or more",
            found=f"runs={runs}, warm_up={warm_up}",
            do="give larger counts",
        )
    named = named_copy(_loaded(model))
    with tempfile.TemporaryDirectory(prefix="qtoolkit-") as folder:
        profile, optimized = Path(folder) / "profile.json", Path(folder) / "optimized.onnx"
        with _WritesOptimized(named, optimized, threads=threads, profile=profile) as runner:
            for _ in range(warm_up + runs):
                runner.infer(feeds)
        events = json.loads(profile.read_text(encoding="utf-8"))
        return times_by_origin(events, named, onnx.load(optimized), skip_runs=warm_up)


class _WritesOptimized(OnnxRuntimeCpu):
    """The same session that also writes the graph it runs."""

    def __init__(self, model: ModelSource, optimized: Path, **options: Any) -> None:
        super().__init__(model, **options)
        self._optimized = optimized

    def _session_options(self) -> onnxruntime.SessionOptions:
        options = super()._session_options()
        options.optimized_model_filepath = str(self._optimized)
        return options


def _spec(argument: Any) -> TensorSpec:
    if argument.type not in _DTYPES:
        raise ModelFileError(
            f"tensor {argument.name!r} has a type that cannot be fed from numpy",
            expected=", ".join(_DTYPES),
            found=argument.type,
            do="export the network with plain tensors as inputs and outputs",
        )
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
    return TensorSpec(shape, np.dtype(_DTYPES[argument.type]))


def _source(model: ModelSource) -> str | bytes:
    if isinstance(model, onnx.ModelProto):
        content: bytes = model.SerializeToString()
        return content
    return model if isinstance(model, bytes) else str(model)


def _loaded(model: ModelSource) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    # The runtime reads it first: a broken file then gives the same message here as in OnnxRuntimeCpu.
    with OnnxRuntimeCpu(model, threads=1, graph_optimization="none"):
        return onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))


def _refused(model: ModelSource, what: str, error: Exception) -> ModelFileError:
    subject = f"the file {model}" if isinstance(model, (str, Path)) else "the network"
    return ModelFileError(
        f"{what} {subject}",
        expected="an ONNX network this runtime supports",
        found=_short(str(error)),
        do="export the network again; `onnx.checker.check_model` says more about a broken file",
    )


def _short(text: str, limit: int = 240) -> str:
    """What a runtime's message says in the end: first line, without codes and the prefixes it repeats."""
    line = text.split("\n", 1)[0].rsplit(" : ", maxsplit=1)[-1].strip()
    line = line.rsplit(" failed:", maxsplit=1)[-1].strip() or line
    return line if len(line) <= limit else line[: limit - 1] + "…"
