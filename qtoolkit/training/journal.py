"""The log of a training: one JSON object per line, and what a run that goes on does with the lines after its state."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtoolkit.artifacts.files import write_text
from qtoolkit.errors import InputFileError

__all__ = ["Journal", "read_journal"]


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a log. A last line without an end, of a run that was killed while it wrote, is left out.

    Raises InputFileError for a file that cannot be read or is no such log.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError) as error:
        raise InputFileError(
            f"the training log {path} cannot be read", expected="one JSON object per line", found=str(error)[:200]
        ) from error
    return [line for line in lines if isinstance(line, dict)]


class Journal:
    """Appends to ``path``; every line has an ``event`` and the ``step`` it was written after.

    Lines after ``step`` are taken out first: the run goes on from there and will write them again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = [line for line in read_journal(path) if line.get("step", 0) <= step] if path.exists() and step else []
        write_text(path, "".join(_line(entry) for entry in kept))

    def add(self, event: str, step: int, facts: Mapping[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line({"event": event, "step": step, **facts}))


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"
