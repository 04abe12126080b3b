"""How results reach the user: tables and JSON on stdout, photos that were left out on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.failure import note_result

if TYPE_CHECKING:
    from rich.table import Table

    from qtoolkit.data.samples import SkippedImage

__all__ = ["list_skipped", "listing", "print_json", "print_table", "skipped_records"]

_LISTED = 10
_WIDTH_OF_A_FILE = 140


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    note_result(click.get_current_context())
    click.echo(json.dumps(document, indent=1, ensure_ascii=False))


def print_table(table: Table) -> None:
    """A table as wide as the terminal, or 140 columns where stdout is a file or a pipe."""
    from rich.console import Console

    fixed = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_A_FILE
    Console(width=fixed, highlight=False, emoji=False).print(table)


def list_skipped(skipped: Sequence[SkippedImage]) -> None:
    """On stderr: how many photos could not be used, and the first ten with the reason."""
    if skipped:
        from qtoolkit.reporting.cells import plain

        lines = [f"photos that could not be used and were left out: {len(skipped)}"]
        lines += [f"  {plain(path.name)}: {plain(reason)}" for path, reason in skipped[:_LISTED]]
        if len(skipped) > _LISTED:
            lines.append(f"  … and {len(skipped) - _LISTED} more")
        click.echo("\n".join(lines), err=True)


def skipped_records(skipped: Iterable[SkippedImage]) -> list[dict[str, str]]:
    """The same for JSON, all of them."""
    return [{"path": str(path), "reason": reason} for path, reason in skipped]


def listing(names: Iterable[str | int | Path]) -> str:
    """The first ten names in one line, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" … and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(texts[:_LISTED]) + more
