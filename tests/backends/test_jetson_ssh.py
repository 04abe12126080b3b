"""A board over a real ssh server on this machine: what arrives, what is said when something is wrong, and cuts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from qtoolkit.backends import jetson_ssh
from qtoolkit.backends.board_address import parse_board
from qtoolkit.backends.board_job import BoardJob, choose_runtime
from qtoolkit.backends.board_runner import BoardRunner
from qtoolkit.backends.jetson_ssh import Board
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.errors import ModelFileError, QtoolError, UnavailableError

SERVE = {"kind": "serve", "runtime": "onnxruntime", "limit_s": 60.0, "heartbeat_s": 60.0}


@pytest.fixture
def board(loopback_board):
    with Board(parse_board(loopback_board.device), reconnect_s=5.0) as found:
        yield found


@pytest.fixture
def network(tiny_pose_model, tmp_path):
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_pose_model(), path)
    return path


def serving(board, network, **changes):
    (sha256,) = board.send([network])
    return BoardJob(board, {**SERVE, "models": [{"sha256": sha256}], **changes})


def python_without(folder: Path, *packages: str, python: str = sys.executable) -> str:
    """An interpreter to which some packages are unknown."""
    folder.mkdir()
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in packages)
    finder = (
        "import sys, importlib.util\n_real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: "
        f"None if name in {packages!r} else _real(name, package)\n"
    )
    (folder / "sitecustomize.py").write_text(finder + blocked)
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {python} "$@"\n')
    path.chmod(0o755)
    return str(path)


class TestFiles:
    def test_arrive_whole_and_are_not_sent_again(self, board, loopback_board):
        content = np.random.default_rng(0).bytes(3_500_000)
        sent: list[tuple[int, int]] = []
        (sha256,) = board.send([content], progress=lambda done, total: sent.append((done, total)))
        stored = loopback_board.cache / "qtoolkit/board/files" / sha256
        assert stored.read_bytes() == content
        assert sent[-1] == (3_500_000, 3_500_000)
        sent.clear()
        board.send([content], progress=lambda done, total: sent.append((done, total)))
        assert sent == []

    def test_a_broken_upload_goes_on_where_it_stopped(self, board, loopback_board):
        content = np.random.default_rng(1).bytes(3_000_000)
        sha256 = jetson_ssh.sha256_bytes(content)
        board.ask("have", files=[])
        folder = loopback_board.cache / "qtoolkit/board/files"
        folder.mkdir(exist_ok=True)
        (folder / f"{sha256}.part").write_bytes(content[:2_000_000])
        sent = []
        board.send([content], progress=lambda done, total: sent.append(total))
        assert sent[-1] == 1_000_000
        assert (folder / sha256).read_bytes() == content
        assert list(folder.glob("*.part")) == []

    def test_a_damaged_part_is_told_and_thrown_away(self, board, loopback_board):
        content = np.random.default_rng(2).bytes(100_000)
        sha256 = jetson_ssh.sha256_bytes(content)
        folder = loopback_board.cache / "qtoolkit/board/files"
        board.ask("have", files=[])
        folder.mkdir(exist_ok=True)
        (folder / f"{sha256}.part").write_bytes(b"x" * 50_000)
        with pytest.raises(QtoolError, match="a file arrived damaged"):
            board.send([content])
        assert not (folder / sha256).exists() and not (folder / f"{sha256}.part").exists()
        board.send([content])
        assert (folder / sha256).read_bytes() == content

    def test_a_file_that_was_damaged_there_is_sent_again(self, board, loopback_board):
        (sha256,) = board.send([b"some network"])
        stored = loopback_board.cache / "qtoolkit/board/files" / sha256
        stored.write_bytes(b"some netw0rk")
        board.send([b"some network"])
        assert stored.read_bytes() == b"some network"


class TestMessages:
    """Each failure has a message of its own."""

    def test_no_ssh_client(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UnavailableError, match="there is no ssh client on this machine"):
            Board(parse_board("ssh://user@board")).ask("hello")

    def test_nobody_answers_there(self, loopback_board):
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=r"127.0.0.1:1 cannot be reached") as caught:
            Board(parse_board(loopback_board.at(1))).ask("hello")
        assert "Connection refused" in str(caught.value)
        assert time.monotonic() - started < 5, "a wrong address is told at once"

    def test_an_unknown_name(self, loopback_board):
        with pytest.raises(UnavailableError, match=r"no-such-host\.invalid cannot be found"):
            Board(parse_board("ssh://user@no-such-host.invalid")).ask("hello")

    def test_the_login_is_refused(self, loopback_board):
        keys = loopback_board.root / "authorized_keys"
        before = keys.read_text()
        try:
            keys.write_text("")
            with pytest.raises(UnavailableError, match="refused the login") as caught:
                Board(parse_board(loopback_board.device)).ask("hello")
        finally:
            keys.write_text(before)
        assert "Permission denied (publickey)" in str(caught.value) and "ssh-copy-id" in str(caught.value)

    @pytest.mark.parametrize(("known", "message"), [("", "is not known"), ("other", "has changed")])
    def test_the_host_key(self, known, message, loopback_board):
        own = (loopback_board.root / "host_key.pub").read_text()
        try:
            loopback_board.trust((loopback_board.root / "user_key.pub").read_text() if known else "")
            with pytest.raises(UnavailableError, match=f"the host key of .* {message}"):
                Board(parse_board(loopback_board.device)).ask("hello")
        finally:
            loopback_board.trust(own)

    def test_no_python_there(self, loopback_board):
        with pytest.raises(UnavailableError, match="there is no usable Python"):
            Board(parse_board(loopback_board.at(loopback_board.port, "/usr/bin/python0"))).ask("hello")

    def test_a_python_that_is_too_old(self, loopback_board, tmp_path):
        old = tmp_path / "python"
        old.write_text("#!/bin/sh\necho 'qtoolkit: Python 3.6' >&2\nexit 1\n")
        old.chmod(0o755)
        with pytest.raises(UnavailableError, match="there is no usable Python") as caught:
            Board(parse_board(loopback_board.at(loopback_board.port, str(old)))).ask("hello")
        assert caught.value.found == "Python 3.6"

    @pytest.mark.parametrize(
        ("missing", "runtime", "message"),
        [
            (("numpy",), None, "numpy is missing"),
            (("onnxruntime",), "onnxruntime", "ONNX Runtime is missing"),
            (("tensorrt",), "tensorrt", "TensorRT is missing"),
            (("onnxruntime", "tensorrt"), None, "has neither TensorRT nor ONNX Runtime"),
        ],
        ids=["numpy", "onnxruntime", "tensorrt", "neither"],
    )
    def test_what_is_missing_there(self, missing, runtime, message, loopback_board, network, tmp_path):
        python = python_without(tmp_path / "without", *missing)
        with pytest.raises(UnavailableError, match=message) as caught:
            BoardRunner(network, device=loopback_board.at(loopback_board.port, python), runtime=runtime).open()
        assert "pip install" in str(caught.value) or "apt install" in str(caught.value)

    def test_a_runtime_that_cannot_be_imported(self, loopback_board, network, tmp_path):
        (tmp_path / "broken/onnxruntime").mkdir(parents=True)
        (tmp_path / "broken/onnxruntime/__init__.py").write_text("raise ImportError('libstdc++ is too old')")
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/broken exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        device = loopback_board.at(loopback_board.port, str(python))
        with pytest.raises(UnavailableError, match="ONNX Runtime is missing") as caught:
            BoardRunner(network, device=device, runtime="onnxruntime").open()
        assert "libstdc++ is too old" in str(caught.value)

    def test_an_agent_of_another_version(self, loopback_board, monkeypatch, tmp_path):
        other = tmp_path / "board_agent.py"
        other.write_bytes(jetson_ssh.AGENT.read_bytes().replace(b"\nVERSION = 1\n", b"\nVERSION = 7\n"))
        board = Board(parse_board(loopback_board.device))
        board._source = other.read_bytes()
        with pytest.raises(UnavailableError, match=r"the agent on .* is of another version") as caught:
            board.ask("hello")
        assert caught.value.found == "version 7 there, 1 here"

    def test_a_request_of_another_version(self, board):
        board.ask("hello")
        board._version = 3
        with pytest.raises(UnavailableError, match="another version"):
            board.ask("hello")

    def test_the_runtime_refuses_the_network(self, board, tmp_path, tiny_pose_model):
        model = tiny_pose_model()
        model.graph.node[0].op_type = "NoSuchOperator"
        with (
            pytest.raises(ModelFileError, match="refuses the network") as caught,
            BoardRunner(model, device=board.address),
        ):
            pass
        assert "NoSuchOperator" in str(caught.value)

    def test_a_job_is_killed(self, board, network, loopback_board):
        with serving(board, network) as job:
            job.until_done("opened")
            (worker,) = [pid for pid, line in loopback_board.processes().items() if line.endswith(" work")]
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(QtoolError, match="was killed"):
                self._infer(board, job)

    def test_the_agent_itself_is_killed(self, board, network, loopback_board):
        with serving(board, network) as job:
            job.until_done("opened")
            (agent,) = [pid for pid, line in loopback_board.processes().items() if " supervise " in line]
            os.kill(agent, signal.SIGKILL)
            with pytest.raises(QtoolError, match="was killed") as caught:
                self._infer(board, job)
            assert "ended without a result" in str(caught.value)
            deadline = time.monotonic() + 5
            while any(line.endswith(" work") for line in loopback_board.processes().values()):
                assert time.monotonic() < deadline, "the worker outlived its supervisor"
                time.sleep(0.05)

    @staticmethod
    def _infer(board, job):
        (feeds,) = board.send([b"not read"], job=job.id)
        job.until_done("infer", task=1, feeds=feeds, outputs=["output0"])

    def test_a_time_limit(self, board, network):
        with serving(board, network, limit_s=0.5) as job, pytest.raises(QtoolError, match="reached its time limit"):
            job.result()

    def test_one_measurement_at_a_time(self, board, network):
        with serving(board, network) as job:
            job.until_done("opened")
            with serving(board, network, queue_s=0.3) as second, pytest.raises(QtoolError, match="is busy"):
                second.until_done("opened")

    def test_a_job_that_was_removed(self, board, network):
        with serving(board, network) as job:
            board.ask("finish", job=job.id)
            with pytest.raises(QtoolError, match="does not know the measurement any more"):
                job.result()

    def test_no_answer(self, loopback_board, tmp_path):
        python, gate = tmp_path / "python", tmp_path / "hangs"
        python.write_text(f'#!/bin/sh\n[ -e {gate} ] && exec sleep 20\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        address = parse_board(loopback_board.at(loopback_board.port, str(python)))
        with Board(address, answer_s=3.0, reconnect_s=0.1) as board:
            board.ask("hello")
            board._answer_s = 0.3
            gate.touch()
            board.close()
            with pytest.raises(UnavailableError, match="was lost and did not come back") as caught:
                board.ask("hello")
        assert "gives no answer" in (caught.value.found or "")
        with (
            Board(address, answer_s=0.3, reconnect_s=0.1) as board,
            pytest.raises(UnavailableError, match=r"127\.0\.0\.1:\d+ gives no answer"),
        ):
            board.ask("hello")
        for pid in loopback_board.processes():  # a shell that hangs before any Python runs is not ours to end
            os.kill(pid, signal.SIGKILL)


class TestFullDisk:
    @pytest.fixture
    def small_disk(self, loopback_board):
        """The board's cache on a file system of 8 MB."""
        folder = loopback_board.cache / "qtoolkit"
        folder.mkdir(exist_ok=True)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False, capture_output=True
        )
        if mounted.returncode:
            pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
        yield folder
        deadline = time.monotonic() + 5
        while subprocess.run(["umount", str(folder)], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def test_is_told_before_anything_is_sent(self, small_disk, loopback_board):
        with Board(parse_board(loopback_board.device)) as board:
            with pytest.raises(QtoolError, match=r"the disk of .* is full") as caught:
                board.send([bytes(20_000_000)])
            assert "24.2 MB are needed" in str(caught.value) and "MB free" in str(caught.value)

    def test_that_fills_up_on_the_way_leaves_no_half_file(self, small_disk, loopback_board, monkeypatch):
        content = np.random.default_rng(0).bytes(3_500_000)
        with Board(parse_board(loopback_board.device)) as board:
            board.ask("have", files=[])
            real = jetson_ssh._part

            def part(file, offset):
                if offset >= 1 << 20:
                    with contextlib.suppress(OSError):
                        (small_disk / "others").write_bytes(bytes(7_500_000))
                return real(file, offset)

            monkeypatch.setattr(jetson_ssh, "_part", part)
            with pytest.raises(QtoolError, match=r"the disk of .* is full"):
                board.send([content])
            monkeypatch.undo()
            assert not any(path.is_file() for path in (small_disk / "board/files").glob("*"))
            (small_disk / "others").unlink()
        monkeypatch.setenv("PATH", f"{loopback_board.root}/bin:{os.environ['PATH']}")
        with Board(parse_board(loopback_board.device)) as board:
            board.send([content])

    def test_that_has_no_byte_left(self, small_disk, loopback_board, network):
        with contextlib.suppress(OSError):
            (small_disk / "others").write_bytes(bytes(9_000_000))
        with pytest.raises(QtoolError, match=r"the disk of .* is full"):
            BoardRunner(network, device=loopback_board.device).open()


class TestConnection:
    def test_what_the_login_prints_is_passed_over(self, loopback_board, tmp_path):
        python = tmp_path / "python"
        python.write_text(
            f'#!/bin/sh\necho "Welcome to the board!"; echo \'{{"agent": 1}}\'\nexec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        with Board(parse_board(loopback_board.at(loopback_board.port, str(python)))) as board:
            assert board.ask("hello")["numpy"] is True

    def test_a_job_goes_on_while_the_connection_is_cut(self, board, network, loopback_board):
        with serving(board, network) as job:
            opened = job.until_done("opened")
            for pid, line in loopback_board.processes().items():
                if " supervise " not in line and not line.endswith(" work"):
                    os.kill(pid, signal.SIGKILL)
            assert job.until_done("opened") == opened
            assert board.reconnects == 1

    def test_a_start_that_is_repeated_starts_once(self, board, network, loopback_board):
        with serving(board, network) as job:
            board.ask("start", job=job.id, **job._request)
            job.until_done("opened")
            assert sum(" supervise " in line for line in loopback_board.processes().values()) == 1

    def test_a_job_nobody_asks_for_ends_by_itself(self, loopback_board, network):
        board = Board(parse_board(loopback_board.device))
        serving(board, network, heartbeat_s=1.0).__enter__()
        board.close()
        assert loopback_board.processes(), "the job outlives its connection"
        assert loopback_board.ends_within(8)
        assert loopback_board.jobs() == []

    def test_control_c_leaves_nothing(self, board, network, loopback_board, monkeypatch):
        with pytest.raises(KeyboardInterrupt), serving(board, network) as job:
            job.until_done("opened")
            raise KeyboardInterrupt
        assert loopback_board.jobs() == []
        board.close()
        assert loopback_board.ends_within(3)

    def test_a_board_that_does_not_come_back(self, loopback_board, network):
        gate = socket.create_server(("127.0.0.1", 0))
        port = gate.getsockname()[1]
        gate.close()
        with Board(parse_board(loopback_board.device), reconnect_s=0.5) as board:
            board.ask("hello")
            board.close()
            board.address = parse_board(loopback_board.at(port))
            with pytest.raises(UnavailableError, match="was lost and did not come back"):
                board.ask("hello")

    def test_the_default_runtime_is_one_that_is_there(self, board):
        runtime, about = choose_runtime(board, None)
        assert runtime == "onnxruntime"
        assert about["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")

    def test_this_machine_needs_no_ssh(self, network, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", "")
        feed = {"images": np.zeros((1, 3, 64, 64), np.float32)}
        with BoardRunner(network) as runner, OnnxRuntimeCpu(network) as local:
            np.testing.assert_array_equal(runner.infer(feed)["output0"], local.infer(feed)["output0"])
