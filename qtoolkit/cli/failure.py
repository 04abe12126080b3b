"""How an error reaches the user: its message on stderr, and with ``--json`` an object on stdout."""

from __future__ import annotations

import json

import click

from qtoolkit.errors import QtoolError

__all__ = [
    "STOPPED_EXIT_CODE",
    "note_json_wish",
    "note_result",
    "show_failure",
    "show_stop",
    "show_usage_error_as_json",
]

STOPPED_EXIT_CODE = 130
"""Of a command that Ctrl-C ended, as shells have it: 128 + SIGINT."""

_WANTS_JSON = "qtoolkit.wants_json"
_HAS_RESULT = "qtoolkit.has_result"


def note_json_wish(ctx: click.Context, wanted: bool) -> None:
    """Remember, for this invocation, whether an error shall be JSON too."""
    ctx.meta[_WANTS_JSON] = wanted


def note_result(ctx: click.Context) -> None:
    """Remember that a JSON document stands on stdout: a second one behind it could not be parsed."""
    ctx.meta[_HAS_RESULT] = True


def show_failure(error: QtoolError, ctx: click.Context) -> None:
    """An error of qtoolkit, without a traceback."""
    # Messages quote names and content of files, which must not steer the terminal.
    text = "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in str(error))
    click.echo(f"qtool: error: {text}", err=True)
    facts = {"what": error.what, "expected": error.expected, "found": error.found, "do": error.do}
    _show_json(ctx, facts, error.exit_code)


def show_stop(ctx: click.Context) -> None:
    """Ctrl-C: one line, below the progress that was interrupted."""
    what = "stopped; run the same command again to go on"
    click.echo(f"\nqtool: {what}", err=True)
    _show_json(ctx, {"what": what, "expected": None, "found": None, "do": None}, STOPPED_EXIT_CODE)


def show_usage_error_as_json(error: click.UsageError, ctx: click.Context) -> None:
    """With ``--json``: a wrong option as an object on stdout; click itself writes its message to stderr."""
    usage = None if error.ctx is None else error.ctx.get_usage()
    facts = {"what": error.format_message(), "expected": usage, "found": None, "do": None}
    _show_json(ctx, facts, error.exit_code)


def _show_json(ctx: click.Context, facts: dict[str, str | None], exit_code: int) -> None:
    if ctx.meta.get(_WANTS_JSON) and not ctx.meta.get(_HAS_RESULT):
        click.echo(json.dumps({"error": {**facts, "exit_code": exit_code}}, indent=1, ensure_ascii=False))
