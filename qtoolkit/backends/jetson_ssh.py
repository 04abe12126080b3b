"""A board over ssh: the one door to the ``ssh`` command.

:class:`Board` sends requests to the agent (``board_agent.py``), which it brings along, and asks again after a cut:
every request may be repeated. OpenSSH is run with the user's own configuration and never asks anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from qtoolkit.artifacts.files import sha256_bytes, sha256_file
from qtoolkit.backends.board_address import BoardAddress
from qtoolkit.backends.board_failures import (
    ConnectionLost,
    Unreachable,
    agent_failure,
    connection_failure,
    lost_for_good,
    no_answer,
    no_ssh_client,
)

if TYPE_CHECKING:
    # typing.Self needs Python 3.11.
    from typing_extensions import Self

__all__ = ["AGENT", "Board"]

AGENT = Path(__file__).with_name("board_agent.py")
"""The file that is sent to the board."""

_CHUNK_BYTES = 1 << 20
_NOISE_BYTES = 1 << 16
_GRACE_S = 1.0
# No quotes and no signs that mean something to a shell between single quotes, in csh either.
_BOOT = (
    'import sys;sys.path[:1]==[""] and sys.path.pop(0);b=getattr(sys.stdin,"buffer",sys.stdin);'
    'sys.version_info>=(3,8) or sys.exit("qtoolkit: Python %d.%d"%sys.version_info[:2]);'
    's=b.read(int(b.readline()));exec(compile(s,"board_agent.py","exec"),{"__name__":"__main__","SOURCE":s})'
)
_SSH_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    # A line that went dead without a word is noticed in 15 s, at both ends.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    # What the user's configuration may say and would be in the way.
    "LogLevel": "ERROR",
    "ClearAllForwardings": "yes",
    "RemoteCommand": "none",
}


class _Link:
    """One ssh process with the agent at its other end. Any error makes it useless: close it and make another."""

    def __init__(self, address: BoardAddress, source: bytes) -> None:
        self._address = address
        self._chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._waiting = b""
        self._spoke = False
        command = _command(address)
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() does
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                # Ctrl-C is for qtool, which then tells the board to stop over a connection of its own.
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise no_ssh_client(error.strerror or str(error)) from error
        # A thread of its own, since a pipe cannot be read with a time limit on every system.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._source = source

    def greet(self, timeout_s: float) -> dict[str, Any]:
        """Send the agent and wait for its first words, over what the login may print by itself."""
        self._write(b"%d\n%s" % (len(self._source), self._source))
        noise = 0
        while noise < _NOISE_BYTES:
            line = self._line(timeout_s)
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and answer.get("agent") == "qtoolkit-board":
                    self._spoke = True
                    return answer
            noise += len(line)
        raise connection_failure(self._address, 1, "the login prints without end", spoke=False)

    def exchange(self, request: Mapping[str, Any], content: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """One request and its answer, with the bytes behind either."""
        behind = {"bytes_behind": len(content)} if content else {}
        self._write(json.dumps({**request, **behind}).encode("ascii") + b"\n" + content)
        answer: dict[str, Any] = json.loads(self._line(timeout_s))
        count = int(answer.get("bytes_behind", 0))
        while len(self._waiting) < count:
            self._more(timeout_s)
        found, self._waiting = self._waiting[:count], self._waiting[count:]
        return answer, found

    def close(self) -> None:
        """End the process, whatever state it is in."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_GRACE_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def _write(self, content: bytes) -> None:
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(content)
                self._process.stdin.flush()
        except OSError as error:
            raise self._lost() from error

    def _line(self, timeout_s: float) -> bytes:
        while b"\n" not in self._waiting:
            self._more(timeout_s)
        line, _, self._waiting = self._waiting.partition(b"\n")
        return line

    def _more(self, timeout_s: float) -> None:
        try:
            chunk = self._chunks.get(timeout=timeout_s)
        except queue.Empty as error:
            raise no_answer(self._address, timeout_s) from error
        if not chunk:
            self._chunks.put(b"")
            raise self._lost()
        self._waiting += chunk

    def _read(self) -> None:
        stream = self._process.stdout
        while stream is not None:
            chunk = os.read(stream.fileno(), 1 << 18)
            self._chunks.put(chunk)
            if not chunk:
                return

    def _lost(self) -> Exception:
        try:
            code: int | None = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            code = None
        self._stderr.seek(0)
        said = self._stderr.read(_NOISE_BYTES).decode("utf-8", "replace")
        return connection_failure(self._address, code, said, spoke=self._spoke)


class Board:
    """The agent on a board. Use it inside ``with``; leaving ends the connection.

    ``reconnect_s``: how long a lost connection is tried again. ``answer_s``: how long any one answer may take.
    """

    def __init__(self, address: BoardAddress, *, reconnect_s: float = 60.0, answer_s: float = 30.0) -> None:
        self.address = address
        self.reconnects = 0
        self._reconnect_s = reconnect_s
        self._answer_s = answer_s
        self._source = AGENT.read_bytes()
        self._version = int(re.findall(rb"^VERSION = (\d+)$", self._source, re.MULTILINE)[0])
        self._link: _Link | None = None
        self._known = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. The next request makes another one."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def ask(self, do: str, *, reconnect_s: float | None = None, **parameters: Any) -> dict[str, Any]:
        """The agent's answer to one request; made again after a cut. Raises what ``board_failures`` lists."""
        return self._ask({"do": do, **parameters}, reconnect_s=reconnect_s)[0]

    def content_id(self, request: Mapping[str, Any]) -> str:
        """The same name for the same request to the same agent, whoever asks."""
        agent = sha256_bytes(self._source)
        return sha256_bytes(json.dumps([agent, request], sort_keys=True).encode("ascii"))[:32]

    def send(
        self,
        files: Sequence[Path | bytes],
        *,
        job: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Bring files to the board, under the SHA-256 of their content, and return those.

        What is there already is not sent, what was cut off goes on where it stopped. ``job``: into that job's folder,
        instead of the one that is kept. ``progress``: bytes sent, bytes to send.
        """
        named = [_described(each) for each in files]
        where: dict[str, Any] = {} if job is None else {"job": job}
        offsets = self.ask("have", files=named, **where)["offsets"]
        total = sum(each["size"] - offset for each, offset in zip(named, offsets, strict=True))
        sent = 0
        for file, about, start in zip(files, named, offsets, strict=True):
            offset = start
            while offset < about["size"]:
                content = _part(file, offset)
                answer, _ = self._ask({"do": "put", **about, **where, "offset": offset}, content)
                sent += max(0, answer["offset"] - offset)
                offset = answer["offset"]
                if progress is not None:
                    progress(min(sent, total), total)
        return [each["sha256"] for each in named]

    def fetch(self, job: str, file: Mapping[str, Any]) -> bytes:
        """A file of a job: ``file`` holds its name, size and sha256, as the agent told them."""
        content = b""
        while len(content) < file["size"]:
            request = {"do": "get", "job": job, "name": file["name"], "offset": len(content), "bytes": _CHUNK_BYTES}
            part = self._ask(request)[1]
            if not part:
                break
            content += part
        if sha256_bytes(content) != file["sha256"]:
            raise agent_failure(self.address, "corrupt", f"{file['name']}: another checksum here than there")
        return content

    def _ask(
        self, request: Mapping[str, Any], content: bytes = b"", *, reconnect_s: float | None = None
    ) -> tuple[dict[str, Any], bytes]:
        patience_s = self._reconnect_s if reconnect_s is None else reconnect_s
        deadline: float | None = None
        pause_s = 0.1
        while True:
            try:
                return self._once(request, content)
            except (ConnectionLost, Unreachable) as error:
                if isinstance(error, Unreachable) and not self._known:
                    raise
                now = time.monotonic()
                deadline = now + patience_s if deadline is None else deadline
                if now >= deadline:
                    raise lost_for_good(self.address, patience_s, error, known=self._known) from error
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 3.0)

    def _once(self, request: Mapping[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            link = self._connected()
            patience_s = self._answer_s + float(request.get("seconds", 0))
            answer, behind = link.exchange({**request, "version": self._version}, content, patience_s)
        except BaseException:
            # Also after Ctrl-C: half an answer may be under way, which the next request must not take for its own.
            self.close()
            raise
        if "error" in answer:
            raise agent_failure(self.address, answer["error"]["kind"], answer["error"]["found"])
        return answer, behind

    def _connected(self) -> _Link:
        if self._link is None:
            self._link = _Link(self.address, self._source)
            greeting = self._link.greet(self._answer_s)
            if greeting.get("version") != self._version:
                found = f"version {greeting.get('version')} there, {self._version} here"
                raise agent_failure(self.address, "version", found)
            self.reconnects += self._known
            self._known = True
        return self._link


def _command(address: BoardAddress) -> list[str]:
    if address.host is None:
        return [sys.executable, "-c", _BOOT]
    client = shutil.which("ssh")
    if client is None:
        raise no_ssh_client()
    options = [word for name, value in _SSH_OPTIONS.items() for word in ("-o", f"{name}={value}")]
    user = [] if address.user is None else ["-l", address.user]
    port = [] if address.port is None else ["-p", str(address.port)]
    # ssh hands one line to the shell there: every word of it is quoted.
    return [client, "-T", *options, *user, *port, "--", address.host, shlex.join([address.python, "-c", _BOOT])]


def _described(file: Path | bytes) -> dict[str, Any]:
    if isinstance(file, bytes):
        return {"sha256": sha256_bytes(file), "size": len(file)}
    return {"sha256": sha256_file(file), "size": file.stat().st_size}


def _part(file: Path | bytes, offset: int) -> bytes:
    if isinstance(file, bytes):
        return file[offset : offset + _CHUNK_BYTES]
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(_CHUNK_BYTES)
