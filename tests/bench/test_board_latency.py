"""Latency on a board over a real ssh server on this machine: equal to here, and whole or clearly failed after cuts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from qtoolkit.backends.board_address import parse_board
from qtoolkit.backends.board_job import BoardJob
from qtoolkit.backends.jetson_ssh import Board
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.bench import board_latency
from qtoolkit.bench.board_latency import measure_on_board
from qtoolkit.bench.latency import measure_latency
from qtoolkit.bench.worker import seeded_feeds
from qtoolkit.errors import QtoolError, UsageError

RUNS = 100
QUICK = {"runs": RUNS, "warmup_s": 0.2, "threads": 1, "runtime": "onnxruntime"}


@pytest.fixture(scope="module")
def networks(tmp_path_factory, tiny_pose_model):
    folder = tmp_path_factory.mktemp("networks")
    for name, activation, size in (("silu", "silu", 256), ("relu", "relu", 128)):
        onnx.save(tiny_pose_model(activation, input_size=size), folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in ("silu", "relu")}


@pytest.fixture(scope="module")
def expected(networks):
    """What the networks give here: label → outputs for each of the seeded inputs."""
    found = {}
    for label, path in networks.items():
        with OnnxRuntimeCpu(path, threads=1) as runner:
            found[label] = [runner.infer(feed) for feed in seeded_feeds(runner.signature.inputs, 0)]
    return found


def check(measured, networks, expected):
    """A result is the whole result: every sample, and the bits that come out here."""
    for label in networks:
        assert measured.results[label].count == RUNS
        assert len(measured.results[label].samples_ms) == RUNS
        for there, here in zip(measured.outputs[label], expected[label], strict=True):
            assert there.keys() == here.keys()
            assert all(np.array_equal(there[name], here[name]) for name in here)


class CuttingProxy:
    """Passes connections on to a port of this machine, until it cuts all of them and lets none in for a while."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._closed_until = 0.0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self, down_s: float) -> None:
        self._closed_until = time.monotonic() + down_s
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut(3600)
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(2)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if time.monotonic() < self._closed_until:
                client.close()
                continue
            other = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((client, other), (other, client)):
                self._open.add(source)
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                sink.sendall(chunk)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()


@pytest.fixture
def proxy(loopback_board):
    found = CuttingProxy(loopback_board.port)
    yield found
    found.close()


def ssh_clients(port: int) -> list[int]:
    """Our ssh processes to that port."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"ssh") and str(port).encode() in words:
                found.append(int(folder.name))
    return found


def agents(board) -> list[int]:
    """The processes at the other end of a connection."""
    lines = board.processes().items()
    return [pid for pid, line in lines if " supervise " not in line and not line.endswith(" work")]


def cut_at(seconds: float, how: str, down_s: float, board, proxy) -> threading.Timer:
    def cut() -> None:
        if how == "proxy":
            proxy.cut(down_s)
        for pid in {"client": ssh_clients(proxy.port), "agent": agents(board)}.get(how, []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(seconds, cut)
    timer.start()
    return timer


@pytest.fixture
def usual_s(loopback_board, networks):
    """How long an undisturbed measurement takes, sending included."""
    forget_files(loopback_board)
    started = time.monotonic()
    measure_on_board(networks, parse_board(loopback_board.device), outputs=True, **QUICK)
    return time.monotonic() - started


def forget_files(board) -> None:
    """So that the networks have to be sent, and a cut can hit that too."""
    for path in (board.cache / "qtoolkit/board/files").glob("*"):
        path.unlink()


def measured_with_a_cut(seed: int, usual_s: float, board, proxy, networks, expected) -> str:
    """One measurement that is cut at a moment drawn from ``seed``; resumed, failed, or nothing lost."""
    draw = random.Random(seed)
    how, seconds, down_s = draw.choice(["proxy", "client", "agent"]), draw.uniform(0, usual_s), draw.uniform(0, 2)
    forget_files(board)
    timer = cut_at(seconds, how, down_s, board, proxy)
    try:
        measured = measure_on_board(networks, parse_board(board.at(proxy.port)), outputs=True, **QUICK)
    except QtoolError as error:
        assert error.do, error
        outcome = f"failed: {error.what}"
    else:
        check(measured, networks, expected)
        outcome = "resumed" if measured.reconnects else "no connection lost"
    finally:
        timer.cancel()
        timer.join()
    # The goodbye may have been what was cut: then the job has to end by itself.
    assert board.ends_within(10), board.processes()
    return outcome


def test_equals_a_measurement_here(loopback_board, networks, expected):
    there = measure_on_board(networks, parse_board(loopback_board.device), outputs=True, **QUICK)
    check(there, networks, expected)
    here = measure_latency(networks, threads=1, runs=RUNS, warmup_s=0.2)
    for label in networks:
        ours, theirs = here[label], there.results[label]
        assert (theirs.target, theirs.device, theirs.version) == (ours.target, ours.device, ours.version)
        assert theirs.options == ours.options and theirs.input_shapes == ours.input_shapes
        assert theirs.measured is True
        # Wide, because other work on this machine moves either.
        assert 0.4 < theirs.p50_ms / ours.p50_ms < 2.5
    assert there.results["relu"].ratio < 1
    assert there.results["silu"].ratio == 1
    assert there.board["cpu"] == here["silu"].device
    assert there.reconnects == 0


def test_inputs_from_a_file(loopback_board, networks, tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (3, 3, 128, 128)).astype(np.float32) / np.float32(255)
    np.save(tmp_path / "photos.npy", photos)
    found = measure_on_board(
        {"relu": networks["relu"]},
        parse_board(loopback_board.device),
        feeds_path=tmp_path / "photos.npy",
        outputs=True,
        **{**QUICK, "runs": 10},
    )
    assert found.results["relu"].inputs == "file"
    with OnnxRuntimeCpu(networks["relu"], threads=1) as runner:
        for place, outputs in enumerate(found.outputs["relu"]):
            here = runner.infer({"images": photos[place : place + 1]})["output0"]
            np.testing.assert_array_equal(outputs["output0"], here)


def test_wrong_counts(networks):
    with pytest.raises(UsageError, match="cannot be measured so"):
        measure_on_board(networks, parse_board("ssh://nobody@nowhere"), runs=3)


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_at_a_random_moment(seed, usual_s, loopback_board, proxy, networks, expected):
    measured_with_a_cut(seed, usual_s, loopback_board, proxy, networks, expected)


@pytest.mark.slow
def test_twenty_cuts_at_random_moments(usual_s, loopback_board, proxy, networks, expected):
    outcomes: Counter[str] = Counter()
    seed = 100
    while sum(outcomes.values()) - outcomes["no connection lost"] < 20:
        outcomes[measured_with_a_cut(seed, usual_s, loopback_board, proxy, networks, expected)] += 1
        seed += 1
        assert seed < 200, outcomes
    assert outcomes["resumed"] >= 18, outcomes


_CLIENT = """
import sys
from qtoolkit.backends.board_address import parse_board
from qtoolkit.bench.board_latency import measure_on_board
measure_on_board({networks}, parse_board({device!r}), outputs=True, **{options})
"""


def killed_client(board, networks, reached, **options):
    """Measure in a process of its own and kill that, whatever it is at, as soon as ``reached()`` is true there."""
    program = f"from pathlib import PosixPath\n{_CLIENT}".format(
        networks=networks, device=board.device, options={**QUICK, **options}
    )
    client = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not reached():
            assert client.poll() is None, client.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        client.kill()
        client.communicate()


def job_files(board, name: str) -> list[dict]:
    found = []
    for folder in board.jobs():
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads((folder / name).read_text()))
    return found


def supervisors(board) -> list[int]:
    return [pid for pid, line in board.processes().items() if " supervise " in line]


class TestKilled:
    """The command here is killed, and given again."""

    RUNS = 1000

    @pytest.fixture
    def relu(self, networks):
        return {"relu": networks["relu"]}

    def is_measuring(self, board) -> bool:
        return any(each["done"] > 0 and each["stage"] == "measuring" for each in job_files(board, "progress.json"))

    def test_a_running_measurement_is_taken_over(self, loopback_board, relu, expected):
        killed_client(loopback_board, relu, lambda: self.is_measuring(loopback_board), runs=self.RUNS)
        (supervisor,) = supervisors(loopback_board)
        seen = []

        def watch(stage: str, done: int, total: int) -> None:
            seen.append((stage, supervisors(loopback_board)))

        options = {**QUICK, "runs": self.RUNS}
        found = measure_on_board(relu, parse_board(loopback_board.device), outputs=True, progress=watch, **options)
        assert found.resumed
        assert {stage for stage, _ in seen if stage not in ("sending",)} <= {"measuring"}
        assert {pid for _, pids in seen for pid in pids} <= {supervisor}, "nothing was started anew"
        assert found.results["relu"].count == self.RUNS
        for label in relu:
            for there, here in zip(found.outputs[label], expected[label], strict=True):
                np.testing.assert_array_equal(there["output0"], here["output0"])

    def test_a_finished_one_is_fetched(self, loopback_board, relu):
        killed_client(loopback_board, relu, lambda: self.is_measuring(loopback_board))
        deadline = time.monotonic() + 120
        while not (results := job_files(loopback_board, "result.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found = measure_on_board(relu, parse_board(loopback_board.device), outputs=True, **QUICK)
        assert found.resumed
        samples_ns = [value for block in results[0]["models"][0]["blocks_ns"] for value in block]
        assert found.results["relu"].samples_ms == tuple(np.array(samples_ns) / 1e6)
        again = measure_on_board(relu, parse_board(loopback_board.device), outputs=True, **QUICK)
        assert not again.resumed, "what was fetched is not kept"

    def test_another_request_is_measured_anew(self, loopback_board, relu):
        killed_client(loopback_board, relu, lambda: self.is_measuring(loopback_board))
        found = measure_on_board(relu, parse_board(loopback_board.device), **{**QUICK, "runs": 20})
        assert not found.resumed and found.results["relu"].count == 20
        with Board(parse_board(loopback_board.device)) as board:
            for folder in loopback_board.jobs():
                board.ask("finish", job=folder.name)


@pytest.fixture
def request_of(networks):
    def make(board, **changes):
        (sha256,) = board.send([networks["relu"]])
        return {"kind": "serve", "runtime": "onnxruntime", "models": [{"sha256": sha256}], **changes}

    return make


def test_one_that_is_asked_for_is_left_to_its_client(loopback_board, request_of, monkeypatch):
    monkeypatch.setattr("qtoolkit.backends.board_job._OWNED_PATIENCE_S", 0.6)
    with Board(parse_board(loopback_board.device)) as board:
        request = request_of(board, queue_s=0.5)
        with BoardJob(board, request, resume=True) as first:
            first.until_done("opened")
            with BoardJob(board, request, resume=True) as second:
                assert second.id != first.id and not second.resumed
                with pytest.raises(QtoolError, match="is busy"):
                    second.until_done("opened")
            assert first.until_done("opened"), "the second one did not end it"


def test_one_that_failed_is_not_taken_over(loopback_board, request_of, monkeypatch):
    with Board(parse_board(loopback_board.device)) as board:
        request = request_of(board, limit_s=0.2)
        left = BoardJob(board, request, resume=True)
        left.__enter__()
        with pytest.raises(QtoolError, match="reached its time limit"):
            left.result()
        os.utime(loopback_board.cache / "qtoolkit/board/jobs" / left.id / "alive", (1, 1))
        with BoardJob(board, request, resume=True) as job:
            assert job.id == left.id and not job.resumed


def test_a_cut_for_good_is_told_and_nothing_goes_on_there(loopback_board, proxy, networks, monkeypatch):
    monkeypatch.setattr(board_latency, "Board", partial(Board, reconnect_s=0.5))
    monkeypatch.setattr("qtoolkit.backends.board_job._GOODBYE_S", 0.2)

    def cut(stage: str, done: int, total: int) -> None:
        if stage == "measuring":
            proxy.cut(3600)

    with pytest.raises(QtoolError, match="was lost and did not come back"):
        measure_on_board(
            networks,
            parse_board(loopback_board.at(proxy.port)),
            limits={"heartbeat_s": 2.0},
            progress=cut,
            **{**QUICK, "runs": 20000},
        )
    assert loopback_board.ends_within(10), loopback_board.processes()
    assert loopback_board.jobs() == []
