"""What can go wrong between here and a board, each with a message of its own and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qtoolkit.backends.board_address import BoardAddress
from qtoolkit.errors import ModelFileError, QtoolError, UnavailableError

__all__ = [
    "ConnectionLost",
    "Unreachable",
    "agent_failure",
    "connection_failure",
    "lost_for_good",
    "no_answer",
    "no_ssh_client",
]


class ConnectionLost(QtoolError):
    """The connection broke; asking again may help."""


class Unreachable(UnavailableError):
    """Nothing answers there. At first that is final; later a board may only be out of reach for a while."""


@dataclass(frozen=True)
class _Row:
    kind: type[QtoolError]
    what: str
    expected: str
    do: str


_CLEAN = "remove ~/.cache/qtoolkit/board there, and run the command again"
_AGENT: Mapping[str, _Row] = {
    "version": _Row(
        UnavailableError, "the agent on {at} is of another version", "the version this qtoolkit sends", _CLEAN
    ),
    "disk": _Row(
        QtoolError,
        "the disk of {at} is full",
        "room for the network, its inputs and the engine",
        "free some space there, or point XDG_CACHE_HOME of that user at a larger disk; nothing half written is used",
    ),
    "numpy": _Row(
        UnavailableError,
        "numpy is missing on {at}",
        "numpy for the Python there",
        "install it there (`python3 -m pip install numpy`), or name another Python: ssh://user@host/path/of/python",
    ),
    "tensorrt": _Row(
        UnavailableError,
        "TensorRT is missing on {at}",
        "the Python package tensorrt, which JetPack brings (python3-libnvinfer)",
        "install it there (`sudo apt install nvidia-jetpack`), name another Python, or give --runtime onnxruntime",
    ),
    "onnxruntime": _Row(
        UnavailableError,
        "ONNX Runtime is missing on {at}",
        "the Python package onnxruntime",
        "install it there (`python3 -m pip install onnxruntime`), name another Python, or give --runtime tensorrt",
    ),
    "runtime": _Row(
        UnavailableError,
        "{at} has neither TensorRT nor ONNX Runtime",
        "the Python package tensorrt (JetPack brings it) or onnxruntime",
        "install one there (`python3 -m pip install onnxruntime`), or name the Python that has it",
    ),
    "driver": _Row(
        UnavailableError,
        "the CUDA driver of {at} does not answer",
        "libcuda.so.1 and a GPU",
        "give --runtime onnxruntime, or let that user use the GPU (groups video and render)",
    ),
    "network": _Row(
        ModelFileError,
        "the runtime of {at} refuses the network",
        "an ONNX network that runtime supports",
        "make one for this target (`qtool quantize --target tensorrt`), or try --runtime onnxruntime",
    ),
    "memory": _Row(
        QtoolError,
        "{at} has not enough memory for this",
        "memory for the network",
        "measure fewer networks at a time, or close what else runs there",
    ),
    "killed": _Row(
        QtoolError,
        "the process on {at} was killed",
        "a process that runs to its end",
        "memory was short most likely (`dmesg` there says so): measure fewer networks at a time",
    ),
    "crashed": _Row(
        QtoolError,
        "the runtime of {at} crashed",
        "a process that runs to its end",
        "try --runtime onnxruntime, to see whether the network or the runtime is at fault",
    ),
    "timeout": _Row(
        QtoolError,
        "the measurement on {at} reached its time limit",
        "an end within the limit",
        "measure fewer networks, fewer --runs or a smaller input",
    ),
    "busy": _Row(
        QtoolError,
        "{at} is busy",
        "no other measurement: two would measure each other",
        "wait for the other one to end",
    ),
    "gone": _Row(
        QtoolError,
        "{at} does not know the measurement any more",
        "a job that was started",
        "run the command again; the job ended there because nobody asked for too long, or its folder was removed",
    ),
    "corrupt": _Row(
        QtoolError,
        "a file arrived damaged on {at}",
        "the checksum of what was sent",
        "run the command again; check the disk of the board",
    ),
    "internal": _Row(
        QtoolError, "the agent on {at} failed", "an answer", "run the command again; report this if it stays so"
    ),
}

# What OpenSSH says → message. Order matters: a changed key is also a failed verification.
_CONNECTION: tuple[tuple[str, str, str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .*has changed",
        "the host key of {at} has changed",
        "the key in known_hosts",
        "find out why (a new system on the board, or another machine that answers), then `ssh-keygen -R HOST`",
    ),
    (
        r"Host key verification failed|No .*host key is known",
        "the host key of {at} is not known",
        "a host whose key is in known_hosts",
        "connect once by hand (`ssh user@host`) and compare the key that is shown",
    ),
    (
        r"Permission denied|Too many authentication failures|no more authentication methods",
        "{at} refused the login",
        "a key that opens it without a password",
        "copy yours there (`ssh-copy-id user@host`), or load it (`ssh-add`); qtool asks for no password",
    ),
    (
        r"Could not resolve|Name or service not known|nodename nor servname",
        "{at} cannot be found",
        "a host name that resolves, or a Host of the ssh configuration",
        "check the name, or give the address in numbers",
    ),
    (
        r"Connection refused|timed out|No route to host|unreachable|Host is down",
        "{at} cannot be reached",
        "a machine that answers ssh there",
        "check that it is on, its address and port, and that its ssh server runs",
    ),
    (
        r"Bad configuration option|Bad owner or permissions|terminating, .*bad configuration",
        "the ssh client refuses its own configuration",
        "an ssh configuration without faults",
        "correct the file it names",
    ),
)


def no_ssh_client(found: str = "none on PATH") -> UnavailableError:
    """There is no ``ssh`` on this machine, or it cannot be run."""
    return UnavailableError(
        "there is no ssh client on this machine",
        expected="the command ssh (OpenSSH)",
        found=found,
        do="install it, such as `apt install openssh-client`",
    )


def agent_failure(address: BoardAddress, kind: str, found: str) -> QtoolError:
    """The error for what the agent told."""
    row = _AGENT.get(kind, _AGENT["internal"])
    return row.kind(row.what.format(at=address), expected=row.expected, found=_plain(found), do=row.do)


def connection_failure(address: BoardAddress, code: int | None, said: str, *, spoke: bool) -> QtoolError:
    """The error for an ssh process that ended with ``code`` and wrote ``said``; ``spoke``: the agent had answered."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    found = _plain(lines[-1]) if lines else f"ssh ended with code {code}"
    if not spoke:
        for pattern, what, expected, do in _CONNECTION:
            hit = re.search(pattern, said, re.IGNORECASE)
            if hit and code == 255:
                line = next((each for each in lines if hit[0] in each), lines[-1])
                kind = Unreachable if "reached" in what else UnavailableError
                return kind(what.format(at=address), expected=expected, found=_plain(line), do=do)
        old = re.search(r"qtoolkit: Python (\S+)", said)
        if old or code in (126, 127):
            return UnavailableError(
                f"there is no usable Python on {address}",
                expected="Python 3.8 or later",
                found=f"Python {old[1]}" if old else found,
                do="name one that is there: ssh://user@host/usr/bin/python3.8",
            )
        if code not in (255, None) and code >= 0:
            return UnavailableError(
                f"the agent could not start on {address}",
                expected=f"that user's shell runs {address.python}",
                found=found,
                do="log in there by hand and run that Python",
            )
    return ConnectionLost(
        f"the connection to {address} was lost", expected="a connection that lasts", found=found, do="try again"
    )


def no_answer(address: BoardAddress, seconds: float) -> ConnectionLost:
    """The connection stands, but nothing comes."""
    return ConnectionLost(
        f"{address} gives no answer", expected=f"an answer within {seconds:g} s", found="none", do="try again"
    )


def lost_for_good(address: BoardAddress, seconds: float, last: QtoolError, *, known: bool) -> QtoolError:
    """The error where a lost connection did not come back; ``known``: there had been one."""
    if not known:
        do = "check the board and the network between; `ssh -v` shows how far it comes"
        return UnavailableError(last.what, expected=last.expected, found=last.found, do=do)
    return UnavailableError(
        f"the connection to {address} was lost and did not come back",
        expected=f"a new connection within {seconds:g} s",
        found=last.what if last.found in (None, "none") else f"{last.what}: {last.found}",
        do="run the command again: what has arrived there is not sent again, and what runs there ends by itself",
    )


def _plain(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
