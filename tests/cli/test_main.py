from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import qtoolkit
import qtoolkit.cli
from qtoolkit.cli.main import SHORT_HELP, LazyGroup, cli
from qtoolkit.cli.options import InputSize
from qtoolkit.errors import QtoolError, UsageError

_ROOT = Path(qtoolkit.__file__).resolve().parents[1]
_START = "from qtoolkit.cli.main import main; main()"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-c", _START, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _leaf_commands() -> list[tuple[str, ...]]:
    ctx = click.Context(cli)
    return [
        (name, inner) if inner else (name,)
        for name in SHORT_HELP
        for inner in getattr(cli.get_command(ctx, name), "commands", {"": None})
    ]


def _group_with(error: BaseException) -> LazyGroup:
    """The group of qtool with one command, ``fail``, that raises."""

    class Group(LazyGroup):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
            @click.command("fail")
            @click.option("--json", is_flag=True)
            @click.option("--size", type=InputSize())
            def fail(json: bool, size: object) -> None:
                raise error

            return fail

    return Group("qtool")


class TestHelp:
    def test_the_group_lists_every_command_with_its_line(self, qtool):
        result = qtool("--help")
        assert result.exit_code == 0
        for name, line in SHORT_HELP.items():
            assert f"  {name} " in result.stdout
            assert line.split()[0] in result.stdout
        assert "Exit codes: 0 good, 1 a gate or a check failed, 2 wrong use" in result.stdout

    def test_every_command_module_is_listed(self):
        files = {path.stem for path in Path(qtoolkit.cli.__file__).parent.glob("*.py")}
        parts_of_bench = {"bench_modelled", "bench_networks", "bench_remote", "bench_report"}
        shared = {"__init__", "engines", "extras", "failure", "main", "options", "output", "progress"} | parts_of_bench
        assert files - shared == set(SHORT_HELP)

    @pytest.mark.parametrize("words", _leaf_commands(), ids=" ".join)
    def test_every_command_has_an_example_and_json(self, words, qtool):
        result = qtool(*words, "--help")
        assert result.exit_code == 0
        assert "Example" in result.stdout
        assert f"qtool {' '.join(words)}" in result.stdout.partition("Example")[2]
        assert "--json" in result.stdout

    def test_help_of_the_group_takes_less_than_half_a_second(self):
        def seconds() -> float:
            started = time.perf_counter()
            assert _run("--help").returncode == 0
            return time.perf_counter() - started

        # The best of some: what else the machine does must not fail the test.
        assert min(seconds() for _ in range(4)) < 0.5

    def test_version(self, qtool):
        assert qtool("--version").stdout == f"qtool {qtoolkit.__version__}\n"


class TestErrors:
    ERROR = UsageError("the thing is wrong", expected="a good thing", found="a bad thing", do="mend it")

    def test_message_on_stderr_and_the_errors_own_exit_code(self):
        result = CliRunner().invoke(_group_with(self.ERROR), ["fail"])
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr == (
            "qtool: error: the thing is wrong\n  expected: a good thing\n  found: a bad thing\n  do: mend it\n"
        )

    def test_json_gives_the_same_facts_on_stdout(self):
        result = CliRunner().invoke(_group_with(self.ERROR), ["fail", "--json"])
        assert json.loads(result.stdout) == {
            "error": {
                "what": "the thing is wrong",
                "expected": "a good thing",
                "found": "a bad thing",
                "do": "mend it",
                "exit_code": 2,
            }
        }
        assert "qtool: error: the thing is wrong" in result.stderr

    @pytest.mark.parametrize("kind", QtoolError.__subclasses__(), ids=lambda kind: kind.__name__)
    def test_exit_code_of_each_branch_of_the_tree(self, kind):
        assert CliRunner().invoke(_group_with(kind("no")), ["fail"]).exit_code == kind.exit_code

    def test_escape_codes_in_a_message_do_not_reach_the_terminal(self):
        error = QtoolError("bad file \x1b[2Jname\x07")
        assert CliRunner().invoke(_group_with(error), ["fail"]).stderr == "qtool: error: bad file �[2Jname�\n"

    def test_a_wrong_option_is_json_too(self):
        result = CliRunner().invoke(_group_with(self.ERROR), ["fail", "--json", "--size", "big"], prog_name="qtool")
        assert result.exit_code == 2
        error = json.loads(result.stdout)["error"]
        assert error["what"].startswith("Invalid value for '--size': 'big' is not a size")
        assert error["exit_code"] == 2
        assert "Usage: qtool fail" in result.stderr

    def test_control_c(self):
        result = CliRunner().invoke(_group_with(KeyboardInterrupt()), ["fail"])
        assert result.exit_code == 130
        assert result.stdout == ""
        assert result.stderr.strip() == "qtool: stopped; run the same command again to go on"

    def test_control_c_with_json(self):
        result = CliRunner().invoke(_group_with(KeyboardInterrupt()), ["fail", "--json"])
        assert json.loads(result.stdout)["error"]["exit_code"] == 130

    def test_a_bug_keeps_its_traceback(self):
        with pytest.raises(ZeroDivisionError):
            CliRunner().invoke(_group_with(ZeroDivisionError()), ["fail"], catch_exceptions=False)

    def test_unknown_command(self, qtool):
        result = qtool("quantise")
        assert result.exit_code == 2
        assert "No such command 'quantise'" in result.stderr

    def test_unknown_option_of_the_group(self, qtool):
        assert qtool("--colour").exit_code == 2


class TestStreams:
    def test_a_reader_that_goes_away_is_no_traceback(self):
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        command = [sys.executable, "-c", _START, "doctor", "--json"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            assert process.stderr.read() == b""

    def test_what_a_stream_cannot_write_is_escaped(self, tmp_path, make_data_set):
        make_data_set(tmp_path / "λ")
        (tmp_path / "λ" / "dataset.yaml").write_text("kind: images\nval: {images: val}\n")
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONIOENCODING": "latin-1:strict"}
        command = [sys.executable, "-c", _START, "data", "check", str(tmp_path / "λ")]
        result = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert result.returncode == 0
        assert result.stdout == b"\\u03bb (images): good\n  val: 4 images, 4 readable\n"
