"""The parent's side of a worker: a process that holds one variant, is asked by lines of JSON, and always ends."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import qtoolkit
from qtoolkit import errors
from qtoolkit.errors import QtoolError, UnavailableError, UsageError

__all__ = ["WorkerProcess"]

_GRACE_S = 2.0


class WorkerProcess:
    """A running :mod:`qtoolkit.bench.worker`; leaving the ``with`` block ends it whatever state it is in."""

    def __init__(self, label: str, *, timeout_s: float) -> None:
        self.label = label
        self._timeout_s = timeout_s
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[bytes] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> WorkerProcess:
        self._stderr = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qtoolkit.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=_worker_environment(),
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._stderr.close()
            raise UnavailableError(
                f"no process could be started to measure variant {self.label!r}",
                expected="one more Python process",
                found=error.strerror or str(error),
                do="close other programs, or measure fewer variants at a time",
            ) from error
        # A thread of its own, since a pipe cannot be read with a time limit on every system.
        self._reader = threading.Thread(target=self._read_answers, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is not None:
            if kind is not None:
                process.kill()
            with contextlib.suppress(OSError):
                self._stdin.close()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if self._reader is not None:
                self._reader.join()
            if process.stdout is not None:
                process.stdout.close()
        if self._stderr is not None:
            self._stderr.close()

    def ask(self, do: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises the error the worker reports, and QtoolError where it died or gave no answer in ``timeout_s``.
        """
        try:
            self._stdin.write(json.dumps({"do": do, **parameters}) + "\n")
            self._stdin.flush()
        except OSError as error:
            raise self._lost("it ended before its turn") from error
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty as error:
            raise self._lost(f"no answer to {do!r} in {self._timeout_s:g} s") from error
        if not line:
            raise self._lost(f"it ended during {do!r}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _reported(self.label, answer)
        return answer

    @property
    def _stdin(self) -> IO[str]:
        if self._process is None or self._process.stdin is None:
            raise UsageError(
                "the worker is not running", expected="a started worker", found="none", do="use it inside `with`"
            )
        return self._process.stdin

    def _read_answers(self, stream: IO[str]) -> None:
        for line in stream:
            self._answers.put(line)
        self._answers.put("")

    def _lost(self, how: str) -> QtoolError:
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(0.5)
        said = ""
        if self._stderr is not None:
            self._stderr.seek(0)
            said = self._stderr.read().decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        state = "still running" if code is None else f"exit code {code}"
        return QtoolError(
            f"the process that measures variant {self.label!r} was lost: {how}",
            expected="an answer",
            found=f"{state}{'; ' + said if said else ''}",
            do="run the network alone with `qtool bench` to see whether the runtime or memory fails",
        )


def _reported(label: str, answer: Mapping[str, Any]) -> QtoolError:
    kind = getattr(errors, answer["error"])
    error: QtoolError = kind(
        f"variant {label!r}: {answer['what']}", expected=answer["expected"], found=answer["found"], do=answer["do"]
    )
    return error


def _worker_environment() -> dict[str, str]:
    """This process's environment, changed so that the worker imports this very package and nothing of the folder."""
    package_root = str(Path(qtoolkit.__file__).resolve().parents[1])
    paths = [package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
