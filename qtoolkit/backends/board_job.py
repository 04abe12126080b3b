"""A job on a board: it runs there whether the connection stands or not, is asked after, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.backends.board_failures import agent_failure
from qtoolkit.backends.jetson_ssh import Board
from qtoolkit.backends.runner import TensorSpec
from qtoolkit.errors import QtoolError, UsageError

if TYPE_CHECKING:
    # typing.Self needs Python 3.11.
    from typing_extensions import Self

__all__ = [
    "BOARD_RUNTIMES",
    "BoardJob",
    "BoardNetwork",
    "Float32Nodes",
    "choose_runtime",
    "pack_feeds",
    "unpack_outputs",
]

BOARD_RUNTIMES = ("tensorrt", "onnxruntime")

_LIMITS = {"limit_s": 3600.0, "heartbeat_s": 150.0, "queue_s": 60.0}
_ASK_S = 2.0
_GOODBYE_S = 5.0
# Longer than the agent takes a client for alive that does not ask.
_OWNED_PATIENCE_S = 9.0
_OWNED_PAUSE_S = 0.5

Feeds = Sequence[Mapping[str, NDArray[Any]]]
Float32Nodes = Callable[[onnx.ModelProto], Collection[str]]


class BoardNetwork:
    """A network as it is sent: the bytes of its file, what it takes, and ``options``, for TensorRT.

    ``precisions`` are those that TensorRT may use in it; ``float32_nodes``, of the network, tells the nodes that are to
    stay in float32 all the same. Raises UsageError where ``model`` leaves a size open: a board builds for one size.
    """

    def __init__(self, model: Path | bytes | onnx.ModelProto, float32_nodes: Float32Nodes | None = None) -> None:
        self.content, proto = _read(model)
        weights = {tensor.name for tensor in proto.graph.initializer}
        self.inputs = {each.name: _spec(each) for each in proto.graph.input if each.name not in weights}
        self.precisions = _precisions(proto)
        self.float32 = sorted(float32_nodes(proto)) if float32_nodes and self.precisions else []
        for name, spec in self.inputs.items():
            if None in spec.shape:
                raise UsageError(
                    f"input {name!r} has no fixed size",
                    expected="a network with fixed shapes: a board builds it for one size",
                    found=str(spec),
                    do="fix its size with --input-size",
                )

    @property
    def options(self) -> dict[str, list[str]]:
        """What the agent builds an engine with."""
        return {"precisions": self.precisions, "float32": self.float32}


class BoardJob:
    """A job, started on entering and removed on leaving, whatever happened in between.

    ``resume``: the job of the very same request that an earlier process left behind, running or finished, is taken over
    instead; ``resumed`` says so. One whose process still asks for it is left to that, and this one is another job.
    """

    def __init__(self, board: Board, request: Mapping[str, Any], *, resume: bool = False) -> None:
        self.board = board
        self._request = {**_LIMITS, **request}
        self.id = board.content_id(self._request) if resume else uuid.uuid4().hex
        self._request["client"] = uuid.uuid4().hex
        self.resumed = False

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            # The answer may have been lost on its way back.
            self._finish()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()

    def _start(self) -> None:
        patience = time.monotonic() + _OWNED_PATIENCE_S
        while (state := self.board.ask("start", job=self.id, **self._request)["state"]) == "owned":
            if time.monotonic() > patience:
                self.id = uuid.uuid4().hex
            else:
                time.sleep(_OWNED_PAUSE_S)
        self.resumed = state == "taken"

    def result(self, progress: Callable[[Mapping[str, Any]], None] | None = None) -> dict[str, Any]:
        """Wait for the end; ``progress`` is called with the agent's stage, done and total. Raises what failed there."""
        while True:
            answer = self.board.ask("wait", job=self.id, seconds=_ASK_S)
            if answer["state"] == "finished":
                found: dict[str, Any] = json.loads(self.board.fetch(self.id, answer["file"]))
                if "error" in found:
                    raise agent_failure(self.board.address, found["error"]["kind"], found["error"]["found"])
                return found
            if progress is not None and answer.get("progress"):
                progress(answer["progress"])

    def until_done(self, do: str, **parameters: Any) -> dict[str, Any]:
        """Ask the same until its answer is there."""
        while True:
            answer = self.board.ask(do, job=self.id, seconds=_ASK_S, **parameters)
            if answer["state"] == "done":
                return answer

    def fetch_arrays(self, file: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The arrays of an .npz file of the job, by their names."""
        with np.load(BytesIO(self.board.fetch(self.id, file)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def _finish(self) -> None:
        # Where the board cannot be asked any more, the job ends by itself: nobody asks for it.
        with contextlib.suppress(QtoolError):
            self.board.ask("finish", job=self.id, client=self._request["client"], reconnect_s=_GOODBYE_S)


def choose_runtime(board: Board, runtime: str | None) -> tuple[str, dict[str, Any]]:
    """The runtime to use on ``board`` and what the board says of itself.

    ``runtime`` None: TensorRT where it and a driver are there, else ONNX Runtime. Raises UnavailableError where numpy
    or the runtime is missing there, UsageError for an unknown name.
    """
    if runtime is not None and runtime not in BOARD_RUNTIMES:
        raise UsageError(
            "the runtime is none a board can run",
            expected=" or ".join(BOARD_RUNTIMES),
            found=repr(runtime),
            do="choose one with --runtime",
        )
    about = board.ask("hello")
    if not about["numpy"]:
        raise agent_failure(board.address, "numpy", f"Python {about['python']} without it")
    if runtime is None:
        usable = [name for name in BOARD_RUNTIMES if about[name] and (name != "tensorrt" or about["driver"])]
        if not usable:
            raise agent_failure(board.address, "runtime", f"Python {about['python']} without either")
        return usable[0], about
    if not about[runtime]:
        raise agent_failure(board.address, runtime, f"Python {about['python']} without it")
    return runtime, about


def pack_feeds(feeds: Feeds, names: Sequence[str]) -> bytes:
    """Feeds as the bytes of an .npz file: arrays ``number.input``.

    Images, float32 that are k / 255, travel as the bytes k (``.u8``): a quarter, and the same bits on arrival.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for number, feed in enumerate(feeds):
        for place, name in enumerate(names):
            array = feed[name]
            packed = _as_bytes(array)
            arrays[f"{number}.{place}" + (".u8" if packed is not None else "")] = array if packed is None else packed
    stream = BytesIO()
    # numpy 1.26 would take any further keyword for an array of that name.
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def unpack_outputs(arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> list[dict[str, NDArray[Any]]]:
    """Arrays ``number.output`` as one dict per feed."""
    found: list[dict[str, NDArray[Any]]] = []
    while f"{len(found)}.0" in arrays:
        found.append({name: arrays[f"{len(found)}.{place}"] for place, name in enumerate(names)})
    return found


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8] | None:
    if array.dtype != np.float32 or array.size == 0 or not (array.min() >= 0 and array.max() <= 1):
        return None
    packed = np.rint(array * np.float32(255)).astype(np.uint8)
    return packed if np.array_equal(np.divide(packed, np.float32(255)), array) else None


def _read(model: Path | bytes | onnx.ModelProto) -> tuple[bytes, onnx.ModelProto]:
    if isinstance(model, onnx.ModelProto):
        return model.SerializeToString(deterministic=True), model
    if isinstance(model, bytes):
        return model, onnx.load_from_string(model)
    proto = onnx.load(str(model), load_external_data=False)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        proto = onnx.load(str(model))
        return proto.SerializeToString(deterministic=True), proto
    return model.read_bytes(), proto


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
    return TensorSpec(shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))


def _precisions(proto: onnx.ModelProto) -> list[str]:
    """What a weakly typed TensorRT network is allowed: with Q/DQ int8, and fp16 for the layers in between."""
    half = onnx.TensorProto.FLOAT16
    if any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        return ["fp16", "int8"]
    casts = (each for node in proto.graph.node if node.op_type == "Cast" for each in node.attribute)
    has_half = any(each.name == "to" and each.i == half for each in casts)
    return ["fp16"] if has_half or any(tensor.data_type == half for tensor in proto.graph.initializer) else []
