"""One place where inferences run one after the other: an execution context, a stream, and buffers for every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.backends.cuda_memory import Cuda, DeviceBuffer
from qtoolkit.backends.host_arrays import HostArrays
from qtoolkit.backends.runner import Signature, TensorSpec
from qtoolkit.backends.tensorrt_messages import problems
from qtoolkit.errors import ModelFileError, UsageError

__all__ = ["Lane", "engine_signature"]

_DTYPES: Mapping[str, type[np.generic]] = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
    "BOOL": np.bool_, "UINT8": np.uint8,
}  # fmt: skip


def engine_signature(trt: Any, engine: Any) -> Signature:
    """Inputs and outputs of an open engine. Raises ModelFileError for a type that numpy does not have."""
    inputs: dict[str, TensorSpec] = {}
    outputs: dict[str, TensorSpec] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = str(getattr(engine.get_tensor_dtype(name), "name", engine.get_tensor_dtype(name)))
        if kind not in _DTYPES:
            raise ModelFileError(
                f"tensor {name!r} has a type that cannot be fed from numpy",
                expected=", ".join(_DTYPES),
                found=kind,
                do="build the engine from a network with plain inputs and outputs",
            )
        shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
        side = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        side[name] = TensorSpec(shape, np.dtype(_DTYPES[kind]))
    return Signature(inputs, outputs)


class Lane:
    """``infer`` is for one thread at a time, inside ``with cuda.current():``. ``close`` gives the GPU's memory back."""

    def __init__(
        self, trt: Any, engine: Any, cuda: Cuda, signature: Signature, cuda_graph: bool, recorder: Any
    ) -> None:
        self._trt = trt
        self._cuda = cuda
        self._signature = signature
        self._uses_graph = cuda_graph
        self._recorder = recorder
        self.context = engine.create_execution_context()
        if self.context is None:
            said = problems(recorder.messages)
            raise ModelFileError(
                "the engine cannot be started",
                expected="enough memory on the GPU",
                found=said[-1].text[:300] if said else "no reason given",
                do="use fewer streams, or build with a smaller --workspace-mb",
            )
        self._stream = cuda.stream()
        self._device: dict[str, DeviceBuffer] = {}
        self._host: dict[str, NDArray[Any]] = {}
        self._results: dict[str, HostArrays] = {}
        self._allocator: Any = None
        self._graph: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}

    def infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Arrays of ``outputs``, which are the caller's own."""
        shapes = {name: tuple(array.shape) for name, array in feeds.items()}
        if shapes != self._shapes:
            self._prepare(shapes)
        for name, array in feeds.items():
            np.copyto(self._host[name], array)
        if self._uses_graph:
            self._run_graph()
            self._cuda.wait(self._stream)
            # The graph has the addresses of these arrays in it.
            return [self._host[name].copy() for name in outputs]
        self._host.update({name: arrays.take() for name, arrays in self._results.items()})
        self._enqueue()
        self._cuda.wait(self._stream)
        if self._allocator is not None:
            self._fetch_allocated()
        results = {name: self._host.pop(name) for name in self._signature.outputs}
        return [results[name] for name in outputs]

    def close(self) -> None:
        """Free the buffers; the context goes with this object."""
        for buffer in self._device.values():
            self._cuda.free(buffer)
        self._device.clear()
        self._host.clear()
        self._results.clear()
        self._graph = self.context = None

    def _prepare(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Buffers and addresses for inputs of these shapes; a graph recorded for others goes."""
        self._graph, self._allocator, self._shapes = None, None, {}
        self._host.clear()
        self._results.clear()
        for name, shape in shapes.items():
            spec = self._signature.inputs[name]
            if None in spec.shape and not self.context.set_input_shape(name, shape):
                raise UsageError(
                    f"input {name!r} has a shape that the engine was not built for",
                    expected="one within the range given when it was built",
                    found=str(shape),
                    do="build the engine for these shapes",
                )
            self._host[name] = self._bind(name, shape, spec)()
        for name, spec in self._signature.outputs.items():
            shape = tuple(int(size) for size in self.context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                self._let_allocate(name)
            elif self._uses_graph:
                self._host[name] = self._bind(name, shape, spec)()
            else:
                self._results[name] = HostArrays(self._bind(name, shape, spec))
        self._shapes = shapes

    def _bind(self, name: str, shape: tuple[int, ...], spec: TensorSpec) -> Callable[[], NDArray[Any]]:
        """Memory of the GPU for a tensor; returns what makes the host's side of it."""
        size = prod(shape) * spec.dtype.itemsize
        self.context.set_tensor_address(name, self._reserve(name, size).address)
        return partial(self._cuda.pinned, shape, spec.dtype)

    def _reserve(self, name: str, size: int) -> DeviceBuffer:
        known = self._device.get(name)
        if known is None or known.size < size:
            if known is not None:
                self._cuda.free(self._device.pop(name))
            self._device[name] = self._cuda.allocate(size)
        return self._device[name]

    def _let_allocate(self, name: str) -> None:
        """An output whose size depends on the data: TensorRT asks for memory and tells the shape while it runs."""
        if self._uses_graph:
            raise UsageError(
                f"output {name!r} has no fixed size, so a CUDA graph cannot hold it",
                expected="outputs of fixed size",
                found="a size that depends on the data",
                do="leave the option cuda_graph out, or build with --nms host",
            )
        if self._allocator is None:
            self._allocator = _allocator(self._trt, self._reserve)
        self.context.set_output_allocator(name, self._allocator)

    def _fetch_allocated(self) -> None:
        for name, shape in self._allocator.shapes.items():
            self._host[name] = np.empty(shape, self._signature.outputs[name].dtype)
            self._cuda.to_host(self._host[name], self._device[name], self._stream)
        self._cuda.wait(self._stream)

    def _enqueue(self) -> None:
        for name in self._signature.inputs:
            self._cuda.to_device(self._device[name], self._host[name], self._stream)
        if not self.context.execute_async_v3(self._stream.handle):
            said = problems(self._recorder.messages)
            raise ModelFileError(
                "TensorRT failed while running the engine",
                found=said[-1].text[:300] if said else "no reason given",
                do="build the engine again here with `qtool build`",
            )
        allocated = {} if self._allocator is None else self._allocator.shapes
        for name in self._signature.outputs:
            if name not in allocated and name in self._host:
                self._cuda.to_host(self._host[name], self._device[name], self._stream)

    def _run_graph(self) -> None:
        if self._graph is None:
            # TensorRT sets itself up in the first run for a shape, which must not be recorded.
            self._enqueue()
            self._cuda.wait(self._stream)
            self._graph = self._cuda.capture(self._stream, self._enqueue)
        self._cuda.launch(self._graph, self._stream)


def _allocator(trt: Any, reserve: Any) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shapes: dict[str, tuple[int, ...]] = {}

        def reallocate_output(self, tensor_name: str, memory: Any, size: int, alignment: int) -> int:
            return int(reserve(tensor_name, int(size)).address)

        def reallocate_output_async(self, tensor_name: str, memory: Any, size: int, alignment: int, stream: Any) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shapes[tensor_name] = tuple(int(size) for size in shape)

    return Allocator()
