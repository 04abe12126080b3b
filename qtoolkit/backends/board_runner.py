"""A network on a board, as a runner like any other: calls from several threads travel together as one batch."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.backends.board_address import BoardAddress, parse_board
from qtoolkit.backends.board_job import BoardJob, BoardNetwork, Float32Nodes, choose_runtime, pack_feeds, unpack_outputs
from qtoolkit.backends.jetson_ssh import Board
from qtoolkit.backends.runner import Condition, Runner, Signature, TensorSpec
from qtoolkit.errors import UsageError

__all__ = ["BATCH", "BoardRunner"]

BATCH = 8
"""Inferences that travel together at most."""

_GATHER_S = 0.03
_IDLE_S = 20.0
_FACTS = ("runtime", "version", "provider", "threads")


class _Call:
    def __init__(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> None:
        self.feeds = feeds
        self.outputs = tuple(outputs)
        self.future: Future[list[NDArray[Any]]] = Future()


class BoardRunner(Runner):
    """An ONNX network on a board. ``device``: an address, ``ssh://…``, or None for this machine.

    ``runtime``: tensorrt or onnxruntime there; None takes TensorRT where it is. ``threads``: of ONNX Runtime.
    ``float32_nodes``: of the network, the nodes that TensorRT must not lower (``graph.layer_precisions``).
    ``infer`` may be called from several threads at once, and should be: up to ``batch`` calls make one round trip.
    """

    name = "board"

    def __init__(
        self,
        model: Path | bytes | onnx.ModelProto,
        *,
        device: str | BoardAddress | None = None,
        runtime: str | None = None,
        threads: int | None = None,
        batch: int = BATCH,
        float32_nodes: Float32Nodes | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self.address = parse_board(device) if isinstance(device, str) else device or BoardAddress(None)
        self._runtime = runtime
        self._threads = threads
        self._batch = batch
        self._float32_nodes = float32_nodes
        self._running: contextlib.ExitStack | None = None
        self._board: Board | None = None
        self._job: BoardJob | None = None
        self._described: dict[str, Any] = {}
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._sender: threading.Thread | None = None
        self._task = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What the board said of itself when the network was opened: name, power mode, clocks, temperatures, …"""
        return dict(self._described.get("board", {}))

    def conditions(self) -> dict[str, Condition]:
        """Those of the runtime there, and the board's name and power mode."""
        found = dict(self._described.get("conditions") or dict.fromkeys(_FACTS))
        board = self.facts
        return {**found, "device": board.get("model") or board.get("cpu"), "power_mode": board.get("power_mode")}

    def _open(self) -> Signature:
        network = BoardNetwork(self._model, self._float32_nodes)
        self._running = contextlib.ExitStack()
        self._board = self._running.enter_context(Board(self.address))
        runtime, _ = choose_runtime(self._board, self._runtime)
        (sha256,) = self._board.send([network.content])
        request = {
            "kind": "serve",
            "runtime": runtime,
            "threads": self._threads,
            "limit_s": 12 * 3600.0,
            "models": [{"sha256": sha256, "options": network.options}],
        }
        self._job = self._running.enter_context(BoardJob(self._board, request))
        self._described = self._job.until_done("opened")
        self._task = 0
        self._calls = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_calls, args=(self._calls,), daemon=True)
        self._sender.start()
        return Signature(
            inputs={each["name"]: _spec(each) for each in self._described["inputs"]},
            outputs={each["name"]: _spec(each) for each in self._described["outputs"]},
        )

    def _infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Sequence[NDArray[Any]]:
        call = _Call(feeds, outputs)
        self._calls.put(call)
        return call.future.result()

    def _close(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            self._calls.put(None)
            sender.join()
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _send_calls(self, calls: queue.SimpleQueue[_Call | None]) -> None:
        """The one thread that talks to the board while the runner is open."""
        ends = False
        while not ends:
            try:
                first = calls.get(timeout=_IDLE_S)
            except queue.Empty:
                self._stay_alive()
                continue
            batch = [] if first is None else [first]
            ends = first is None or self._gather(calls, batch)
            for outputs in dict.fromkeys(call.outputs for call in batch):
                self._answer([call for call in batch if call.outputs == outputs], outputs)

    def _gather(self, calls: queue.SimpleQueue[_Call | None], batch: list[_Call]) -> bool:
        """Add to ``batch`` what comes soon; whether the end came."""
        deadline = time.monotonic() + _GATHER_S
        while len(batch) < self._batch:
            try:
                call = calls.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return False
            if call is None:
                return True
            batch.append(call)
        return False

    def _stay_alive(self) -> None:
        # A failure shows at the next inference.
        with contextlib.suppress(Exception):
            if self._board is not None and self._job is not None:
                self._board.ask("wait", job=self._job.id, seconds=0)

    def _answer(self, batch: Sequence[_Call], outputs: Sequence[str]) -> None:
        try:
            answers = self._round_trip([call.feeds for call in batch], outputs)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that asked
            for call in batch:
                call.future.set_exception(error)
        else:
            for call, answer in zip(batch, answers, strict=True):
                call.future.set_result([answer[name] for name in outputs])

    def _round_trip(
        self, feeds: Sequence[Mapping[str, NDArray[Any]]], outputs: Sequence[str]
    ) -> list[dict[str, NDArray[Any]]]:
        board, job = self._board, self._job
        if board is None or job is None:
            raise UsageError("the runner is closed", expected="an open runner", found="none", do="call open()")
        names = [each["name"] for each in self._described["inputs"]]
        (sha256,) = board.send([pack_feeds(feeds, names)], job=job.id)
        self._task += 1
        answer = job.until_done("infer", task=self._task, feeds=sha256, outputs=list(outputs))
        return unpack_outputs(job.fetch_arrays(answer["file"]), outputs)


def _spec(about: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(tuple(about["shape"]), np.dtype(about["dtype"]))
