"""The one file that runs on a board: Python 3.8, numpy, and TensorRT or ONNX Runtime. It imports nothing else of ours.

``qtool`` sends it over ssh, where it keeps a copy of itself under ``~/.cache/qtoolkit/board`` and answers requests::

    serve       reads requests on standard input (a line of JSON, bytes behind it where it says so), answers each
    supervise   a job of its own session: it outlives the connection, and ends when nobody has asked for a while
    work        one process that holds networks, so that a crash or a lack of memory is seen and told
    jtop        one process that asks jetson-stats for the state of a Jetson, and is ended where that does not answer

Every request may be sent again after a cut: it finds what the first one left. Files appear whole or not at all.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import glob
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Sequence

__all__ = [
    "VERSION",
    "Cuda",
    "Failure",
    "OrtNetwork",
    "Server",
    "Supervisor",
    "TensorRtNetwork",
    "WorkerHandle",
    "board_facts",
    "default_threads",
    "jtop_facts",
    "main",
    "work",
]

VERSION = 1
"""Of the requests and answers; both sides refuse another one."""

IDLE_S = 120
LEAD_IN = 2
_MARK = "qtoolkit-board"
_WARM_GROUP = 5
_WARM_TOLERANCE = 0.03
_WARM_PATIENCE = 5
_REST_WINDOW_S = 0.012
_REST_SHARE = 0.05
_REST_LIMIT_S = 2.0
_TICK_S = 0.25
_START_S = 20.0
_JTOP_S = 6.0
_SPARE_BYTES = 4 << 20
_KEPT_FILES_S = 14 * 86400
_KEPT_JOBS_S = 3600
_OWNED_S = 6.0
_VERBS = ("hello", "have", "start", "wait", "opened", "infer", "finish")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*\Z")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Json = Dict[str, Any]


class Failure(Exception):
    """What the other side is told: ``kind`` is a word it knows, ``found`` what was seen here."""

    def __init__(self, kind: str, found: str) -> None:
        super().__init__(found)
        self.kind = kind
        self.found = found

    def as_json(self) -> Json:
        return {"error": {"kind": self.kind, "found": self.found}}


def _failure_of(error: BaseException) -> Failure:
    if isinstance(error, Failure):
        return error
    if isinstance(error, MemoryError):
        return Failure("memory", "MemoryError: {}".format(error))
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return Failure("disk", "{} ({})".format(error.strerror, _free_text()))
    text = "{}: {}".format(type(error).__name__, error)
    out_of_memory = re.search(r"out of memory|bad_alloc|failed to allocate|allocation failure", text, re.IGNORECASE)
    return Failure("memory" if out_of_memory else "internal", text)


# ---------------------------------------------------------------- files


def _root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qtoolkit" / "board"


def _folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _free_bytes() -> Optional[int]:
    path = _root()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        found = os.statvfs(str(path))
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _free_text() -> str:
    free = _free_bytes()
    return "free space unknown" if free is None else "{:.1f} MB free".format(free / 1e6)


def _write_whole(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix="." + path.name + ".", suffix=".tmp", dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, str(path))
    except BaseException:
        Path(name).unlink()
        raise


def _write_json(path: Path, value: Json) -> None:
    _write_whole(path, json.dumps(value).encode("ascii"))


def _read_json(path: Path) -> Optional[Json]:
    try:
        found = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(str(path), "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _described(path: Path) -> Json:
    return {"name": path.name, "size": path.stat().st_size, "sha256": _sha256(path)}


def _named(request: Json, key: str) -> str:
    name = request.get(key)
    if not isinstance(name, str) or not _NAME.match(name):
        raise Failure("internal", "a {} that is no plain name: {!r}".format(key, name))
    return name


def _read_text(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip("\0 \n\t")
    except OSError:
        return None


# ---------------------------------------------------------------- facts of the board


def _command(arguments: Sequence[str], seconds: float = 3.0) -> Optional[str]:
    """What a tool of the board prints; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() or None


def _first_line_of(arguments: Sequence[str], seconds: float = 3.0) -> Optional[str]:
    """The first line of a tool that goes on for ever."""
    try:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return None
    try:
        if process.stdout is None or not select.select([process.stdout], [], [], seconds)[0]:
            return None
        return process.stdout.readline().decode("utf-8", "replace").strip() or None
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _number(path: str, scale: float) -> Optional[float]:
    text = _read_text(path)
    try:
        return None if text is None else round(float(text) * scale, 3)
    except ValueError:
        return None


def _numbers(found: Dict[str, Optional[float]]) -> Optional[Dict[str, float]]:
    return {name: value for name, value in sorted(found.items()) if value is not None} or None


def _clocks_mhz(root: str) -> Optional[Dict[str, float]]:
    found: Dict[str, Optional[float]] = {}
    for path in glob.glob(root + "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"):
        found[path.split("/")[-3]] = _number(path, 1e-3)
    for path in glob.glob(root + "/sys/class/devfreq/*/cur_freq"):
        found[path.split("/")[-2]] = _number(path, 1e-6)
    return _numbers(found)


def _temperatures_c(root: str) -> Optional[Dict[str, float]]:
    found: Dict[str, Optional[float]] = {}
    for zone in glob.glob(root + "/sys/class/thermal/thermal_zone*"):
        found[_read_text(zone + "/type") or zone.rsplit("/", 1)[-1]] = _number(zone + "/temp", 1e-3)
    return _numbers(found)


def _power_w(root: str) -> Optional[Dict[str, float]]:
    """Watts per rail of the INA3221 sensors: JetPack 5 and later write volts and amperes, earlier ones milliwatts."""
    found: Dict[str, Optional[float]] = {}
    for label in glob.glob(root + "/sys/bus/i2c/drivers/ina3221*/*/hwmon/hwmon*/in*_label"):
        folder, channel = os.path.split(label)
        number = channel[2:-6]
        volts = _number("{}/in{}_input".format(folder, number), 1e-3)
        amperes = _number("{}/curr{}_input".format(folder, number), 1e-3)
        if volts is not None and amperes is not None:
            found[_read_text(label) or channel] = round(volts * amperes, 3)
    for name in glob.glob(root + "/sys/bus/i2c/drivers/ina3221*/*/iio:device*/rail_name_*"):
        folder, rail = os.path.split(name)
        found[_read_text(name) or rail] = _number("{}/in_power{}_input".format(folder, rail[10:]), 1e-3)
    return _numbers(found)


def _cpu_name(root: str) -> Optional[str]:
    found = re.search(r"^model name\s*:\s*(.+)$", _read_text(root + "/proc/cpuinfo") or "", re.MULTILINE)
    return found.group(1).strip() if found else None


def jtop_facts() -> None:
    """Print what the service of jetson-stats (4.x) tells, as JSON; what it does not tell is left out."""
    import jtop

    jetson = jtop.jtop()
    jetson.start()
    found: Json = {"jtop": str(getattr(jtop, "__version__", "unknown")) if jetson.ok() else None}
    for name, read in _JTOP_PARTS.items():
        try:
            found[name] = read(jetson)
        except Exception:  # noqa: BLE001 - boards and versions differ in what they have
            continue
    print(json.dumps(found), flush=True)  # noqa: T201 - this process is asked by its output
    # Its threads would be waited for, some of which ask the package manager.
    os._exit(0)


def _jtop_temperatures(jetson: Any) -> Json:
    return {name: each["temp"] for name, each in jetson.temperature.items() if each.get("online", True)}


def _jtop_power(jetson: Any) -> Json:
    """Watts: jtop takes the rail that is the board's input out of the rails and calls it the total."""
    rails, total = jetson.power["rail"], jetson.power["tot"]
    found = {name: each["power"] * 1e-3 for name, each in rails.items() if each.get("online", True)}
    return dict(found, **{total.get("name", "total"): total["power"] * 1e-3}) if found or "name" in total else {}


def _jtop_clocks(jetson: Any) -> Json:
    """MHz: jtop has kHz. Only it tells the memory's, which needs root to be read."""
    cores = enumerate(jetson.cpu["cpu"])
    found = {"cpu{}".format(place): core["freq"]["cur"] * 1e-3 for place, core in cores if core.get("online")}
    found.update({name: each["freq"]["cur"] * 1e-3 for name, each in jetson.gpu.items()})
    if "EMC" in jetson.memory:
        found["emc"] = jetson.memory["EMC"]["cur"] * 1e-3
    return found


_JTOP_PARTS: Dict[str, Callable[[Any], Any]] = {
    "temperatures_c": _jtop_temperatures,
    "power_w": _jtop_power,
    "clocks_mhz": _jtop_clocks,
    "power_mode": lambda jetson: None if jetson.nvpmodel is None else str(jetson.nvpmodel.name),
    "jetson_clocks": lambda jetson: None if jetson.jetson_clocks is None else bool(jetson.jetson_clocks),
}


def _asked_jtop() -> Json:
    """What ``jtop_facts`` prints in a process of its own; nothing where jetson-stats is missing, broken or silent."""
    try:
        if importlib.util.find_spec("jtop") is None:
            return {}
        found = json.loads(_command([sys.executable, str(Path(__file__).absolute()), "jtop"], _JTOP_S) or "{}")
    except (ImportError, ValueError):
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("jtop"), str):
        return {}
    kinds = {"jtop": str, "power_mode": str, "jetson_clocks": bool}
    asked = {name: found[name] for name, kind in kinds.items() if isinstance(found.get(name), kind)}
    for name in ("temperatures_c", "power_w", "clocks_mhz"):
        values = found.get(name)
        numbers = values.items() if isinstance(values, dict) else ()
        asked[name] = _numbers({key: round(value, 3) for key, value in numbers if isinstance(value, (int, float))})
    return asked


def board_facts(root: str = "", tools: bool = True, jtop: bool = True) -> Json:
    """What the board says of itself now; each part it does not tell is None.

    ``tools``: ask nvpmodel and tegrastats. ``jtop``: ask jetson-stats first, whose version is then under ``jtop``; what
    it does not tell is read from the tools and from sysfs.
    """
    asked = _asked_jtop() if jtop else {}
    mode = _command(["nvpmodel", "-q"]) if tools else None
    named = re.search(r"NV Power Mode:\s*(\S+)", mode or "")
    return {
        "model": _read_text(root + "/proc/device-tree/model") or None,
        "cpu": _cpu_name(root),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "l4t": (_read_text(root + "/etc/nv_tegra_release") or "").split("\n")[0] or None,
        "jetpack": _command(["dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"]) if tools else None,
        "power_mode": named.group(1) if named else asked.get("power_mode"),
        "jetson_clocks": asked.get("jetson_clocks"),
        "clocks_mhz": asked.get("clocks_mhz") or _clocks_mhz(root),
        "temperatures_c": asked.get("temperatures_c") or _temperatures_c(root),
        "power_w": asked.get("power_w") or _power_w(root),
        "jtop": asked.get("jtop"),
        "tegrastats": _first_line_of(["tegrastats", "--interval", "100"]) if tools else None,
        "python": platform.python_version(),
    }


def default_threads() -> int:
    """One thread per physical core this process may use, within a container's quota: as qtool itself counts."""
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = len({_read_text(siblings.format(cpu)) or str(cpu) for cpu in os.sched_getaffinity(0)})
    quota, _, period = (_read_text("/sys/fs/cgroup/cpu.max") or "").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = max(1, min(cores, math.ceil(int(quota) / int(period))))
    return cores


# ---------------------------------------------------------------- networks (in a worker)


def _numpy() -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise Failure("numpy", "{} ({})".format(error, sys.executable)) from error
    return np


class OrtNetwork:
    """A network on ONNX Runtime's CPU provider, opened as qtool opens it on a processor."""

    def __init__(self, model: Path, options: Json) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise Failure("onnxruntime", "{} ({})".format(error, sys.executable)) from error
        self.threads = int(options.get("threads") or default_threads())
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = self.threads
        settings.inter_op_num_threads = 1
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        try:
            self.session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions share no base
            raise _refusal(error) from error
        self.version = str(ort.__version__)
        self.inputs = [_ort_tensor(each) for each in self.session.get_inputs()]
        self.outputs = [_ort_tensor(each) for each in self.session.get_outputs()]

    def conditions(self) -> Json:
        """Runtime, version, provider, threads and options."""
        named = {"runtime": "onnxruntime", "version": self.version, "provider": "CPUExecutionProvider"}
        return dict(named, threads=self.threads, graph_optimization="all", spinning=True)

    def infer(self, feed: Json, outputs: Sequence[str]) -> List[Any]:
        """Arrays of ``outputs``."""
        found: List[Any] = self.session.run(list(outputs), feed)
        return found


def _ort_tensor(argument: Any) -> Json:
    kinds = {"float": "float32", "double": "float64"}
    kind = argument.type[len("tensor(") : -1]
    return {"name": argument.name, "shape": list(argument.shape), "dtype": kinds.get(kind, kind)}


def _refusal(error: Exception) -> Failure:
    found = _failure_of(error)
    return found if found.kind != "internal" else Failure("network", str(error).split("\n")[0][:400])


class Cuda:
    """What the runner needs of the CUDA driver, through ctypes: neither pycuda nor cuda-python has to be installed."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Failure("driver", str(error)) from error
        self("cuInit", 0)
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(128)
        self("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode("utf-8", "replace")
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)
        self("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = int(stream.value or 0)

    def __call__(self, function: str, *arguments: Any) -> None:
        code = getattr(self.library, function)(*arguments)
        if code == 2:
            raise Failure("memory", "{}: out of memory".format(function))
        if code:
            raise Failure("driver", "{} gave CUDA error {}".format(function, code))

    def device_memory(self, size: int) -> int:
        """The address of ``size`` bytes on the GPU."""
        pointer = ctypes.c_void_p()
        self("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return int(pointer.value or 0)

    def host_array(self, np: Any, shape: Sequence[int], dtype: Any) -> Any:
        """An array in pinned memory, which the GPU copies from and to without a detour."""
        count = int(np.prod(shape, dtype=np.int64))
        size = max(count * np.dtype(dtype).itemsize, 1)
        pointer = ctypes.c_void_p()
        self("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(size), 0)
        memory = (ctypes.c_byte * size).from_address(int(pointer.value or 0))
        return np.frombuffer(memory, dtype, count).reshape(shape)


class TensorRtNetwork:
    """A network on TensorRT 8.5 to 10: weakly typed, named tensors, one stream; times include the copies."""

    _CUDA: Optional[Cuda] = None

    def __init__(self, model: Path, options: Json) -> None:
        np = _numpy()
        # Before tensorrt is touched: its Runtime ends the process where no driver answers.
        cuda = TensorRtNetwork._CUDA = TensorRtNetwork._CUDA or Cuda()
        try:
            import tensorrt as trt
        except ImportError as error:
            raise Failure("tensorrt", "{} ({})".format(error, sys.executable)) from error
        self.trt, self.cuda, self.log = trt, cuda, _trt_log(trt)
        self.precisions = sorted(options.get("precisions") or ())
        self.float32 = sorted(options.get("float32") or ())
        started = time.monotonic()
        plan, self.built = self._plan(model)
        self.engine = trt.Runtime(self.log).deserialize_cuda_engine(plan)
        self.context: Any = None if self.engine is None else self.engine.create_execution_context()
        if self.context is None:
            raise self._told("the engine cannot be loaded")
        self.open_s = round(time.monotonic() - started, 3)
        self._bind(np)

    def conditions(self) -> Json:
        """Runtime, version, provider, and what the engine was built with."""
        named = {"runtime": "tensorrt", "version": str(self.trt.__version__), "provider": self.cuda.name}
        precisions = "+".join(["fp32", *self.precisions])
        return dict(named, threads=None, precisions=precisions, copies="included", open_s=self.open_s, built=self.built)

    def infer(self, feed: Json, outputs: Sequence[str]) -> List[Any]:
        """Copies in, runs, copies out; arrays of ``outputs``."""
        cuda, stream = self.cuda, ctypes.c_void_p(self.cuda.stream)
        for name, array in feed.items():
            host, device = self.buffers[name]
            host[...] = array
            size = ctypes.c_size_t(host.nbytes)
            cuda("cuMemcpyHtoDAsync_v2", ctypes.c_void_p(device), ctypes.c_void_p(host.ctypes.data), size, stream)
        if not self.context.execute_async_v3(self.cuda.stream):
            raise self._told("execute_async_v3 failed")
        for name in outputs:
            host, device = self.buffers[name]
            size = ctypes.c_size_t(host.nbytes)
            cuda("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(host.ctypes.data), ctypes.c_void_p(device), size, stream)
        cuda("cuStreamSynchronize", stream)
        return [self.buffers[name][0].copy() for name in outputs]

    def _plan(self, model: Path) -> Any:
        """(engine bytes, whether built now): from the cache where graph, TensorRT, GPU and precisions are the same."""
        about = {"graph": _sha256(model), "tensorrt": str(self.trt.__version__), "gpu": self.cuda.name}
        about["precisions"] = "+".join(self.precisions)
        about["float32"] = " ".join(self.float32)
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode("ascii")).hexdigest()[:32]
        path = _folder(_root() / "engines") / (key + ".plan")
        sidecar = path.with_suffix(".json")
        known = _read_json(sidecar) or {}
        if path.is_file() and known.get("sha256") == _sha256(path):
            os.utime(str(path), None)
            return path.read_bytes(), False
        plan = self._build(model)
        _write_whole(path, plan)
        _write_json(sidecar, dict(about, sha256=hashlib.sha256(plan).hexdigest()))
        return plan, True

    def _build(self, model: Path) -> bytes:
        trt = self.trt
        builder = trt.Builder(self.log)
        explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        network = builder.create_network(0 if explicit is None else 1 << int(explicit))
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse(model.read_bytes()):
            reasons = [str(parser.get_error(place).desc()) for place in range(parser.num_errors)]
            raise Failure("network", "; ".join(reasons)[:400] or "the parser gave no reason")
        config = builder.create_builder_config()
        for name in self.precisions:
            flag = getattr(trt.BuilderFlag, name.upper(), None)
            if flag is not None:
                config.set_flag(flag)
        if self.precisions and self.float32:
            self._keep_float32(network, config)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._told("no engine could be built")
        return bytes(plan)

    def _keep_float32(self, network: Any, config: Any) -> None:
        """The layers of the nodes ``float32`` stay in it, whatever the flags: in fp16 pixels have steps of a half."""
        trt = self.trt
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        for place in range(network.num_layers):
            layer = network.get_layer(place)
            outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
            kind = str(layer.type).rsplit(".", 1)[-1]
            floats = all(output.dtype == trt.DataType.FLOAT for output in outputs)
            if layer.name not in self.float32 or not floats or kind in _TRT_UNTYPED:
                continue
            layer.precision = trt.DataType.FLOAT
            for index in range(layer.num_outputs):
                layer.set_output_type(index, trt.DataType.FLOAT)

    def _bind(self, np: Any) -> None:
        trt, engine, context = self.trt, self.engine, self.context
        self.inputs: List[Json] = []
        self.outputs: List[Json] = []
        self.buffers: Dict[str, Any] = {}
        for place in range(engine.num_io_tensors):
            name = engine.get_tensor_name(place)
            shape = [int(size) for size in context.get_tensor_shape(name)]
            kind = _TRT_TYPES.get(str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1])
            if kind is None or any(size < 0 for size in shape):
                raise Failure("network", "tensor {!r} has no fixed size or no numpy type: {}".format(name, shape))
            host = self.cuda.host_array(np, shape, kind)
            device = self.cuda.device_memory(host.nbytes)
            context.set_tensor_address(name, device)
            self.buffers[name] = (host, device)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs).append({"name": name, "shape": shape, "dtype": kind})

    def _told(self, what: str) -> Failure:
        said = "; ".join(self.log.lines[-3:])
        return _refusal(RuntimeError("{}: {}".format(what, said or "TensorRT gave no reason")))


# Layers without arithmetic of their own, whose precision must not be set.
_TRT_UNTYPED = ("CONSTANT", "SHAPE", "CAST", "ASSERTION", "CONDITION", "IDENTITY")

_TRT_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def _trt_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what TensorRT says of errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: List[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.lines.append(message[:300])

    return Log()


# ---------------------------------------------------------------- the worker


class _Slot:
    """One open network with its inputs, and the clock around it."""

    def __init__(self, command: Json) -> None:
        self.np = _numpy()
        kind: Any = {"onnxruntime": OrtNetwork, "tensorrt": TensorRtNetwork}[command["runtime"]]
        self.network = kind(Path(command["model"]), command["options"])
        self.names = [each["name"] for each in self.network.outputs]
        self.feeds: List[Json] = []
        if command.get("feeds"):
            self.feeds = self._loaded(command["feeds"])
            self._check(self.feeds[0])
        self.rested_at = (time.perf_counter_ns(), time.process_time_ns())

    def describe(self) -> Json:
        network = self.network
        return {"conditions": network.conditions(), "inputs": network.inputs, "outputs": network.outputs}

    def _loaded(self, path: str) -> List[Json]:
        """Arrays named ``number.input``; a further ``.u8`` means: divide by 255, as images are."""
        np = self.np
        feeds: Dict[int, Json] = {}
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, place, packed = [*key.split("."), ""][:3]
                array = arrays[key]
                if packed:
                    array = np.divide(array, np.float32(255))
                feeds.setdefault(int(number), {})[self.network.inputs[int(place)]["name"]] = array
        return [feeds[number] for number in sorted(feeds)]

    def _check(self, feed: Json) -> None:
        for each in self.network.inputs:
            found = feed.get(each["name"])
            if found is None or list(found.shape) != each["shape"] or str(found.dtype) != each["dtype"]:
                seen = "nothing" if found is None else "{} {}".format(found.dtype, list(found.shape))
                raise Failure("network", "input {name!r} is {dtype} {shape} there, given ".format(**each) + seen)

    def warm(self, seconds: float) -> Json:
        """As qtool's own worker: at least ``seconds``, then until two groups of 5 agree within 3 %."""
        start = time.perf_counter()
        medians: List[float] = []
        while True:
            medians.append(float(self.np.median(self.timed(len(medians) * _WARM_GROUP, _WARM_GROUP))))
            elapsed_s = time.perf_counter() - start
            stable = len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= _WARM_TOLERANCE
            if len(medians) > 1 and elapsed_s >= seconds and (stable or elapsed_s >= _WARM_PATIENCE * seconds):
                break
        self.rest()
        return {"count": len(medians) * _WARM_GROUP, "seconds": elapsed_s, "stable": stable}

    def run(self, first: int, count: int) -> Json:
        wall = time.perf_counter_ns() - self.rested_at[0]
        used = time.process_time_ns() - self.rested_at[1]
        self.timed(first, LEAD_IN)
        samples_ns = self.timed(first, count)
        self.rest()
        return {"samples_ns": samples_ns, "idle_cpu_pct": 100.0 * used / wall if wall > 20000000 else 0.0}

    def rest(self) -> None:
        deadline = time.perf_counter() + _REST_LIMIT_S
        quiet = 0
        while quiet < 2 and time.perf_counter() < deadline:
            wall, used = time.perf_counter(), time.process_time()
            time.sleep(_REST_WINDOW_S)
            share = (time.process_time() - used) / (time.perf_counter() - wall)
            quiet = quiet + 1 if share < _REST_SHARE else 0
        self.rested_at = (time.perf_counter_ns(), time.process_time_ns())

    def timed(self, first: int, count: int) -> List[int]:
        infer, feeds, names, clock = self.network.infer, self.feeds, self.names, time.perf_counter_ns
        samples_ns: List[int] = []
        gc.disable()
        try:
            for index in range(first, first + count):
                feed = feeds[index % len(feeds)]
                start = clock()
                outputs = infer(feed, names)
                samples_ns.append(clock() - start)
                del outputs
        except Failure:
            raise
        except Exception as error:
            raise _refusal(error) from error
        finally:
            gc.enable()
        return samples_ns

    def infer(self, feeds: Optional[str], names: Sequence[str], out: str) -> Json:
        """Outputs of every feed of a file (the slot's own if None), as arrays named ``number.output``."""
        np, arrays = self.np, {}
        for number, feed in enumerate(self.feeds if feeds is None else self._loaded(feeds)):
            self._check(feed)
            try:
                found = self.network.infer(feed, names)
            except Failure:
                raise
            except Exception as error:
                raise _refusal(error) from error
            arrays.update({"{}.{}".format(number, place): array for place, array in enumerate(found)})
        with open(out + ".tmp", "wb") as stream:
            np.savez(stream, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(out + ".tmp", out)
        return {"file": _described(Path(out))}


def work() -> None:
    """Carry out commands of the supervisor, one JSON line each; its end, or that of the stream, ends this."""
    try:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        pass
    protocol = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    slots: Dict[int, _Slot] = {}
    for line in iter(sys.stdin.readline, ""):
        command = json.loads(line)
        try:
            answer = _carried_out(slots, command)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side is told
            answer = _failure_of(error).as_json()
        protocol.write(json.dumps(answer) + "\n")
        protocol.flush()


def _carried_out(slots: Dict[int, _Slot], command: Json) -> Json:
    place = int(command["slot"])
    if command["do"] == "open":
        slots[place] = _Slot(command)
        return slots[place].describe()
    slot = slots[place]
    if command["do"] == "warm":
        return slot.warm(command["seconds"])
    if command["do"] == "run":
        return slot.run(command["first"], command["count"])
    return slot.infer(command["feeds"], command["outputs"], command["out"])


# ---------------------------------------------------------------- the supervisor


class WorkerHandle:
    """A worker process as the supervisor sees it."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._waiting = b""
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).absolute()), "work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, **command: Any) -> Json:
        """One answer; the job's limits are looked at while it is awaited."""
        process = self.process
        if process.stdin is None or process.stdout is None:
            raise Failure("internal", "a worker without pipes")
        try:
            process.stdin.write(json.dumps(command).encode("ascii") + b"\n")
            process.stdin.flush()
            while b"\n" not in self._waiting:
                self._check()
                if select.select([process.stdout], [], [], _TICK_S)[0]:
                    chunk = os.read(process.stdout.fileno(), 1 << 16)
                    if not chunk:
                        raise self._ended()
                    self._waiting += chunk
        except BrokenPipeError as error:
            raise self._ended() from error
        line, _, self._waiting = self._waiting.partition(b"\n")
        answer: Json = json.loads(line.decode("ascii"))
        if "error" in answer:
            raise Failure(**answer["error"])
        return answer

    def _ended(self) -> Failure:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return Failure("killed", "the process with the network was killed (signal 9)")
        return Failure("crashed", "the process with the network ended with code {}".format(code))


class Supervisor:
    """One job from request to result. It ends by itself: at its limit, and when nobody has asked for a while."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.request: Json = _read_json(folder / "request.json") or {}
        self.deadline = time.monotonic() + float(self.request["limit_s"])
        self.workers: List[WorkerHandle] = []
        self.power: List[Dict[str, float]] = []
        self.looked_at = 0.0
        self.heard = (0.0, time.monotonic())
        self.told_at = 0.0

    def main(self) -> None:
        """Write ``result.json``, whatever happens; remove the folder where nobody asks any more."""
        signal.signal(signal.SIGTERM, _leave)
        own = open(str(self.folder / "own.lock"), "ab")  # noqa: SIM115 - held until this process ends
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # a start that was cut off has started another one
        _write_json(self.folder / "pid.json", {"pid": os.getpid(), "ticks": _ticks(os.getpid())})
        try:
            with open(str(_root() / "board.lock"), "ab") as lock:
                self._take(lock)
                result = self._serve() if self.request["kind"] == "serve" else self._bench()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side is told
            failure = _failure_of(error)
            if failure.kind == "abandoned":
                self._end_workers()
                shutil.rmtree(str(self.folder), ignore_errors=True)
                return
            result = failure.as_json()
        finally:
            self._end_workers()
        _write_json(self.folder / "result.json", dict(result, version=VERSION))

    def check(self) -> None:
        """Raises Failure at the job's limits; samples the power rails meanwhile."""
        now = time.monotonic()
        if now - self.looked_at < _TICK_S:
            return
        self.looked_at = now
        try:
            asked_at = (self.folder / "alive").stat().st_mtime
        except OSError as error:
            raise Failure("abandoned", "the job's folder is gone") from error
        if asked_at != self.heard[0]:
            # By the monotonic clock: a board without a battery sets its wall clock by years when it finds a network.
            self.heard = (asked_at, now)
        silent_s = now - self.heard[1]
        if silent_s > float(self.request["heartbeat_s"]):
            raise Failure("abandoned", "nobody has asked for {:.0f} s".format(silent_s))
        if now > self.deadline:
            raise Failure("timeout", "the job reached its limit of {:g} s".format(self.request["limit_s"]))

    def tell(self, stage: str, done: int, total: int) -> None:
        """What ``wait`` answers; at most twice a second, since it is a write to the board's disk."""
        if stage != "measuring" or time.monotonic() - self.told_at > 0.5:
            self.told_at = time.monotonic()
            _write_json(self.folder / "progress.json", {"stage": stage, "done": done, "total": total})

    def _take(self, lock: Any) -> None:
        """One job at a time: two would measure each other."""
        patience = time.monotonic() + float(self.request["queue_s"])
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if time.monotonic() > patience:
                    raise Failure("busy", "another measurement runs on the board") from error
            self.tell("waiting for another measurement", 0, 1)
            self.check()
            time.sleep(_TICK_S)

    def _opened(self) -> List[Json]:
        """All networks open: one process each, or one process for all on a GPU, whose memory contexts would share."""
        models, runtime = self.request["models"], self.request["runtime"]
        processes = 1 if runtime == "tensorrt" else len(models)
        self.workers = [WorkerHandle(self.check) for _ in range(processes)]
        described = []
        for place, model in enumerate(models):
            self.tell("opening", place, len(models))
            described.append(
                self._worker(place).ask(
                    do="open",
                    slot=place,
                    runtime=runtime,
                    model=str(_root() / "files" / model["sha256"]),
                    feeds=str(_root() / "files" / model["feeds"]) if model.get("feeds") else None,
                    options=dict(model.get("options") or {}, threads=self.request.get("threads")),
                )
            )
        return described

    def _worker(self, place: int) -> WorkerHandle:
        return self.workers[place % len(self.workers)]

    def _bench(self) -> Json:
        request = self.request
        models = self._opened()
        for place, model in enumerate(models):
            self.tell("warming up", place, len(models))
            model["warmed"] = self._worker(place).ask(do="warm", slot=place, seconds=request["warmup_s"])
            model.update(blocks_ns=[], idle_cpu_pct=0.0)
        before = board_facts()
        for cycle in range(request["cycles"]):
            start = cycle % len(models)
            for place in [*range(start, len(models)), *range(start)]:
                first = cycle * request["block"]
                answer = self._worker(place).ask(do="run", slot=place, first=first, count=request["block"])
                models[place]["blocks_ns"].append(answer["samples_ns"])
                models[place]["idle_cpu_pct"] = max(models[place]["idle_cpu_pct"], answer["idle_cpu_pct"])
                self.power.append(_power_w("") or {})
            self.tell("measuring", cycle + 1, request["cycles"])
        after = board_facts(tools=False, jtop=before["jtop"] is not None)
        if request.get("outputs"):
            for place, model in enumerate(models):
                out = str(self.folder / "outputs-{}.npz".format(place))
                names = [each["name"] for each in model["outputs"]]
                asked = self._worker(place).ask(do="infer", slot=place, feeds=None, outputs=names, out=out)
                model["file"] = asked["file"]
        return {"models": models, "board": dict(before, after=after, power_mean_w=_mean(self.power))}

    def _serve(self) -> Json:
        """Infer what is asked until nobody asks any more."""
        described = self._opened()[0]
        _write_json(self.folder / "opened.json", dict(described, board=board_facts()))
        done = 0
        while True:
            task = _read_json(self.folder / "task-{}.json".format(done + 1))
            if task is None:
                self.check()
                time.sleep(0.005)
                continue
            done += 1
            out = str(self.folder / "out-{}.npz".format(done))
            feeds = str(self.folder / task["feeds"])
            answer = self._worker(0).ask(do="infer", slot=0, feeds=feeds, outputs=task["outputs"], out=out)
            Path(feeds).unlink()
            _write_json(self.folder / "done-{}.json".format(done), answer)

    def _end_workers(self) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()


def _mean(samples: Sequence[Dict[str, float]]) -> Optional[Dict[str, float]]:
    names = sorted({name for sample in samples for name in sample})
    found = {name: [sample[name] for sample in samples if name in sample] for name in names}
    return {name: round(sum(values) / len(values), 3) for name, values in found.items()} or None


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)


# ---------------------------------------------------------------- the server


class Server:
    """Answers requests on one connection. Each public method is one request; all may be repeated."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO, source: Optional[bytes] = None) -> None:
        self.reader, self.writer, self.source = reader, writer, source

    def main(self) -> None:
        """Until the stream ends; a connection that says nothing for two minutes is dead."""
        self._send({"agent": _MARK, "version": VERSION, "pid": os.getpid()})
        while True:
            signal.alarm(IDLE_S)
            line = self.reader.readline()
            if not line.endswith(b"\n"):
                return
            request = json.loads(line.decode("ascii"))
            content = self._exactly(int(request.get("bytes_behind", 0)))
            if content is None:
                return
            signal.alarm(0)
            self._answer(request, content)

    def _answer(self, request: Json, content: bytes) -> None:
        behind = b""
        try:
            if request.get("version") != VERSION:
                raise Failure("version", "version {} there, {} asked".format(VERSION, request.get("version")))
            if "job" in request and request["do"] != "start":
                self._touch(request)
            if request["do"] == "get":
                behind = self.get(request)
                answer: Json = {"bytes_behind": len(behind)}
            elif request["do"] == "put":
                answer = self.put(request, content)
            else:
                if request["do"] not in _VERBS:
                    raise Failure("version", "version {} does not know {!r}".format(VERSION, request["do"]))
                answer = getattr(self, request["do"])(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side is told
            answer, behind = _failure_of(error).as_json(), b""
        self._send(answer, behind)

    def _send(self, answer: Json, behind: bytes = b"") -> None:
        self.writer.write(json.dumps(answer).encode("ascii") + b"\n" + behind)
        self.writer.flush()

    def _exactly(self, count: int) -> Optional[bytes]:
        content = self.reader.read(count) if count else b""
        return content if len(content) == count else None

    def _job(self, request: Json) -> Path:
        return _root() / "jobs" / _named(request, "job")

    def _touch(self, request: Json) -> None:
        try:
            os.utime(str(self._job(request) / "alive"), None)
        except OSError:
            pass

    def hello(self, request: Json) -> Json:
        """What is installed here; sweeps what earlier jobs left."""
        _sweep()
        found = {name: importlib.util.find_spec(name) is not None for name in ("numpy", "tensorrt", "onnxruntime")}
        try:
            ctypes.CDLL("libcuda.so.1")
            found["driver"] = True
        except OSError:
            found["driver"] = False
        model = _read_text("/proc/device-tree/model")
        return dict(found, python=platform.python_version(), machine=platform.machine(), model=model)

    def _stored(self, request: Json) -> Path:
        folder = self._job(request) if "job" in request else _folder(_root() / "files")
        if not folder.is_dir():
            raise Failure("gone", "there is no job {}".format(request.get("job")))
        return folder / _named(request, "sha256")

    def have(self, request: Json) -> Json:
        """How many bytes of each file are here already; refuses at once where the rest will not fit the disk."""
        _folder(_root())
        offsets, missing = [], 0
        for each in request["files"]:
            path = self._stored(dict(each, **({"job": request["job"]} if "job" in request else {})))
            part = Path(str(path) + ".part")
            offset = 0
            if path.is_file():
                if _sha256(path) == each["sha256"]:
                    os.utime(str(path), None)
                    offset = int(each["size"])
                else:
                    path.unlink()
            elif part.is_file():
                offset = min(part.stat().st_size, int(each["size"]) - 1)
            offsets.append(max(offset, 0))
            missing += int(each["size"]) - offsets[-1]
        free = _free_bytes()
        if free is not None and missing and missing + _SPARE_BYTES > free:
            raise Failure("disk", "{:.1f} MB are needed, {}".format((missing + _SPARE_BYTES) / 1e6, _free_text()))
        return {"offsets": offsets}

    def put(self, request: Json, content: bytes) -> Json:
        """Bytes of a file at an offset. The file gets its name when its checksum is right, not before."""
        path, size = self._stored(request), int(request["size"])
        if path.is_file():
            return {"offset": size}
        part = Path(str(path) + ".part")
        try:
            with open(str(part), "ab") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                if stream.tell() >= size:
                    stream.truncate(size - 1)  # left by an older try; the last byte is sent again
                if stream.seek(0, os.SEEK_END) != request["offset"]:
                    return {"offset": stream.tell()}
                stream.write(content)
                stream.flush()
                offset = stream.tell()
                if offset == size:
                    os.fsync(stream.fileno())
                    if _sha256(part) != request["sha256"]:
                        part.unlink()
                        raise Failure("corrupt", "the checksum of {} is wrong".format(path.name[:12]))
                    os.replace(str(part), str(path))
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                part.unlink()
            raise
        return {"offset": offset}

    def start(self, request: Json) -> Json:
        """Start the job of that name, unless it is there: then take it over from a client that asks no more."""
        folder, jobs = self._job(request), _folder(_root() / "jobs")
        state = "started"
        with open(str(jobs / ".lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / "pid.json").is_file() and not self._is_own(folder, request):
                state = self._taken_over(folder, request)
            if not (folder / "pid.json").is_file():
                for sha256 in [each.get(key) for each in request["models"] for key in ("sha256", "feeds")]:
                    if sha256 is not None and not (_root() / "files" / sha256).is_file():
                        raise Failure("gone", "the file {} is not here any more".format(sha256[:12]))
                _folder(folder)
                (folder / "alive").touch()
                _write_json(folder / "request.json", request)
                self._spawn(folder)
        return {"state": state}

    def _is_own(self, folder: Path, request: Json) -> bool:
        known = _read_json(folder / "request.json") or {}
        return known.get("client") == request.get("client")

    def _taken_over(self, folder: Path, request: Json) -> str:
        """``owned`` where its client still asks, ``taken``, or ``started`` where nothing can come of it any more."""
        if time.time() - (folder / "alive").stat().st_mtime < _OWNED_S:
            return "owned"
        result = _read_json(folder / "result.json")
        if _alive(folder) if result is None else "error" not in result:
            (folder / "alive").touch()
            _write_json(folder / "request.json", request)
            return "taken"
        _end(folder)
        shutil.rmtree(str(folder), ignore_errors=True)
        return "started"

    def _spawn(self, folder: Path) -> None:
        agent = self._installed()
        with open(str(folder / "log.txt"), "ab") as log:
            subprocess.Popen(
                [sys.executable, str(agent), "supervise", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not (folder / "pid.json").is_file():
            if time.monotonic() > deadline:
                log_text = _read_text(str(folder / "log.txt")) or "no process"
                raise Failure("internal", "the job did not start: " + log_text.split("\n")[-1][:300])
            time.sleep(0.02)

    def _installed(self) -> Path:
        """This file on the board: under the hash of its content, so that versions do not meet."""
        if self.source is None:
            return Path(__file__).absolute()
        path = _folder(_root() / "agents") / (hashlib.sha256(self.source).hexdigest()[:32] + ".py")
        if not path.is_file() or path.read_bytes() != self.source:
            _write_whole(path, self.source)
        return path

    def wait(self, request: Json) -> Json:
        """Where a job stands: after ``seconds``, or as soon as it ended."""
        folder, deadline = self._job(request), time.monotonic() + min(float(request["seconds"]), 30.0)
        while True:
            ended = self._ended(folder)
            if ended is not None:
                return ended
            if time.monotonic() >= deadline:
                return {"state": "running", "progress": _read_json(folder / "progress.json")}
            time.sleep(_TICK_S)

    def _ended(self, folder: Path) -> Optional[Json]:
        if not folder.is_dir():
            raise Failure("gone", "there is no job {}".format(folder.name))
        alive = _alive(folder)
        if (folder / "result.json").is_file():
            return {"state": "finished", "file": _described(folder / "result.json")}
        if alive:
            return None
        free = _free_bytes()
        if free is not None and free < 1 << 16:
            raise Failure("disk", "the job could not write its result: " + _free_text())
        log = (_read_text(str(folder / "log.txt")) or "").split("\n")[-1][:300]
        raise Failure("killed", "the agent ended without a result" + (": " + log if log else ""))

    def opened(self, request: Json) -> Json:
        """What a job of kind ``serve`` opened, as soon as it has."""
        return self._appears(request, "opened.json")

    def infer(self, request: Json) -> Json:
        """One task of a job of kind ``serve``; the same number asked again is not computed again."""
        folder, number = self._job(request), int(request["task"])
        task = folder / "task-{}.json".format(number)
        if folder.is_dir() and not task.is_file():
            for name in ("task-{}.json", "done-{}.json", "out-{}.npz"):
                old = folder / name.format(number - 1)
                if old.is_file() and name != "task-{}.json":
                    old.unlink()
            _write_json(task, {"feeds": _named(request, "feeds"), "outputs": request["outputs"]})
        return self._appears(request, "done-{}.json".format(number))

    def _appears(self, request: Json, name: str) -> Json:
        folder, deadline = self._job(request), time.monotonic() + min(float(request["seconds"]), 30.0)
        while True:
            found = _read_json(folder / name)
            if found is not None:
                return dict(found, state="done")
            if self._ended(folder) is not None:
                result = _read_json(folder / "result.json") or {}
                raise Failure(**result.get("error", {"kind": "internal", "found": "the job ended early"}))
            if time.monotonic() >= deadline:
                return {"state": "running", "progress": _read_json(folder / "progress.json")}
            time.sleep(0.005)

    def get(self, request: Json) -> bytes:
        """Bytes of a file of a job, from an offset."""
        path = self._job(request) / _named(request, "name")
        if not path.is_file():
            raise Failure("gone", "there is no {} of job {}".format(path.name, request["job"]))
        with open(str(path), "rb") as stream:
            stream.seek(int(request["offset"]))
            return stream.read(int(request["bytes"]))

    def finish(self, request: Json) -> Json:
        """End a job if it runs, and remove all of it; where a client is named, only its own."""
        folder = self._job(request)
        if folder.is_dir() and ("client" not in request or self._is_own(folder, request)):
            _end(folder)
            shutil.rmtree(str(folder), ignore_errors=True)
        return {"state": "gone"}


def _ticks(pid: int) -> Optional[str]:
    """Start time of a process, which tells it from a later one of the same number. None where there is none."""
    stat = _read_text("/proc/{}/stat".format(pid))
    fields = [] if stat is None else stat.rsplit(")", 1)[-1].split()
    return None if len(fields) < 20 or fields[0] in "ZX" else fields[19]


def _alive(folder: Path) -> bool:
    known = _read_json(folder / "pid.json")
    return known is not None and known["ticks"] is not None and _ticks(known["pid"]) == known["ticks"]


def _end(folder: Path) -> None:
    known = _read_json(folder / "pid.json")
    for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        deadline = time.monotonic() + patience_s
        if known is None or not _alive(folder):
            return
        try:
            os.killpg(known["pid"], number) if number == signal.SIGKILL else os.kill(known["pid"], number)
        except OSError:
            return
        while _alive(folder) and time.monotonic() < deadline:
            time.sleep(0.02)


def _sweep() -> None:
    """Remove jobs whose process is gone and that nobody fetched, and files nobody used for two weeks."""
    now = time.time()
    for folder in (_root() / "jobs").glob("*"):
        try:
            if folder.is_dir() and not _alive(folder) and now - folder.stat().st_mtime > _KEPT_JOBS_S:
                shutil.rmtree(str(folder), ignore_errors=True)
        except OSError:
            continue
    for kind in ("files", "engines", "agents"):
        for path in (_root() / kind).glob("*"):
            try:
                if now - path.stat().st_mtime > _KEPT_FILES_S:
                    path.unlink()
            except OSError:
                continue


def main(arguments: Sequence[str], source: Optional[bytes] = None) -> None:
    """``serve`` (the default), ``supervise FOLDER``, ``work`` or ``jtop``."""
    if arguments[:1] == ["supervise"]:
        Supervisor(Path(arguments[1])).main()
    elif arguments[:1] == ["work"]:
        work()
    elif arguments[:1] == ["jtop"]:
        jtop_facts()
    else:
        # What prints to standard output by itself must not stand between the answers.
        writer = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        Server(sys.stdin.buffer, writer, source).main()


if __name__ == "__main__":
    main(sys.argv[1:], globals().get("SOURCE"))
