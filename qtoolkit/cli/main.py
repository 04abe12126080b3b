"""``qtool``: the group of all commands. A command's module is imported when it is called or asked for its own help."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

import click

import qtoolkit
from qtoolkit.cli.failure import (
    STOPPED_EXIT_CODE,
    note_json_wish,
    show_failure,
    show_stop,
    show_usage_error_as_json,
)
from qtoolkit.errors import QtoolError

__all__ = ["SHORT_HELP", "LazyGroup", "cli", "main"]

SHORT_HELP = {
    "train": "Train a pose network from labels.",
    "retrain": "Give a network ReLU activations, without labels.",
    "export": "Write trained weights as ONNX; put NMS inside any pose network.",
    "quantize": "Make 16-bit, 8-bit and mixed networks; measure AP, cost, latency.",
    "sensitivity": "Rank the layers by what 8 bit costs; choose those for 16 bit.",
    "build": "Make what a target's runtime opens: a TensorRT engine, checked ONNX.",
    "eval": "Measure COCO AP of a network, float or quantized.",
    "bench": "Measure latency of networks, side by side.",
    "run": "Run the whole pipeline of a recipe.",
    "data": "Check a data set, or render people with labels.",
    "doctor": "Say what this machine can do, and how to get the rest.",
}
"""Command → its line in ``qtool --help``, in that order; ``qtoolkit.cli.COMMAND`` holds it as ``command``."""

_EPILOG = """\
\b
Start with:
  qtool doctor
  qtool quantize --mixed 0.3
  qtool data check DIR
  qtool quantize model.onnx --data DIR --mixed 0.3

Exit codes: 0 good, 1 a gate or a check failed, 2 wrong use, 3 a bad input file, 4 an optional dependency or a device is
missing, 130 stopped by the user."""


class LazyGroup(click.Group):
    """Imports a subcommand when it is called, and turns errors of qtoolkit into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the help."""
        return list(SHORT_HELP)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None for an unknown one."""
        if cmd_name not in SHORT_HELP:
            return None
        command: click.Command = importlib.import_module(f"qtoolkit.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SHORT_HELP.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is asked for, so that even a wrong option is answered in JSON."""
        note_json_wish(ctx, "--json" in args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Errors that are no fault of the user's or the machine's keep their traceback."""
        try:
            return super().invoke(ctx)
        except QtoolError as error:
            show_failure(error, ctx)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            show_stop(ctx)
            ctx.exit(STOPPED_EXIT_CODE)
        except click.UsageError as error:
            show_usage_error_as_json(error, ctx)
            raise


@click.command(cls=LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(qtoolkit.__version__, prog_name="qtool", message="%(prog)s %(version)s")
def cli() -> None:
    """Quantize pose networks for embedded devices: 8 bit, 16 bit and the right mix.

    Every network is measured: AP, GMACs, latency.
    """


def main() -> None:
    """Entry point of ``qtool``; ends the process with the exit code of the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal or a pipe that knows ASCII only must not turn a result into a traceback.
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="qtool")
