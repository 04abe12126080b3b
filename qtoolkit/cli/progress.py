"""Progress on stderr: bars on a terminal, one plain line per stage elsewhere, nothing with ``--quiet``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["StageProgress", "one_stage", "show_progress"]

StageProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total), as ``qtoolkit.pipeline`` does."""

_SHORT_S = 2.0


@contextlib.contextmanager
def show_progress(quiet: bool) -> Iterator[StageProgress]:
    """What a long call reports its progress to; whatever it shows is closed before a result is printed."""
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with contextlib.closing(_Bars()) as bars:
            yield bars.show
    else:
        yield _Lines().show


def one_stage(progress: StageProgress, stage: str) -> Callable[[int, int], None]:
    """The same for a call that knows of no stages, and reports (done, total)."""
    return lambda done, total: progress(stage, done, total)


class _Lines:
    """A line where a stage begins: what a log file can bear."""

    def __init__(self) -> None:
        self._begun: set[str] = set()

    def show(self, stage: str, done: int, total: int) -> None:
        if stage not in self._begun:
            self._begun.add(stage)
            click.echo(f"{stage} ({total}) …", err=True)


class _Bars:
    """A bar for each stage, from the time on when the command has lasted two seconds."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def show(self, stage: str, done: int, total: int) -> None:
        if self._bars is None:
            if time.monotonic() - self._started_s < _SHORT_S:
                return
            self._bars = _rich_bars()
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()


def _rich_bars() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
