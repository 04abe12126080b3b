"""Where a board is: ``ssh://user@host[:port][/python]``, read strictly, and whether this machine is one itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qtoolkit.errors import UsageError

__all__ = ["BoardAddress", "is_board_address", "local_board", "parse_board"]

_SCHEME = "ssh://"
# No letter of these means anything to ssh or to a shell, and none of the parts can be taken for an option.
_USER = r"(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@"
_HOST = r"(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])"
_ADDRESS = re.compile(rf"ssh://(?:{_USER})?{_HOST}(?::(?P<port>[0-9]{{1,5}}))?(?P<python>/[A-Za-z0-9._+/-]*)?\Z")
_MODEL = Path("/proc/device-tree/model")


@dataclass(frozen=True)
class BoardAddress:
    """``host`` None means this machine. ``python``: the interpreter on the board, a name or an absolute path.

    ``user`` and ``port`` may be None: then the user's ssh configuration decides, which may also know ``host`` as a
    short name.
    """

    host: str | None
    user: str | None = None
    port: int | None = None
    python: str = "python3"

    def __str__(self) -> str:
        if self.host is None:
            return "this board"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{'' if self.user is None else f'{self.user}@'}{host}{port}"


def is_board_address(device: str) -> bool:
    """Whether ``device`` is meant as an address over ssh."""
    return device.startswith(_SCHEME)


def parse_board(device: str) -> BoardAddress:
    """The address in ``ssh://user@host[:port][/python]``; user may be left out. Raises UsageError for anything else."""
    found = _ADDRESS.match(device)
    port = int(found["port"]) if found and found["port"] else None
    python = (found["python"] or "/python3") if found else ""
    if found is None or (port is not None and not 1 <= port <= 65535) or python.endswith("/") or "//" in python:
        raise UsageError(
            "the address of the board cannot be used",
            expected="ssh://user@host, ssh://user@host:port or ssh://user@host/absolute/path/of/python; letters, "
            "digits and . _ - only, no part beginning with -",
            found=repr(device),
            do="give such an address; anything else belongs into the ssh configuration, as a Host of its own",
        )
    return BoardAddress(
        host=found["host"].strip("[]"),
        user=found["user"],
        port=port,
        python=python if found["python"] else "python3",
    )


def local_board(model: Path = _MODEL) -> str | None:
    """The name of this machine where it is an NVIDIA Jetson, such as "NVIDIA Jetson Orin Nano Developer Kit"."""
    try:
        name = model.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return None
    return name if "jetson" in name.lower() else None
