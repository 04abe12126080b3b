"""Memory and streams of the first GPU: the one door to ``pycuda``, and to ``cuda-python`` where pycuda is missing.

Both work on the device's primary context, which TensorRT uses too.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qtoolkit.errors import QtoolError, UnavailableError

__all__ = ["Cuda", "DeviceBuffer", "Stream", "open_cuda"]


@dataclass(eq=False)
class DeviceBuffer:
    """Memory of the GPU: ``address``, ``size`` in bytes; ``owner`` is what the library gave."""

    address: int
    size: int
    owner: Any = None


@dataclass(frozen=True, eq=False)
class Stream:
    """A CUDA stream: ``handle`` as TensorRT takes it; ``owner`` is what the library gave."""

    handle: int
    owner: Any = None


class Cuda(ABC):
    """What a runner needs of CUDA. Every call stands inside ``with cuda.current():`` of its own thread."""

    name: str
    has_graphs: bool

    @abstractmethod
    def current(self) -> contextlib.AbstractContextManager[None]:
        """Make the GPU's context that of the calling thread."""

    @abstractmethod
    def stream(self) -> Stream:
        """A new stream."""

    @abstractmethod
    def allocate(self, size: int) -> DeviceBuffer:
        """``size`` bytes on the GPU."""

    @abstractmethod
    def free(self, buffer: DeviceBuffer) -> None:
        """Give the memory back."""

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array in page-locked memory of the host."""

    @abstractmethod
    def to_device(self, buffer: DeviceBuffer, array: NDArray[Any], stream: Stream) -> None:
        """Copy a contiguous array to the GPU, in the stream's order."""

    @abstractmethod
    def to_host(self, array: NDArray[Any], buffer: DeviceBuffer, stream: Stream) -> None:
        """Copy as many bytes as the array has from the GPU, in the stream's order."""

    @abstractmethod
    def wait(self, stream: Stream) -> None:
        """Until everything in the stream is done."""

    def capture(self, stream: Stream, work: Callable[[], None]) -> Any:
        """What ``work`` puts into the stream, as a CUDA graph that ``launch`` runs."""
        raise UnavailableError(
            f"{self.name} cannot record CUDA graphs",
            expected="the Python package cuda-python",
            found=self.name,
            do="pip install cuda-python and uninstall pycuda, or leave the option cuda_graph out",
        )

    def launch(self, graph: Any, stream: Stream) -> None:
        """Run a captured graph in the stream."""
        self.capture(stream, lambda: None)


def open_cuda(graphs: bool = False) -> Cuda:
    """CUDA through pycuda, or cuda-python where pycuda is missing or ``graphs`` are wanted.

    Raises UnavailableError where neither can be imported. Call it only where a driver answers.
    """
    faults: list[str] = []
    kinds: tuple[type[Cuda], ...] = (_CudaPython, _PyCuda) if graphs else (_PyCuda, _CudaPython)
    for kind in kinds:
        try:
            return kind()
        except (ImportError, OSError) as error:
            faults.append(f"{kind.name}: {' '.join(str(error).split())[:120]}")
    raise UnavailableError(
        "neither pycuda nor cuda-python can be imported",
        expected="one of the two, to reach the GPU's memory",
        found="; ".join(faults),
        do="pip install cuda-python (or pycuda)",
    )


class _PyCuda(Cuda):
    name = "pycuda"
    has_graphs = False

    def __init__(self) -> None:
        from pycuda import driver

        driver.init()
        self._driver = driver
        self._context = driver.Device(0).retain_primary_context()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        except self._driver.Error as error:
            raise _failed(self.name, str(error)) from error
        finally:
            self._driver.Context.pop()

    def stream(self) -> Stream:
        stream = self._driver.Stream()
        return Stream(int(stream.handle), stream)

    def allocate(self, size: int) -> DeviceBuffer:
        memory = self._driver.mem_alloc(max(size, 1))
        return DeviceBuffer(int(memory), size, memory)

    def free(self, buffer: DeviceBuffer) -> None:
        buffer.owner.free()

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.asarray(self._driver.pagelocked_empty(shape, dtype))

    def to_device(self, buffer: DeviceBuffer, array: NDArray[Any], stream: Stream) -> None:
        self._driver.memcpy_htod_async(buffer.address, array, stream.owner)

    def to_host(self, array: NDArray[Any], buffer: DeviceBuffer, stream: Stream) -> None:
        if array.nbytes:
            self._driver.memcpy_dtoh_async(array, buffer.address, stream.owner)

    def wait(self, stream: Stream) -> None:
        stream.owner.synchronize()


class _CudaPython(Cuda):
    name = "cuda-python"
    has_graphs = True

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError:  # before cuda-python 12.6
            from cuda import cudart as runtime
        self._runtime: Any = runtime

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *results = getattr(self._runtime, function)(*arguments)
        if int(error) != 0:
            raise _failed(self.name, f"{function}: {getattr(error, 'name', error)}")
        return results[0] if results else None

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._call("cudaSetDevice", 0)
        yield

    def stream(self) -> Stream:
        stream = self._call("cudaStreamCreate")
        return Stream(int(stream), stream)

    def allocate(self, size: int) -> DeviceBuffer:
        return DeviceBuffer(int(self._call("cudaMalloc", max(size, 1))), size)

    def free(self, buffer: DeviceBuffer) -> None:
        self._call("cudaFree", buffer.address)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        address = int(self._call("cudaHostAlloc", size, 0))
        block = (ctypes.c_uint8 * size).from_address(address)
        # The arrays hold the block; when the last one goes, so does the memory.
        weakref.finalize(block, self._runtime.cudaFreeHost, address).atexit = False
        memory = np.ctypeslib.as_array(block)
        return np.asarray(memory[: int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape))

    def to_device(self, buffer: DeviceBuffer, array: NDArray[Any], stream: Stream) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", buffer.address, array.ctypes.data, array.nbytes, kind, stream.owner)

    def to_host(self, array: NDArray[Any], buffer: DeviceBuffer, stream: Stream) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        if array.nbytes:
            self._call("cudaMemcpyAsync", array.ctypes.data, buffer.address, array.nbytes, kind, stream.owner)

    def wait(self, stream: Stream) -> None:
        self._call("cudaStreamSynchronize", stream.owner)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Any:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.owner, mode)
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", stream.owner)
        return self._call("cudaGraphInstantiate", graph, 0)

    def launch(self, graph: Any, stream: Stream) -> None:
        self._call("cudaGraphLaunch", graph, stream.owner)


def _failed(library: str, found: str) -> QtoolError:
    return QtoolError(
        f"the GPU failed ({library})",
        expected="a GPU with memory left that nobody else has stopped",
        found=found[:300],
        do="see `nvidia-smi`; fewer streams and a smaller batch need less memory",
    )
