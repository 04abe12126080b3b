"""The two ways to the GPU's memory, on stand-ins for pycuda and cuda-python that hold it in the host's."""

from __future__ import annotations

import ctypes
import gc
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest

from qtoolkit.backends.cuda_memory import open_cuda
from qtoolkit.errors import QtoolError, UnavailableError


class Blocks:
    """Memory by address, in the host."""

    def __init__(self):
        self.blocks = {}

    def new(self, size):
        memory = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)


def pycuda_module(memory, monkeypatch):
    driver = types.ModuleType("pycuda.driver")
    driver.Error = type("Error", (Exception,), {})
    driver.stack = []
    context = SimpleNamespace(push=lambda: driver.stack.append(1))
    driver.init = lambda: None
    driver.Device = lambda index: SimpleNamespace(retain_primary_context=lambda: context)
    driver.Context = SimpleNamespace(pop=driver.stack.pop)
    driver.Stream = lambda: SimpleNamespace(handle=7, synchronize=lambda: None)

    class Allocation(int):
        def free(self):
            del memory.blocks[int(self)]

    driver.mem_alloc = lambda size: Allocation(memory.new(size))
    driver.pagelocked_empty = np.empty
    driver.memcpy_htod_async = lambda to, array, stream: ctypes.memmove(to, array.ctypes.data, array.nbytes)
    driver.memcpy_dtoh_async = lambda array, source, stream: ctypes.memmove(array.ctypes.data, source, array.nbytes)
    package = types.ModuleType("pycuda")
    package.driver = driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return driver


def cuda_module(memory, monkeypatch):
    """As ``cuda.bindings.runtime`` of cuda-python 13.5: every call gives (error, result …)."""
    runtime = types.ModuleType("cuda.bindings.runtime")
    runtime.calls, runtime.fail = [], None
    results = {
        "cudaSetDevice": lambda index: (), "cudaStreamCreate": lambda: (7,),
        "cudaMalloc": lambda size: (memory.new(size),), "cudaFree": lambda address: memory.blocks.pop(address) and (),
        "cudaFreeHost": lambda address: memory.blocks.pop(address) and (),
        "cudaHostAlloc": lambda size, flags: (memory.new(size),),
        "cudaMemcpyAsync": lambda to, source, size, kind, stream: ctypes.memmove(to, source, size) and (),
        "cudaStreamSynchronize": lambda stream: (), "cudaStreamBeginCapture": lambda stream, mode: (),
        "cudaStreamEndCapture": lambda stream: ("graph",), "cudaGraphInstantiate": lambda graph, flags: ("exec",),
        "cudaGraphLaunch": lambda graph, stream: (),
    }  # fmt: skip

    def function(name):
        def call(*arguments):
            runtime.calls.append(name)
            return (2,) if runtime.fail == name else (0, *results[name](*arguments))

        return call

    for name in results:
        setattr(runtime, name, function(name))
    runtime.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    runtime.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["cuda.bindings"].runtime = runtime
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    return runtime


@pytest.fixture(autouse=True)
def neither(monkeypatch):
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("make", [pycuda_module, cuda_module], ids=["pycuda", "cuda-python"])
def test_arrays_come_back_as_they_went(make, monkeypatch):
    memory = Blocks()
    make(memory, monkeypatch)
    cuda = open_cuda()
    with cuda.current():
        stream = cuda.stream()
        sent, received = cuda.pinned((2, 3), np.float32), cuda.pinned((2, 3), np.float32)
        sent[:] = np.arange(6).reshape(2, 3)
        buffer = cuda.allocate(sent.nbytes)
        cuda.to_device(buffer, sent, stream)
        cuda.to_host(received, buffer, stream)
        cuda.wait(stream)
        cuda.free(buffer)
    np.testing.assert_array_equal(received, sent)
    assert buffer.address not in memory.blocks and stream.handle == 7


def test_pycuda_comes_first_and_its_context_does_not_stay(monkeypatch):
    driver = pycuda_module(Blocks(), monkeypatch)
    cuda_module(Blocks(), monkeypatch)
    cuda = open_cuda()
    assert cuda.name == "pycuda" and open_cuda(graphs=True).name == "cuda-python"
    with pytest.raises(KeyError), cuda.current():
        assert driver.stack == [1]
        raise KeyError
    assert driver.stack == []


def test_graphs_need_cuda_python(monkeypatch):
    pycuda_module(Blocks(), monkeypatch)
    cuda = open_cuda(graphs=True)
    assert not cuda.has_graphs
    with pytest.raises(UnavailableError, match="pycuda cannot record CUDA graphs"):
        cuda.capture(cuda.stream(), lambda: None)


def test_a_graph_is_recorded_and_launched(monkeypatch):
    runtime = cuda_module(Blocks(), monkeypatch)
    cuda = open_cuda()
    graph = cuda.capture(cuda.stream(), lambda: runtime.calls.append("work"))
    cuda.launch(graph, cuda.stream())
    assert graph == "exec"
    assert [call for call in runtime.calls if call != "cudaStreamCreate"] == [
        "cudaStreamBeginCapture", "work", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphLaunch"
    ]  # fmt: skip


def test_page_locked_memory_goes_with_the_last_array_on_it(monkeypatch):
    memory = Blocks()
    cuda_module(memory, monkeypatch)
    array = open_cuda().pinned((4,), np.float32)
    part = array[1:]
    del array
    gc.collect()
    assert len(memory.blocks) == 1
    del part
    gc.collect()
    assert not memory.blocks


def test_failures_are_told(monkeypatch):
    runtime = cuda_module(Blocks(), monkeypatch)
    runtime.fail = "cudaMalloc"
    with pytest.raises(QtoolError, match="the GPU failed") as caught:
        open_cuda().allocate(16)
    assert caught.value.found.startswith("cudaMalloc")
    driver = pycuda_module(Blocks(), monkeypatch)
    with pytest.raises(QtoolError, match="out of memory"), open_cuda().current():
        raise driver.Error("out of memory")


def test_without_either_both_are_named():
    with pytest.raises(UnavailableError, match="neither pycuda nor cuda-python") as caught:
        open_cuda()
    assert "pycuda: " in caught.value.found and "cuda-python: " in caught.value.found
