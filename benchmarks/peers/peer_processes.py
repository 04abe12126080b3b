"""Environments of the tools, and their processes: how long one ran and the most memory it held."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qtoolkit
from qtoolkit.artifacts.files import sha256_file, write_text

PROC = Path("/proc")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
POLL_S = 0.05
PYTHON_NAMES = ("python3.11", "python3")
STAMP = ".peers-ready"


class NotRun(RuntimeError):
    """A tool or a network could not be used; the message is the reason that the table gives."""


@dataclass(frozen=True)
class Finished:
    """What a process left: its last line as JSON, and what it took, its children included.

    ``cpu_seconds`` is processor time of all cores: it hardly moves with what else the machine does, unlike the wall
    ``seconds``. ``peak_rss_mb`` in 10⁶ bytes; None where the system does not tell either.
    """

    answer: dict[str, Any]
    seconds: float
    cpu_seconds: float | None
    peak_rss_mb: float | None


def find_python(given: str | None) -> str:
    """The interpreter that environments are built with: the pins are those of Python 3.11."""
    for name in (given,) if given else PYTHON_NAMES:
        found = shutil.which(name)
        if found:
            return found
    return sys.executable


def prepare_venv(folder: Path, requirements: Path, python: str, log: Path) -> Path:
    """The interpreter of an environment: built where there is none, and left as it is where there is one.

    An environment of an older requirement file is used as well, since it may be the user's own: every row says the
    version that ran. Raises NotRun where it cannot be built; what was built until then is removed.
    """
    executable = folder / "bin" / "python"
    if executable.exists():
        return executable
    install = [str(executable), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with log.open("w", encoding="utf-8") as stream:
        for command in ([python, "-m", "venv", str(folder)], [*install, "-r", str(requirements)]):
            if subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode:
                shutil.rmtree(folder, ignore_errors=True)
                raise NotRun(f"its environment cannot be built: {last_words(log.read_text('utf-8', 'replace'))}")
    write_text(folder / STAMP, sha256_file(requirements) + "\n")
    return executable


def run_process(command: Sequence[str], cwd: Path, log: Path, timeout_s: float, *, own: bool = False) -> Finished:
    """Run a command to its end in a group of its own. ``own``: with this qtoolkit on its path, else with none.

    Raises NotRun where it fails, takes longer than ``timeout_s`` or does not answer in JSON.
    """
    started, cpu_before = time.perf_counter(), _children_cpu_s()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(own), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            peak_bytes = _watch(process, started + timeout_s)
        except BaseException:
            _end(process)
            raise
    seconds, cpu_after = time.perf_counter() - started, _children_cpu_s()
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise NotRun(f"{how}: {last_words(text)}")
    try:
        answer = json.loads(text.rstrip().rsplit("\n", 1)[-1])
    except ValueError as error:
        raise NotRun(f"no answer: {last_words(text)}") from error
    cpu_s = None if cpu_before is None or cpu_after is None else round(cpu_after - cpu_before, 2)
    return Finished(answer, seconds, cpu_s, peak_bytes / 1e6 if peak_bytes else None)


def environment(own: bool) -> Mapping[str, str]:
    """This process's environment; PYTHONPATH leads to this qtoolkit for qtool's own script and is absent for others."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PYTHONPATH": str(Path(qtoolkit.__file__).resolve().parents[1])} if own else kept


def last_words(text: str, limit: int = 200) -> str:
    """The last line that says something: an exception's, or that of a message whose details are indented below it."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("WARNING", "[notice]"))]
    headings = [line for line in lines if not line[0].isspace()] or lines
    return headings[-1].strip()[:limit] if headings else "it said nothing"


def tree_rss_bytes(pid: int, proc: Path = PROC) -> int:
    """Memory that a process and its children hold now; pages that they share count for each. 0 where it has ended."""
    return sum(_rss_bytes(each, proc) for each in _tree(pid, proc))


def peak_rss_bytes(pid: int, proc: Path = PROC) -> int:
    """Most memory that a process alone has held (VmHWM); 0 where it has ended or the system does not tell."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", _text(proc / str(pid) / "status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _children_cpu_s() -> float | None:
    """User and system time of all children that have ended; one runs at a time, so the difference is that one's."""
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(process: subprocess.Popen[bytes], deadline: float) -> int:
    # Not rusage: that of a child counts what its parent held when it forked.
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_rss_bytes(process.pid), peak_rss_bytes(process.pid))
        if time.perf_counter() > deadline:
            raise NotRun("it took longer than --timeout allows")
        time.sleep(POLL_S)
    return peak


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _tree(pid: int, proc: Path) -> Iterator[int]:
    yield pid
    for task in sorted((proc / str(pid) / "task").glob("*/children")):
        for child in _text(task).split():
            yield from _tree(int(child), proc)


def _rss_bytes(pid: int, proc: Path) -> int:
    words = _text(proc / str(pid) / "statm").split()
    return int(words[1]) * PAGE_BYTES if len(words) > 1 else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
