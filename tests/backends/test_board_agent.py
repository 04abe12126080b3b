"""The one file that goes to a board: under old Pythons, with the facts of a Jetson, and with TensorRT's names."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import onnx
import pytest

from qtoolkit.backends import board_agent
from qtoolkit.backends.board_address import parse_board
from qtoolkit.backends.board_runner import BoardRunner
from qtoolkit.backends.jetson_ssh import AGENT
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.bench import worker

VERSIONS = ("3.8", "3.10", "3.12")
VARIABLE = "QTOOLKIT_BOARD_PYTHONS"
"""Paths of Pythons with numpy and onnxruntime, with ``:`` between them."""


def python_of(version: str) -> str:
    """A Python of that version with numpy and onnxruntime: of the environment variable, else of PATH; else a skip."""
    named = [each for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
    ask = "import sys, numpy, onnxruntime; print('%d.%d' % sys.version_info[:2])"
    for path in [*named, shutil.which(f"python{version}") or ""]:
        if path:
            told = subprocess.run([path, "-c", ask], check=False, capture_output=True, text=True)
            if told.stdout.strip() == version:
                return path
    pytest.skip(f"no Python {version} with numpy and onnxruntime here (name one in {VARIABLE})")


def test_the_syntax_and_the_annotations_are_those_of_3_8():
    tree = ast.parse(AGENT.read_text(), feature_version=(3, 8))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    tops = {str(each).partition(".")[0] for each in imported}
    assert tops - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "tensorrt", "jtop"}
    evaluated = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)]
    built_in = {"dict", "list", "tuple", "set"}
    outside = ast.parse(AGENT.read_text()).body
    aliases = [node.value for node in outside if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)]
    assert evaluated and not any(isinstance(each.value, ast.Name) and each.value.id in built_in for each in aliases)


@pytest.mark.parametrize("version", VERSIONS)
def test_runs_under(version, loopback_board, tiny_pose_model, tmp_path):
    python = python_of(version)
    onnx.save(tiny_pose_model(), tmp_path / "tiny.onnx")
    feed = {"images": np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)}
    with BoardRunner(tmp_path / "tiny.onnx", device=loopback_board.at(loopback_board.port, python), threads=1) as there:
        assert there.facts["python"].startswith(f"{version}.")
        found = there.infer(feed)["output0"]
    with OnnxRuntimeCpu(tmp_path / "tiny.onnx", threads=1) as here:
        np.testing.assert_allclose(found, here.infer(feed)["output0"], rtol=1e-4, atol=1e-3)
    assert parse_board(loopback_board.at(1, python)).python == python


def test_measures_as_qtool_itself_does():
    assert board_agent.LEAD_IN == worker.LEAD_IN
    for name in ("_WARM_GROUP", "_WARM_TOLERANCE", "_WARM_PATIENCE", "_REST_WINDOW_S", "_REST_SHARE", "_REST_LIMIT_S"):
        assert getattr(board_agent, name) == getattr(worker, name), name
    from qtoolkit.backends.cores import physical_cores

    assert board_agent.default_threads() == physical_cores()


class TestFacts:
    def test_of_a_jetson(self, tmp_path, monkeypatch):
        power = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"
        old = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
        for name, text in {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\n# KERNEL_VARIANT: oot",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
            "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48250\n",
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
            f"{power}/in1_label": "VDD_IN\n",
            f"{power}/in1_input": "5000\n",
            f"{power}/curr1_input": "1400\n",
            f"{old}/rail_name_0": "GPU\n",
            f"{old}/in_power0_input": "2500\n",
        }.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "nvpmodel").write_text("#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'; echo 2\n")
        (tools / "tegrastats").write_text("#!/bin/sh\necho 'RAM 2448/7620MB GR3D_FREQ 0%'; exec sleep 60\n")
        (tools / "dpkg-query").write_text("#!/bin/sh\nprintf 6.2\n")
        for tool in tools.iterdir():
            tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
        facts = board_agent.board_facts(str(tmp_path))
        assert facts["model"] == "NVIDIA Jetson Orin Nano Developer Kit"
        assert facts["l4t"] == "# R36 (release), REVISION: 4.3"
        assert (facts["jetpack"], facts["power_mode"]) == ("6.2", "MAXN_SUPER")
        assert facts["clocks_mhz"] == {"17000000.gpu": 624.75, "cpu0": 1510.4}
        assert facts["temperatures_c"] == {"cpu-thermal": 48.25}
        assert facts["power_w"] == {"GPU": 2.5, "VDD_IN": 7.0}
        assert facts["tegrastats"] == "RAM 2448/7620MB GR3D_FREQ 0%"

    def test_of_a_machine_that_tells_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", "")
        facts = board_agent.board_facts(str(tmp_path))
        known = {"machine", "cores", "python"}
        assert {name for name, value in facts.items() if value is not None} == known


JTOP = '''
"""As jetson-stats 4.3 answers, on an Orin Nano: milliwatts, kHz, -256 for a sensor that is off."""
__version__ = "4.3.2"


class Named:
    name = "MAXN_SUPER"


class Items:  # its GPU and memory are no dicts
    def __init__(self, data):
        self.data = data

    def items(self):
        return self.data.items()

    def __getitem__(self, name):
        return self.data[name]

    def __iter__(self):
        return iter(self.data)


class jtop:
    def __init__(self, interval=0.5):
        pass

    def start(self):
        {start}

    def ok(self, spin=False):
        return True

    nvpmodel = Named()
    jetson_clocks = True
    temperature = {{"cpu": {{"temp": 48.25, "online": True}}, "cv0": {{"temp": -256, "online": False}}}}
    power = {{
        "rail": {{"VDD_CPU_GPU_CV": {{"power": 1200, "online": True}}}},
        "tot": {{"power": 5300, "avg": 5200, "name": "VDD_IN"}},
    }}
    cpu = {{"total": {{}}, "cpu": [{{"online": True, "freq": {{"cur": 1510400}}}}, {{"online": False}}]}}
    gpu = Items({{"gpu": {{"type": "integrated", "freq": {{"cur": 1020000}}}}}})
    memory = Items({{"EMC": {{"cur": 3199000, "online": True}}}})
{more}
'''


class TestJtop:
    """Against a stand-in with the names of jetson-stats: no Jetson was at hand."""

    @pytest.fixture
    def install(self, tmp_path, monkeypatch):
        def install(start="pass", more="", top=""):
            (tmp_path / "jtop.py").write_text(top + JTOP.format(start=start, more=more))
            monkeypatch.setenv("PYTHONPATH", str(tmp_path))
            monkeypatch.syspath_prepend(str(tmp_path))
            return board_agent.board_facts(str(tmp_path / "root"), tools=False)

        return install

    def test_is_asked_first(self, install):
        facts = install()
        assert (facts["jtop"], facts["power_mode"], facts["jetson_clocks"]) == ("4.3.2", "MAXN_SUPER", True)
        assert facts["temperatures_c"] == {"cpu": 48.25}
        assert facts["power_w"] == {"VDD_CPU_GPU_CV": 1.2, "VDD_IN": 5.3}
        assert facts["clocks_mhz"] == {"cpu0": 1510.4, "emc": 3199.0, "gpu": 1020.0}

    def test_what_it_does_not_have_is_read_elsewhere(self, install, tmp_path):
        zone = tmp_path / "root/sys/class/thermal/thermal_zone0"
        zone.mkdir(parents=True)
        (zone / "type").write_text("cpu-thermal")
        (zone / "temp").write_text("51000")
        facts = install(more="    temperature = property(lambda self: 1 / 0)\n    nvpmodel = jetson_clocks = None")
        assert facts["temperatures_c"] == {"cpu-thermal": 51.0}
        assert facts["jtop"] == "4.3.2" and facts["power_w"]["VDD_IN"] == 5.3
        assert facts["power_mode"] is facts["jetson_clocks"] is None

    @pytest.mark.parametrize(
        "broken",
        [
            {"start": "raise RuntimeError('The jtop.service is not active')"},
            {"start": "__import__('time').sleep(60)"},
            {"start": "__import__('os').kill(__import__('os').getpid(), 11)"},
            {"top": "raise ImportError('smbus2')\n"},
            {"more": "    ok = lambda self: False"},
            {"start": "print('not JSON')"},
        ],
        ids=["no service", "silent", "crashes", "cannot be imported", "lost", "prints"],
    )
    def test_a_broken_one_costs_its_time_limit_at_most(self, broken, install, monkeypatch):
        monkeypatch.setattr(board_agent, "_JTOP_S", 3.0)
        started = time.monotonic()
        facts = install(**broken)
        assert facts["jtop"] is facts["jetson_clocks"] is facts["power_mode"] is None
        assert time.monotonic() - started < 10

    def test_a_machine_without_it_starts_no_process(self, tmp_path, monkeypatch):
        monkeypatch.setattr(board_agent, "_command", lambda *words: pytest.fail(f"{words}"))
        assert board_agent.board_facts(str(tmp_path), tools=False)["jtop"] is None


class FakeCuda:
    """Memory of the GPU is memory of the host; a launch doubles."""

    name, stream = "Orin", 7

    def __init__(self) -> None:
        self.held: list[np.ndarray] = []

    def __call__(self, function: str, *arguments):
        if function.startswith("cuMemcpy"):
            import ctypes

            ctypes.memmove(arguments[0], arguments[1], arguments[2].value)

    def device_memory(self, size: int) -> int:
        self.held.append(np.zeros(size, np.uint8))
        return int(self.held[-1].ctypes.data)

    def host_array(self, np_, shape, dtype):
        return np_.zeros(shape, dtype)


def fake_tensorrt(builds: list[bytes], refuses: str = "") -> types.ModuleType:
    """TensorRT's names as 8.5 to 10 have them, around a network y = 2 x of shape (1, 4)."""
    addresses: dict[str, int] = {}

    class Context:
        def get_tensor_shape(self, name):
            return (1, 4)

        def set_tensor_address(self, name, address):
            addresses[name] = address

        def execute_async_v3(self, stream):
            import ctypes

            x = np.ctypeslib.as_array((ctypes.c_float * 4).from_address(addresses["x"]))
            np.ctypeslib.as_array((ctypes.c_float * 4).from_address(addresses["y"]))[:] = 2 * x
            return stream == 7

    class Engine:
        num_io_tensors = 2

        def get_tensor_name(self, place):
            return "xy"[place]

        def get_tensor_dtype(self, name):
            return "DataType.FLOAT"

        def get_tensor_mode(self, name):
            return "in" if name == "x" else "out"

        def create_execution_context(self):
            return Context()

    class Parser:
        num_errors = 1

        def __init__(self, network, log):
            pass

        def parse(self, content):
            return not refuses

        def get_error(self, place):
            return types.SimpleNamespace(desc=lambda: refuses)

    class Builder:
        def __init__(self, log):
            self.flags: list[str] = []

        def create_network(self, flags):
            assert flags == 1
            return "network"

        def create_builder_config(self):
            return types.SimpleNamespace(set_flag=self.flags.append)

        def build_serialized_network(self, network, config):
            builds.append(repr(self.flags).encode())
            return b"engine"

    class Logger:
        Severity = types.SimpleNamespace(ERROR=1)

    found = types.ModuleType("tensorrt")
    found.__dict__.update(
        __version__="10.3.0",
        ILogger=Logger,
        NetworkDefinitionCreationFlag=types.SimpleNamespace(EXPLICIT_BATCH=0),
        OnnxParser=Parser,
        Builder=Builder,
        BuilderFlag=types.SimpleNamespace(FP16="FP16", INT8="INT8"),
        TensorIOMode=types.SimpleNamespace(INPUT="in"),
        Runtime=lambda log: types.SimpleNamespace(
            deserialize_cuda_engine=lambda plan: Engine() if plan == b"engine" else None
        ),
    )
    return found


def fake_layer(name: str, kind: str, dtype: str) -> types.SimpleNamespace:
    layer = types.SimpleNamespace(
        name=name, type=f"LayerType.{kind}", num_outputs=1, precision=None, set_to=[],
        get_output=lambda index: types.SimpleNamespace(dtype=dtype),
    )  # fmt: skip
    layer.set_output_type = lambda index, to: layer.set_to.append((index, to))
    return layer


class TestTensorRt:
    """Against stand-ins: there is no GPU here. What they pin is the order of calls and the cache of engines."""

    @pytest.fixture(autouse=True)
    def stand_ins(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(board_agent.TensorRtNetwork, "_CUDA", FakeCuda())
        self.builds: list[bytes] = []
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(self.builds))
        self.model = tmp_path / "model.onnx"
        self.model.write_bytes(b"a graph")

    def opened(self, *precisions: str):
        return board_agent.TensorRtNetwork(self.model, {"precisions": list(precisions)})

    def test_infers(self):
        network = self.opened("int8", "fp16")
        x = np.array([[1, 2, 3, 4]], np.float32)
        np.testing.assert_array_equal(network.infer({"x": x}, ["y"])[0], 2 * x)
        assert network.inputs == [{"name": "x", "shape": [1, 4], "dtype": "float32"}]
        assert network.conditions()["precisions"] == "fp32+fp16+int8"
        assert self.builds == [b"['FP16', 'INT8']"]

    def test_the_named_nodes_stay_in_float32(self, monkeypatch):
        kinds = [("tail", "ELEMENTWISE", "FLOAT"), ("conv", "CONVOLUTION", "FLOAT"), ("tail/shape", "SHAPE", "INT32"),
                 ("tail/indices", "GATHER", "INT32"), ("tail/constant", "CONSTANT", "FLOAT")]  # fmt: skip
        layers = [fake_layer(*each) for each in kinds]
        network = types.SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
        trt = sys.modules["tensorrt"]
        trt.DataType = types.SimpleNamespace(FLOAT="FLOAT")
        trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS = "PREFER"
        monkeypatch.setattr(trt.Builder, "create_network", lambda builder, flags: network)
        names = [name for name, *_ in kinds if name != "conv"]
        board_agent.TensorRtNetwork(self.model, {"precisions": ["fp16"], "float32": names})
        assert [layer.name for layer in layers if layer.precision == "FLOAT"] == ["tail"]
        assert layers[0].set_to == [(0, "FLOAT")] and not layers[1].set_to
        assert self.builds == [b"['FP16', 'PREFER']"]
        assert board_agent.TensorRtNetwork(self.model, {"precisions": ["fp16"]}).built is True

    def test_builds_once_for_a_graph_and_its_precisions(self):
        assert self.opened("fp16").built is True
        assert self.opened("fp16").built is False
        assert self.opened().built is True
        self.model.write_bytes(b"another graph")
        assert self.opened("fp16").built is True
        assert len(self.builds) == 3

    def test_a_damaged_engine_is_built_again(self, tmp_path):
        self.opened()
        (plan,) = (tmp_path / "cache/qtoolkit/board/engines").glob("*.plan")
        plan.write_bytes(b"engin")
        assert self.opened().built is True
        assert plan.read_bytes() == b"engine"

    def test_another_version_builds_again(self, monkeypatch):
        self.opened()
        monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.7.0")
        assert self.opened().built is True

    def test_what_the_parser_says_is_told(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt([], refuses="Unsupported operator Foo"))
        with pytest.raises(board_agent.Failure, match="Unsupported operator Foo") as caught:
            self.opened()
        assert caught.value.kind == "network"

    def test_the_driver_is_asked_before_tensorrt_is_touched(self, monkeypatch):
        monkeypatch.setattr(board_agent.TensorRtNetwork, "_CUDA", None)
        monkeypatch.setattr(board_agent.ctypes, "CDLL", self._no_library)
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(board_agent.Failure) as caught:
            self.opened()
        assert caught.value.kind == "driver"

    @staticmethod
    def _no_library(name):
        raise OSError(f"{name}: cannot open shared object file")


def test_the_agent_has_no_path_of_this_machine():
    assert str(Path.home()) not in AGENT.read_text()
