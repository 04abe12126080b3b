"""Small ONNX networks and a small data set that many tests share, and the folder of real data."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtoolkit.bench.environment import capture_environment
from qtoolkit.data.skeletons import COCO17

KEYPOINTS = 17
BINS = 16
STRIDES = (8, 16, 32)


class NetworkBuilder:
    """Adds nodes one by one; every method returns the name of the tensor it makes. Weights come from ``seed``."""

    def __init__(self, seed: int = 0, activation: str = "silu", batch_norm: bool = True) -> None:
        self.random = np.random.default_rng(seed)
        self.activation = activation
        self.batch_norm = batch_norm
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def node(self, op_type: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> str:
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=f"{outputs[0]}.node", **attributes))
        return outputs[0]

    def weights(self, name: str, shape: tuple[int, ...], fan_in: float) -> str:
        return self.constant(name, self.random.normal(0, np.sqrt(2 / fan_in), shape))

    def plain_conv(
        self, name: str, x: str, c_in: int, c_out: int, *, kernel: int, stride: int = 1, gain: float = 1, bias: Any = 0
    ) -> str:
        """Convolution alone; ``gain`` widens its outputs and ``bias``, one or ``c_out`` values, shifts them."""
        weight = self.weights(f"{name}.weight", (c_out, c_in, kernel, kernel), c_in * kernel**2 / gain**2)
        bias = self.constant(f"{name}.bias", self.random.normal(0, 0.1, c_out) + bias)
        pads, kernel_shape = [kernel // 2] * 4, [kernel] * 2
        output = f"{name}.out"
        self.nodes.append(
            helper.make_node(
                "Conv", [x, weight, bias], [output], name, kernel_shape=kernel_shape, strides=[stride] * 2, pads=pads
            )
        )
        return output

    def act(self, name: str, x: str) -> str:
        if self.activation == "relu":
            return self.node("Relu", [x], f"{name}.act")
        return self.node("Mul", [x, self.node("Sigmoid", [x], f"{name}.sigmoid")], f"{name}.act")

    def conv(self, name: str, x: str, c_in: int, c_out: int, *, kernel: int = 1, stride: int = 1) -> str:
        """Conv, batch norm unless ``batch_norm`` is False, activation."""
        x = self.plain_conv(name, x, c_in, c_out, kernel=kernel, stride=stride)
        return self.act(name, self.norm(f"{name}.bn", x, c_out) if self.batch_norm else x)

    def norm(self, name: str, x: str, channels: int) -> str:
        scale = self.constant(f"{name}.scale", self.random.uniform(0.8, 1.2, channels))
        shift = self.constant(f"{name}.shift", self.random.normal(0, 0.1, channels))
        mean = self.constant(f"{name}.mean", self.random.normal(0, 0.1, channels))
        variance = self.constant(f"{name}.variance", self.random.uniform(0.6, 1.4, channels))
        return self.node("BatchNormalization", [x, scale, shift, mean, variance], f"{name}.out", epsilon=1e-3)

    def model(
        self, inputs: dict[str, Sequence[Any]], outputs: dict[str, Sequence[Any] | None], opset: int = 13
    ) -> onnx.ModelProto:
        values = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in group.items()]
            for group in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "test", values[0], values[1], self.initializers)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
        model.producer_name = "tests"
        return model


def _backbone(net: NetworkBuilder) -> list[tuple[str, int]]:
    """Features at strides 8, 16 and 32: residual add, Split and Concat, SPPF max-pools, Resize and a skip."""
    x = net.conv("stem", "images", 3, 8, kernel=3, stride=2)
    x = net.conv("down4", x, 8, 16, kernel=3, stride=2)
    x = net.conv("c2f.in", x, 16, 16)
    net.node("Split", [x, net.constant("c2f.halves", [8, 8], np.int64)], ["c2f.left", "c2f.right"], axis=1)
    inner = net.conv("c2f.b", net.conv("c2f.a", "c2f.right", 8, 8, kernel=3), 8, 8, kernel=3)
    added = net.node("Add", ["c2f.right", inner], "c2f.add")
    x = net.node("Concat", ["c2f.left", "c2f.right", added], "c2f.concat", axis=1)
    x = net.conv("c2f.out", x, 24, 16)
    level8 = net.conv("down8", x, 16, 24, kernel=3, stride=2)
    level16 = net.conv("down16", level8, 24, 32, kernel=3, stride=2)
    level32 = net.conv("down32", level16, 32, 32, kernel=3, stride=2)
    x = net.conv("sppf.in", level32, 32, 16)
    pool = {"kernel_shape": [5, 5], "strides": [1, 1], "pads": [2, 2, 2, 2]}
    pooled = net.node("MaxPool", [x], "sppf.pool1", **pool)
    pooled2 = net.node("MaxPool", [pooled], "sppf.pool2", **pool)
    x = net.node("Concat", [x, pooled, pooled2], "sppf.concat", axis=1)
    level32 = net.conv("sppf.out", x, 48, 32)
    scales = net.constant("up.scales", [1, 1, 2, 2])
    up = net.node(
        "Resize",
        [level32, "", scales],
        "up",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    level16 = net.conv("neck16", net.node("Concat", [up, level16], "up.concat", axis=1), 64, 32, kernel=3)
    return [(level8, 24), (level16, 32), (level32, 32)]


def _static_anchors(net: NetworkBuilder, input_size: int) -> tuple[str, str]:
    """Cell centres (1, 2, A) in cells, x before y, and strides (1, 1, A)."""
    points, strides = [], []
    for stride in STRIDES:
        cells = np.arange(input_size // stride) + 0.5
        y, x = np.meshgrid(cells, cells, indexing="ij")
        points.append(np.stack([x.ravel(), y.ravel()]))
        strides.append(np.full(x.size, stride))
    return (
        net.constant("anchors", np.concatenate(points, 1)[None]),
        net.constant("strides", np.concatenate(strides)[None, None]),
    )


def _axis_cells(net: NetworkBuilder, prefix: str, features: str, axis: int) -> tuple[str, str]:
    """Cell centres along one axis of ``features`` and their count, computed in the graph from its shape."""
    name = f"{prefix}.{'nchw'[axis]}"
    shape = net.node("Shape", [features], f"{name}.shape")
    count = net.node("Gather", [shape, net.constant(f"{name}.axis", axis, np.int64)], f"{name}.count", axis=0)
    zero, one = net.constant(f"{name}.zero", 0, np.int64), net.constant(f"{name}.one", 1, np.int64)
    cells = net.node("Cast", [net.node("Range", [zero, count, one], f"{name}.range")], f"{name}.cells", to=1)
    centres = net.node("Add", [cells, net.constant(f"{name}.half", 0.5)], f"{name}.centres")
    axis0 = net.constant(f"{name}.axis0", [0], np.int64)
    return centres, net.node("Unsqueeze", [count, axis0], f"{name}.length")


def _dynamic_anchors(net: NetworkBuilder, features: Sequence[str]) -> tuple[str, str]:
    """As ``_static_anchors``, but from the shapes of the feature maps, as exporters with dynamic axes write it."""
    points, strides = [], []
    flat = net.constant("anchors.flat", [1, 1, -1], np.int64)
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        name = f"anchors{level}"
        ys, rows = _axis_cells(net, name, feature, 2)
        xs, columns = _axis_cells(net, name, feature, 3)
        grid = net.node("Concat", [rows, columns], f"{name}.grid", axis=0)
        axes = net.constant(f"{name}.axes", [1], np.int64)
        x = net.node("Expand", [xs, grid], f"{name}.x")
        y = net.node("Expand", [net.node("Unsqueeze", [ys, axes], f"{name}.column"), grid], f"{name}.y")
        halves = [net.node("Reshape", [half, flat], f"{half}.flat") for half in (x, y)]
        points.append(net.node("Concat", halves, f"{name}.xy", axis=1))
        value = numpy_helper.from_array(np.array([stride], dtype=np.float32))
        filled = net.node("ConstantOfShape", [grid], f"{name}.filled", value=value)
        strides.append(net.node("Reshape", [filled, flat], f"{name}.strides"))
    return net.node("Concat", points, "anchors", axis=2), net.node("Concat", strides, "strides", axis=2)


def _pose_head(net: NetworkBuilder, features: Sequence[tuple[str, int]], input_size: int | None) -> None:
    """Boxes by DFL, one score and 17 keypoints per cell, decoded to pixels as YOLOv8-pose does: ``output0``."""
    branches = {"box": 4 * BINS, "score": 1, "keypoints": 3 * KEYPOINTS}
    # Near bins likelier than far ones and scores spread over (0, 1), so that boxes and rankings are worth comparing.
    biases: dict[str, Any] = {"box": np.tile(-0.5 * np.arange(BINS), 4), "score": -2.0, "keypoints": 0.0}
    joined: dict[str, str] = {}
    for branch, channels in branches.items():
        flat: list[str] = []
        for level, (feature, c_in) in enumerate(features):
            name = f"head.{branch}.{level}"
            x = net.conv(f"{name}.0", feature, c_in, 16, kernel=3)
            x = net.plain_conv(f"{name}.1", x, 16, channels, kernel=1, gain=2, bias=biases[branch])
            shape = net.constant(f"{name}.shape", [1, channels, -1], np.int64)
            flat.append(net.node("Reshape", [x, shape], f"{name}.flat"))
        joined[branch] = net.node("Concat", flat, f"{branch}.joined", axis=2)
    static = input_size is not None
    anchors, strides = _static_anchors(net, input_size) if static else _dynamic_anchors(net, [f for f, _ in features])

    bins = net.node(
        "Reshape", [joined["box"], net.constant("dfl.bins.shape", [1, 4, BINS, -1], np.int64)], "dfl.reshape"
    )
    bins = net.node("Softmax", [net.node("Transpose", [bins], "dfl.t", perm=[0, 2, 1, 3])], "dfl.softmax", axis=1)
    weight = net.constant("dfl.conv.weight", np.arange(BINS).reshape(1, BINS, 1, 1))
    expected = net.node("Conv", [bins, weight], "dfl.conv", kernel_shape=[1, 1])
    sides = net.node("Reshape", [expected, net.constant("dfl.shape", [1, 4, -1], np.int64)], "dfl.sides")
    net.node("Split", [sides, net.constant("dfl.halves", [2, 2], np.int64)], ["dfl.lt", "dfl.rb"], axis=1)
    low = net.node("Sub", [anchors, "dfl.lt"], "box.low")
    high = net.node("Add", [anchors, "dfl.rb"], "box.high")
    centre = net.node("Mul", [net.node("Add", [low, high], "box.sum"), net.constant("half", 0.5)], "box.centre")
    size = net.node("Sub", [high, low], "box.size")
    box = net.node("Mul", [net.node("Concat", [centre, size], "box.cells", axis=1), strides], "box.pixels")

    score = net.node("Sigmoid", [joined["score"]], "score.sigmoid")
    keypoints = net.node(
        "Reshape", [joined["keypoints"], net.constant("kp.shape", [1, KEYPOINTS, 3, -1], np.int64)], "kp.reshape"
    )
    net.node("Split", [keypoints, net.constant("kp.parts", [2, 1], np.int64)], ["kp.xy", "kp.conf"], axis=2)
    kp_axes = net.constant("kp.axes", [1], np.int64)
    corner = net.node("Sub", [anchors, net.constant("kp.half", 0.5)], "kp.corner")
    xy = net.node("Mul", ["kp.xy", net.constant("kp.two", 2.0)], "kp.doubled")
    xy = net.node("Add", [xy, net.node("Unsqueeze", [corner, kp_axes], "kp.corner4")], "kp.cells")
    xy = net.node("Mul", [xy, net.node("Unsqueeze", [strides, kp_axes], "kp.strides")], "kp.pixels")
    parts = net.node("Concat", [xy, net.node("Sigmoid", ["kp.conf"], "kp.sigmoid")], "kp.concat", axis=2)
    flat_shape = net.constant("kp.flat.shape", [1, 3 * KEYPOINTS, -1], np.int64)
    keypoints = net.node("Reshape", [parts, flat_shape], "kp.flat")
    net.node("Concat", [box, score, keypoints], "output0", axis=1)


@pytest.fixture(scope="session")
def network_builder() -> type[NetworkBuilder]:
    """The class itself: ``network_builder(seed=1)`` starts a network."""
    return NetworkBuilder


@pytest.fixture(scope="session")
def tiny_pose_model() -> Callable[..., onnx.ModelProto]:
    """Factory of a YOLOv8-pose in small: ``images`` (1, 3, 64, 64) → ``output0`` (1, 56, 84).

    Rows of the output: cx, cy, w, h in pixels, score, 17 × (x, y, confidence). ``activation`` is silu or relu,
    ``batch_norm=False`` writes convolutions that are folded already, ``input_size`` is a multiple of 32.
    """

    def build(
        activation: str = "silu", seed: int = 0, batch_norm: bool = True, input_size: int = 64, opset: int = 13
    ) -> onnx.ModelProto:
        net = NetworkBuilder(seed, activation, batch_norm)
        _pose_head(net, _backbone(net), input_size)
        anchors = sum((input_size // stride) ** 2 for stride in STRIDES)
        return net.model({"images": (1, 3, input_size, input_size)}, {"output0": (1, 56, anchors)}, opset)

    return build


@pytest.fixture(scope="session")
def confident_network(tiny_pose_model: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """The tiny network (ReLU) made sure of what it sees, so that there are people to rank layers by and to agree on."""
    model = tiny_pose_model("relu")
    for tensor in model.graph.initializer:
        raised = re.fullmatch(r"head\.(score|keypoints)\.\d\.1\.bias", tensor.name)
        if raised:
            bias = numpy_helper.to_array(tensor).copy()
            # Of (x, y, confidence) of each keypoint, the confidence alone.
            bias[slice(None) if raised[1] == "score" else slice(2, None, 3)] += {"score": 1, "keypoints": 3}[raised[1]]
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    return model


@pytest.fixture(scope="session")
def dynamic_pose_model() -> Callable[..., onnx.ModelProto]:
    """The same network with batch, height and width left open and its anchors computed from shapes in the graph."""

    def build(activation: str = "silu", seed: int = 0, opset: int = 13) -> onnx.ModelProto:
        net = NetworkBuilder(seed, activation)
        _pose_head(net, _backbone(net), None)
        return net.model({"images": ("batch", 3, "height", "width")}, {"output0": ("batch", 56, "anchors")}, opset)

    return build


@pytest.fixture(scope="session")
def mixed_layers_model() -> Callable[..., onnx.ModelProto]:
    """Every kind of layer: Conv, grouped ConvTranspose, Gemm of both orders, MatMul with its weight on either side.

    ``images`` (1, 3, 16, 16) → ``output0`` (1, 10); ConvTranspose and the first Gemm are followed by batch norms, and
    a MatMul of two activations (an attention) stands in between.
    """

    def build(seed: int = 0, opset: int = 13) -> onnx.ModelProto:
        net = NetworkBuilder(seed, "relu")
        x = net.conv("conv", "images", 3, 8, kernel=3, stride=2)
        weight = net.weights("up.weight", (8, 3, 2, 2), 8)
        bias = net.constant("up.bias", net.random.normal(0, 0.1, 6))
        up = {"kernel_shape": [2, 2], "strides": [2, 2], "group": 2}
        x = net.act("up", net.norm("up.bn", net.node("ConvTranspose", [x, weight, bias], "up.out", **up), 6))
        tokens = net.node("Reshape", [x, net.constant("tokens.shape", [1, 6, 256], np.int64)], "tokens")
        left = net.node("MatMul", [net.weights("left.weight", (5, 6), 6), tokens], "left")
        right = net.node("MatMul", [tokens, net.weights("right.weight", (256, 12), 256)], "right")
        swapped = net.node("Transpose", [left], "left.t", perm=[0, 2, 1])
        attention = net.node("MatMul", [swapped, net.node("MatMul", [left, swapped], "scores")], "attention")
        flat = [net.node("Flatten", [part], f"{part}.flat", axis=1) for part in (attention, right)]
        x = net.node("Concat", flat, "joined", axis=1)
        fan_in = 256 * 5 + 6 * 12
        weight = net.weights("fc1.weight", (20, fan_in), fan_in)
        bias = net.constant("fc1.bias", net.random.normal(0, 0.1, 20))
        x = net.node("Gemm", [x, weight, bias], "fc1.out", transB=1, alpha=0.5, beta=2.0)
        x = net.act("fc1", net.norm("fc1.bn", x, 20))
        net.node("Gemm", [x, net.weights("fc2.weight", (20, 10), 20)], "output0")
        return net.model({"images": (1, 3, 16, 16)}, {"output0": (1, 10)}, opset)

    return build


def write_photo(path: Path, seed: int) -> None:
    """A smooth random photo of 80×60 pixels, another for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", cv2.resize(coarse, (80, 60)))[1].tobytes())


def labels(images: int = 4, **changes: Any) -> dict[str, Any]:
    """COCO labels of photos 1.png, 2.png, … with one person each; ``changes`` go into the first person."""
    people: list[dict[str, Any]] = [
        {
            "id": place,
            "image_id": place,
            "category_id": 1,
            "bbox": [10, 10, 40, 40],
            "area": 1200.0,
            "iscrowd": 0,
            "num_keypoints": 17,
            "keypoints": [value for k in range(17) for value in (12 + 2 * k, 14 + k, 2)],
        }
        for place in range(1, images + 1)
    ]
    people[0] |= changes
    return {
        "images": [{"id": p, "file_name": f"{p}.png", "width": 80, "height": 60} for p in range(1, images + 1)],
        "annotations": people,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.keypoint_names), "skeleton": []}],
    }


def write_data_set(root: Path, document: dict[str, Any] | None = None) -> Path:
    """Four labelled photos to evaluate on, three to calibrate on, a dataset.yaml."""
    for seed in range(1, 5):
        write_photo(root / "val" / f"{seed}.png", seed)
    for seed in range(11, 14):
        write_photo(root / "calib" / f"{seed}.png", seed)
    (root / "val.json").write_text(json.dumps(labels() if document is None else document))
    (root / "dataset.yaml").write_text(
        "kind: coco-keypoints\nname: tiny\nval: {images: val, annotations: val.json}\ncalib: {images: calib}\n"
    )
    return root


@pytest.fixture(scope="session")
def make_labels() -> Callable[..., dict[str, Any]]:
    """``make_labels(images, **changes)``."""
    return labels


@pytest.fixture(scope="session")
def make_data_set() -> Callable[..., Path]:
    """``make_data_set(root, document)``."""
    return write_data_set


@pytest.fixture(scope="session")
def exact_int8() -> bool:
    """Whether ONNX Runtime's 8-bit sums are exact here: x86 without VNNI adds pairs of products in 16 bits, where large
    ones saturate."""
    machine = capture_environment()
    vnni = {"avx_vnni", "avx_vnni_int8", "avx512_vnni", "amx_int8"}
    return machine.architecture not in ("x86_64", "AMD64") or bool(vnni & set(machine.cpu_flags))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real photos and networks beside the checkout; skips the test where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real photos and networks are not there: {folder}")
    return folder


class LoopbackBoard:
    """This machine as a board: an ssh server of its own on a port of 127.0.0.1, its own keys, folders and ssh client.

    ``device`` is its address; its processes are known by the cache folder in their environment.
    """

    def __init__(self, root: Path, server: str) -> None:
        self.root, self.cache, self.server = root, root / "cache", server
        self.cache.mkdir()
        self.port = self._free_port()
        self.user = getpass.getuser()
        for name in ("host_key", "user_key"):
            self._run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name))
        (root / "authorized_keys").write_text((root / "user_key.pub").read_text())
        self.trust((root / "host_key.pub").read_text())
        (root / "bin").mkdir()
        self._write_configuration(shutil.which("ssh") or "ssh")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.root / "sshd.log").open("ab")
        self.process = subprocess.Popen(
            [self.server, "-D", "-e", "-f", str(self.root / "sshd_config")], stdin=subprocess.DEVNULL, stderr=log
        )
        log.close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        pytest.skip(f"the ssh server does not start here: {(self.root / 'sshd.log').read_text()[-300:]}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    @property
    def device(self) -> str:
        return self.at(self.port)

    def at(self, port: int, python: str = sys.executable) -> str:
        return f"ssh://{self.user}@127.0.0.1:{port}{python}"

    def trust(self, host_key: str) -> None:
        """Take ``host_key`` for that of 127.0.0.1, on any port."""
        (self.root / "known_hosts").write_text(f"loopback {' '.join(host_key.split()[:2])}\n" if host_key else "")

    def processes(self) -> dict[int, str]:
        """Process id → command line of whatever runs there, the ssh server itself left out."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"XDG_CACHE_HOME={self.cache}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if line:
                        found[int(folder.name)] = line
        return found

    def ends_within(self, seconds: float) -> bool:
        """Whether nothing runs there any more, at last after ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.processes()

    def jobs(self) -> list[Path]:
        return [path for path in (self.cache / "qtoolkit/board/jobs").glob("*") if path.is_dir()]

    def _write_configuration(self, client: str) -> None:
        root = self.root
        (root / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {root}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {root}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n"
            f"SetEnv XDG_CACHE_HOME={self.cache}\n"
        )
        (root / "ssh_config").write_text(
            f"Host *\n  IdentityFile {root}/user_key\n  IdentitiesOnly yes\n  HostKeyAlias loopback\n"
            f"  UserKnownHostsFile {root}/known_hosts\n  GlobalKnownHostsFile none\n"
        )
        wrapper = root / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {client} -F {root}/ssh_config "$@"\n')
        wrapper.chmod(0o755)

    @staticmethod
    def _free_port() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def _loopback_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackBoard]:
    server = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if server is None or shutil.which("ssh") is None or not Path("/proc/self/environ").exists():
        pytest.skip("no OpenSSH server and client here (`apt install openssh-server openssh-client`)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    board = LoopbackBoard(tmp_path_factory.mktemp("board"), server)
    board.start()
    yield board
    board.stop()


@pytest.fixture
def loopback_board(_loopback_server: LoopbackBoard, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackBoard]:
    """A board over ssh on this machine; nothing of it runs any more and no job is left after the test."""
    board = _loopback_server
    monkeypatch.setenv("PATH", f"{board.root}/bin:{os.environ['PATH']}")
    yield board
    assert board.ends_within(5), board.processes()
    assert board.jobs() == []


@pytest.fixture(scope="session")
def tensorrt_stand_in() -> Any:
    """The module ``tensorrt_stand_in.py`` beside this file."""
    path = Path(__file__).with_name("tensorrt_stand_in.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def install_tensorrt(tensorrt_stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """``install_tensorrt("10.3")``: that version and a GPU seem to be there; returns what the stand-in notes."""

    def install(version: str) -> dict[str, Any]:
        def set_module(name: str, module: Any) -> None:
            monkeypatch.setitem(sys.modules, name, module)

        noted: dict[str, Any] = tensorrt_stand_in.install(version, set_module, monkeypatch.setattr)
        return noted

    return install


@pytest.fixture
def tensorrt_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``tensorrt_in_workers("10.3")``: the stand-in is there in every Python process that is started from now on."""

    def install(version: str) -> None:
        folder = tmp_path / "tensorrt_in_workers"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
            f"import tensorrt_stand_in\ntensorrt_stand_in.install_for_good({version!r})\n"
        )
        root = Path(__file__).resolve().parents[1]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(root)]))

    return install
