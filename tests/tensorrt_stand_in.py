"""A stand-in for TensorRT with exactly the names of a version, whose engines ONNX Runtime computes."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from qtoolkit.backends.cuda_memory import Cuda, DeviceBuffer, Stream
from qtoolkit.backends.nvidia_driver import Gpu
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.graph.view import GraphView

NAMES = Path(__file__).parent / "backends" / "tensorrt_names"
GPU = Gpu("Stand-in GPU", "8.7", "12.6")
_ENUMS = {
    "BuilderFlag", "DataType", "HardwareCompatibilityLevel", "LayerInformationFormat", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "OnnxParserFlag", "ProfilingVerbosity", "TensorIOMode", "TensorLocation",
}  # fmt: skip
_MEMORY: dict[int, np.ndarray[Any, Any]] = {}
"""Address → the bytes of a block of the stand-in GPU."""


class Member(int):
    name: str


def _enum(names: list[str]) -> type:
    members = [name for name in names if name not in ("name", "value", "itemsize")]
    made = {}
    for position, name in enumerate(members):
        made[name] = Member(position)
        made[name].name = name
    return type("Enum", (), made)


class Restricted:
    """Has, and takes, only the attributes that its class has in the bindings."""

    _allowed: frozenset[str] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in type(self)._allowed:
            raise AttributeError(f"{type(self).__name__} has no {name} in this version")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in type(self)._allowed:
            raise AttributeError(f"{type(self).__name__} has no {name} in this version")
        super().__setattr__(name, value)


def fake_tensorrt(version: str, log: dict[str, Any]) -> types.ModuleType:
    """The module; ``log`` gets the flags, layers and settings of the last build."""
    record = json.loads((NAMES / f"{version}.json").read_text(encoding="utf-8"))
    module = types.ModuleType("tensorrt")
    module.__version__ = record["version"]
    classes = record["classes"]
    for name in _ENUMS & classes.keys():
        setattr(module, name, _enum(classes[name]))

    def declare(kind: type) -> type:
        made = type(kind.__name__, (kind, Restricted), {"_allowed": frozenset(classes[kind.__name__])})
        setattr(module, kind.__name__, made)
        return made

    class Plain:
        def __init__(self) -> None: ...

    for name in ("ILogger", "IProfiler", "IOutputAllocator"):
        setattr(module, name, type(name, (Plain,), {}))
    _declare_building(module, declare, log)
    _declare_running(module, declare, log)
    return module


def _declare_building(module: Any, declare: Callable[[type], type], log: dict[str, Any]) -> None:
    @declare
    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> bytes:
            return b"cache of " + module.__version__.encode()

    class ITensor:
        def __init__(self, name: str, shape: tuple[int, ...]) -> None:
            self.name, self.shape, self.dtype = name, shape, module.DataType.FLOAT

    class ILayer:
        def __init__(self, node: onnx.NodeProto) -> None:
            self.name, self.type, self.num_outputs = node.name, SimpleNamespace(name="CONVOLUTION"), 1
            self._output = ITensor(node.output[0], ())

        def get_output(self, index: int) -> Any:
            return self._output

        def set_output_type(self, index: int, dtype: Any) -> None:
            log["float32"].append(self.name)

    layer, tensor = declare(ILayer), declare(ITensor)

    @declare
    class INetworkDefinition:
        def __init__(self, flags: int) -> None:
            log.update(network_flags=flags, float32=[])
            self._model: Any = None

        @property
        def num_layers(self) -> int:
            return len(self._model.graph.node)

        @property
        def num_inputs(self) -> int:
            return len(self._model.graph.input)

        def get_layer(self, index: int) -> Any:
            return layer(self._model.graph.node[index])

        def get_input(self, index: int) -> Any:
            value = self._model.graph.input[index]
            sizes = value.type.tensor_type.shape.dim
            return tensor(value.name, tuple(d.dim_value if d.HasField("dim_value") else -1 for d in sizes))

    class ParserError:
        def __init__(self, index: int, node: onnx.NodeProto) -> None:
            self._index, self._node = index, node

        def code(self) -> Any:
            return "UNSUPPORTED_NODE"

        def desc(self) -> str:
            return "No importer registered"

        def node(self) -> int:
            return self._index

        def node_name(self) -> str:
            return self._node.name

        def node_operator(self) -> str:
            return self._node.op_type

    error = declare(ParserError)

    @declare
    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._errors = network, []

        def parse(self, content: bytes) -> bool:
            model = onnx.load_from_string(content)
            self._network._model = model
            self._errors = [error(i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Refused"]
            return not self._errors

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return self._errors[index]

    @declare
    class IOptimizationProfile:
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            log["shapes"] = {name: shapes}

    @declare
    class IBuilderConfig:
        builder_optimization_level = 3

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            log[pool.name] = size

        def set_flag(self, flag: Any) -> None:
            log.setdefault("flags", set()).add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            log.setdefault("cleared", set()).add(flag.name)

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

        def create_timing_cache(self, content: bytes) -> Any:
            return module.ITimingCache(content)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self._cache = cache
            log.setdefault("caches", []).append(cache._content)
            return cache._content in (b"", b"cache of " + module.__version__.encode())

        def get_timing_cache(self) -> Any:
            return self._cache

    profile, config = module.IOptimizationProfile, module.IBuilderConfig

    @declare
    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int) -> Any:
            return module.INetworkDefinition(flags)

        def create_builder_config(self) -> Any:
            return config()

        def create_optimization_profile(self) -> Any:
            return profile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            log["level"] = getattr(config, "builder_optimization_level", None)
            log["verbosity"] = getattr(getattr(config, "profiling_verbosity", None), "name", "default")
            self._logger.log(SimpleNamespace(name="WARNING"), log.get("say", "a warning"))
            for node in network._model.graph.node:
                text = (
                    f"--------------- Timing Runner: {node.name} + PWN({node.name}_act) (CaskConvolution[0x80000009])"
                )
                self._logger.log(SimpleNamespace(name="VERBOSE"), text)
            return None if log.get("fails") else network._model.SerializeToString()


def _declare_running(module: Any, declare: Callable[[type], type], log: dict[str, Any]) -> None:
    class EngineInspector:
        def __init__(self, model: onnx.ModelProto) -> None:
            self._model = model

        def get_engine_information(self, kind: Any) -> str:
            view = GraphView(self._model)
            return json.dumps({"Layers": [_inspected(view, node) for node in view.nodes]})

    inspector = declare(EngineInspector)

    class IExecutionContext:
        def __init__(self, engine: Any) -> None:
            self._engine, self._addresses, self._allocators, self._inputs = engine, {}, {}, {}
            self.profiler = None

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._inputs[name] = shape
            return max(shape) <= log.get("largest", 10**6)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            fixed = self._engine.get_tensor_shape(name)
            if min(fixed, default=0) >= 0 or name in log.get("data_dependent", ()):
                return fixed
            return tuple(self._engine._run(self._example())[name].shape)

        def _example(self) -> dict[str, Any]:
            return {name: np.zeros(shape, np.float32) for name, shape in self._inputs.items()}

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def set_output_allocator(self, name: str, allocator: Any) -> bool:
            self._allocators[name] = allocator
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            if log.get("run_fails"):
                return False
            engine, feeds = self._engine, {}
            for spec in engine._signature.inputs.items():
                name, shape = spec[0], self._inputs.get(spec[0], engine.get_tensor_shape(spec[0]))
                count = int(np.prod(shape)) * spec[1].dtype.itemsize
                feeds[name] = _MEMORY[self._addresses[name]][:count].view(spec[1].dtype).reshape(shape)
            for name, array in engine._run(feeds).items():
                if name in self._allocators:
                    address = self._allocators[name].reallocate_output(name, None, array.nbytes, 256)
                    self._allocators[name].notify_shape(name, array.shape)
                else:
                    address = self._addresses[name]
                _MEMORY[address][: array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            if self.profiler is not None:
                for node in engine._model.graph.node:
                    self.profiler.report_layer_time(node.name, 0.25)
            return True

    context = declare(IExecutionContext)

    class ICudaEngine:
        def __init__(self, plan: bytes) -> None:
            self._model = onnx.load_from_string(plan)
            self._session = OnnxRuntimeCpu(self._model, threads=1, integer_kernels=False).open()
            self._signature = self._session.signature
            self._names = [*self._signature.inputs, *self._signature.outputs]

        def _run(self, feeds: dict[str, Any]) -> dict[str, Any]:
            return self._session.infer(feeds)

        @property
        def num_io_tensors(self) -> int:
            return len(self._names)

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return getattr(module.TensorIOMode, "INPUT" if name in self._signature.inputs else "OUTPUT")

        def _spec(self, name: str) -> Any:
            return self._signature.inputs.get(name) or self._signature.outputs[name]

        def get_tensor_dtype(self, name: str) -> Any:
            return getattr(module.DataType, {"float32": "FLOAT", "int64": "INT32"}[str(self._spec(name).dtype)])

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(-1 if size is None else size for size in self._spec(name).shape)

        def create_execution_context(self) -> Any:
            return None if log.get("no_memory") else context(self)

        def create_engine_inspector(self) -> Any:
            return inspector(self._model)

    engine = declare(ICudaEngine)

    @declare
    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger
            log["runtimes"] = log.get("runtimes", 0) + 1

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            return None if log.get("refuses") else engine(plan)


def _inspected(view: GraphView, node: onnx.NodeProto) -> dict[str, Any]:
    """A layer as TensorRT 10 describes it: int8 where a DequantizeLinear is in front."""
    producer = view.producer(node.input[0]) if node.input else None
    int8 = producer is not None and producer.op_type == "DequantizeLinear"
    words = "Thirty-two wide channel vectorized row major Int8 format" if int8 else "Row major linear FP16 format"
    return {
        "Name": f"{node.name} + something", "LayerType": "CaskConvolution",
        "Metadata": f"[ONNX Layer: {node.name}]", "Inputs": [{"Name": "x", "Format/Datatype": words}], "Outputs": [],
    }  # fmt: skip


class FakeCuda(Cuda):
    """Memory of the stand-in GPU: numpy arrays by address."""

    name = "stand-in"
    has_graphs = True

    def __init__(self) -> None:
        self.launched = 0

    @contextlib.contextmanager
    def current(self):
        yield

    def stream(self) -> Stream:
        return Stream(1)

    def allocate(self, size: int) -> DeviceBuffer:
        address = max(_MEMORY, default=4096) + 4096
        _MEMORY[address] = np.zeros(max(size, 1), np.uint8)
        return DeviceBuffer(address, size)

    def free(self, buffer: DeviceBuffer) -> None:
        del _MEMORY[buffer.address]

    def pinned(self, shape, dtype):
        return np.empty(shape, dtype)

    def to_device(self, buffer, array, stream) -> None:
        _MEMORY[buffer.address][: array.nbytes] = array.view(np.uint8).reshape(-1)

    def to_host(self, array, buffer, stream) -> None:
        array.view(np.uint8).reshape(-1)[:] = _MEMORY[buffer.address][: array.nbytes]

    def wait(self, stream) -> None: ...

    def capture(self, stream, work):
        return work

    def launch(self, graph, stream) -> None:
        self.launched += 1
        graph()


def install(
    version: str, set_module: Callable[[str, Any], None], set_attribute: Callable[[str, Any], None]
) -> dict[str, Any]:
    """That version and a GPU seem to be there; returns what the stand-in notes. The two setters may be undone later."""
    log: dict[str, Any] = {"cuda": FakeCuda(), "memory": _MEMORY, "probes": 0}

    def find_gpu() -> Gpu:
        log["probes"] += 1
        return GPU

    _MEMORY.clear()
    set_module("tensorrt", fake_tensorrt(version, log))
    for module in ("qtoolkit.backends.nvidia_driver", "qtoolkit.backends.tensorrt_gpu", "qtoolkit.engine_build"):
        set_attribute(f"{module}.find_gpu", find_gpu)
    set_attribute("qtoolkit.backends.tensorrt_gpu.open_cuda", lambda graphs=False: log["cuda"])
    return log


def install_for_good(version: str) -> None:
    """In a process of its own."""

    def set_attribute(path: str, value: Any) -> None:
        module, _, name = path.rpartition(".")
        setattr(importlib.import_module(module), name, value)

    install(version, sys.modules.__setitem__, set_attribute)
