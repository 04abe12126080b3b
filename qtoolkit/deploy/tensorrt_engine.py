"""A TensorRT engine of fixed shapes, run by TensorRT 8.5 or newer with pycuda or, without that, cuda-python.

Copied into bundles of engines, beside run_pose.py.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

__all__ = ["TensorRtEngine"]


class TensorRtEngine:
    """``infer(feeds)``: one array per input by name, returns one array per output by name."""

    def __init__(self, file: str) -> None:
        trt = importlib.import_module("tensorrt")
        self._memory = _memory()
        with open(file, "rb") as stream:
            engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(stream.read())
        if engine is None:
            sys.exit(f"{file} is of another TensorRT version or GPU: build the engine again on this machine")
        self._engine, self._context = engine, engine.create_execution_context()
        self._inputs: list[str] = []
        self._outputs: dict[str, Any] = {}
        self._devices: dict[str, int] = {}
        for place in range(engine.num_io_tensors):
            name = engine.get_tensor_name(place)
            shape, dtype = tuple(engine.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name))
            if min(shape, default=1) < 0:
                sys.exit(f"{file}: tensor {name} has no fixed shape; bundle an engine without suppression inside")
            array = np.empty(shape, dtype)
            self._devices[name] = self._memory.allocate(array.nbytes)
            self._context.set_tensor_address(name, self._devices[name])
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self._inputs.append(name)
            else:
                self._outputs[name] = array

    def infer(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Outputs by name; the arrays are this engine's own and change with the next call."""
        for name in self._inputs:
            self._memory.upload(self._devices[name], np.ascontiguousarray(feeds[name]))
        if not self._context.execute_async_v3(self._memory.stream):
            sys.exit("TensorRT failed to run the engine")
        self._memory.wait()
        for name, array in self._outputs.items():
            self._memory.download(array, self._devices[name])
        return self._outputs


def _memory() -> Any:
    try:
        return _Pycuda()
    except ImportError:
        return _CudaPython()


class _Pycuda:
    def __init__(self) -> None:
        importlib.import_module("pycuda.autoinit")
        self._cuda = importlib.import_module("pycuda.driver")
        self._stream = self._cuda.Stream()
        self.stream = self._stream.handle
        self._kept: list[Any] = []

    def allocate(self, count: int) -> int:
        self._kept.append(self._cuda.mem_alloc(count))
        return int(self._kept[-1])

    def upload(self, device: int, array: Any) -> None:
        self._cuda.memcpy_htod(device, array)

    def download(self, array: Any, device: int) -> None:
        self._cuda.memcpy_dtoh(array, device)

    def wait(self) -> None:
        self._stream.synchronize()


class _CudaPython:
    def __init__(self) -> None:
        try:
            self._cuda = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            self._cuda = importlib.import_module("cuda.cudart")
        self.stream = int(self._checked(self._cuda.cudaStreamCreate()))

    def allocate(self, count: int) -> int:
        return int(self._checked(self._cuda.cudaMalloc(count)))

    def upload(self, device: int, array: Any) -> None:
        self._checked(self._cuda.cudaMemcpy(device, array.ctypes.data, array.nbytes, self._kind("HostToDevice")))

    def download(self, array: Any, device: int) -> None:
        self._checked(self._cuda.cudaMemcpy(array.ctypes.data, device, array.nbytes, self._kind("DeviceToHost")))

    def wait(self) -> None:
        self._checked(self._cuda.cudaStreamSynchronize(self.stream))

    def _kind(self, name: str) -> Any:
        return getattr(self._cuda.cudaMemcpyKind, f"cudaMemcpy{name}")

    def _checked(self, answer: Any) -> Any:
        if int(answer[0]) != 0:
            sys.exit(f"CUDA failed: {answer[0]}")
        return answer[1] if len(answer) > 1 else None
