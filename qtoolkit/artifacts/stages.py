"""Stages that are not run twice: a record of what a stage was made from, and what it made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qtoolkit.artifacts.files import sha256_file, sha256_json, write_text

__all__ = ["StageStore"]


class StageStore:
    """Records of finished stages in ``folder/.stages``, one small JSON file each.

    A stage is done if its record has the same key (hash of its inputs and options) and the files it made are still
    there with the same content. The record is written last, so a stage that was killed is simply run again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = folder / ".stages"
        self._records.mkdir(exist_ok=True)

    def path(self, *parts: str) -> Path:
        """A path below the store's own folder, whose parents exist: for intermediate files."""
        path = self._records.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def run(self, name: str, inputs: Any, files: Sequence[Path], make: Callable[[], None]) -> bool:
        """Call ``make`` unless stage ``name`` is done for ``inputs`` (JSON values); returns whether it was called.

        ``make`` writes ``files``, each through a temporary name and a rename.
        """
        key = sha256_json(inputs)
        if self._is_done(name, key, files):
            return False
        make()
        made = {self._label(file): sha256_file(file) for file in files}
        write_text(self._record(name), json.dumps({"key": key, "files": made}, indent=1) + "\n")
        return True

    def wrote(self, name: str, file: Path) -> bool:
        """Whether ``file`` is just as stage ``name`` left it: False for a file that somebody else wrote or edited."""
        try:
            record = json.loads(self._record(name).read_text(encoding="utf-8"))
            return bool(record["files"][self._label(file)] == sha256_file(file))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _record(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _label(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def _is_done(self, name: str, key: str, files: Sequence[Path]) -> bool:
        try:
            record = json.loads(self._record(name).read_text(encoding="utf-8"))
            made = {self._label(file): sha256_file(file) for file in files}
        except (OSError, ValueError):
            return False
        return bool(record == {"key": key, "files": made})
