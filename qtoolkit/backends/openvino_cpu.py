"""OpenVINO on the processor: the one door to the ``openvino`` package."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
import openvino
from numpy.typing import NDArray

from qtoolkit.backends.cores import runtime_threads
from qtoolkit.backends.runner import Condition, Runner, Signature, TensorSpec
from qtoolkit.errors import ModelFileError, UsageError

__all__ = ["FloatPrecision", "OpenVinoCpu"]

ModelSource = Path | str | bytes | onnx.ModelProto
FloatPrecision = Literal["f32", "bf16", "f16"]


class OpenVinoCpu(Runner):
    """An ONNX network on OpenVINO's CPU plug-in.

    ``model``: a path, the bytes of an ONNX file, or a ModelProto. ``threads``: None takes every core this process may
    use. ``float_precision``: what operators without Q/DQ compute in (OpenVINO's inference precision hint); None is
    bf16 for a network with fp16 tensors where the processor has bf16 arithmetic, else f32: a network that asks for 16
    bit gets it, a float32 network stays what it is. The performance hint is LATENCY: one stream, all threads on it.
    ``infer`` may be called from several threads.
    """

    name = "openvino-cpu"

    def __init__(
        self, model: ModelSource, *, threads: int | None = None, float_precision: FloatPrecision | None = None
    ) -> None:
        super().__init__()
        if float_precision not in (None, *get_args(FloatPrecision)):
            raise UsageError(
                "unknown precision of the float layers",
                expected=", ".join(get_args(FloatPrecision)),
                found=repr(float_precision),
                do="choose one of them",
            )
        self._model = model
        self._threads = runtime_threads(threads)
        self._float_precision = float_precision
        self._hinted: str | None = float_precision
        self._compiled: Any = None
        self._requests = threading.local()

    def conditions(self) -> dict[str, Condition]:
        """Runtime, version, provider, threads, and the hints given."""
        return {
            "runtime": "openvino",
            "version": openvino.__version__,
            "provider": "CPU",
            "threads": self._threads,
            "performance_hint": "LATENCY",
            "float_precision": self._hinted or "by network",
        }

    def _open(self) -> Signature:
        try:
            core = openvino.Core()
            read = core.read_model(*_source(self._model))
            self._hinted = self._float_precision or _precision_of(core, read)
            hints = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self._threads,
                "INFERENCE_PRECISION_HINT": self._hinted,
            }
            compiled = self._compiled = core.compile_model(read, "CPU", hints)
        except RuntimeError as error:
            raise _refused(self._model, "OpenVINO cannot load", error) from error
        return Signature(
            inputs={port.get_any_name(): _spec(port) for port in compiled.inputs},
            outputs={port.get_any_name(): _spec(port) for port in compiled.outputs},
        )

    def _infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Sequence[NDArray[Any]]:
        try:
            request = self._own_request()
            # Without sharing the runtime copies the input first; it is only read, so that would be for nothing.
            request.infer({name: np.ascontiguousarray(feed) for name, feed in feeds.items()}, share_inputs=True)
            # The request writes its next results over these.
            return [request.get_tensor(name).data.copy() for name in outputs]
        except RuntimeError as error:
            raise _refused(self._model, "OpenVINO failed while running", error) from error

    def _own_request(self) -> Any:
        """The request of the calling thread: one that is busy refuses a second caller."""
        if not hasattr(self._requests, "request"):
            self._requests.request = self._compiled.create_infer_request()
        return self._requests.request

    def _close(self) -> None:
        self._compiled, self._requests = None, threading.local()


def _precision_of(core: Any, network: Any) -> FloatPrecision:
    asks = any(port.get_element_type() == openvino.Type.f16 for op in network.get_ops() for port in op.outputs())
    return "bf16" if asks and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _source(model: ModelSource) -> tuple[Any, ...]:
    if isinstance(model, onnx.ModelProto):
        return model.SerializeToString(), b""
    return (model, b"") if isinstance(model, bytes) else (str(model),)


def _spec(port: Any) -> TensorSpec:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorSpec(shape, np.dtype(port.get_element_type().to_dtype()))


def _refused(model: ModelSource, what: str, error: RuntimeError) -> ModelFileError:
    subject = f"the file {model}" if isinstance(model, (str, Path)) else "the network"
    # The first lines name places in OpenVINO's sources.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ModelFileError(
        f"{what} {subject}",
        expected="an ONNX network this runtime supports",
        found=(lines[-1] if lines else type(error).__name__)[:240],
        do="export the network again; `onnx.checker.check_model` says more about a broken file",
    )
