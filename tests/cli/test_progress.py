from __future__ import annotations

import contextlib
import io

import pytest

from qtoolkit.cli import progress as progress_module
from qtoolkit.cli.progress import one_stage, show_progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return _Terminal()


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


class TestNoTerminal:
    def test_one_line_a_stage_where_it_begins(self, capsys):
        with show_progress(quiet=False) as progress:
            for stage in ("reading", "writing"):
                for done in range(1, 4):
                    progress(stage, done, 3)
            progress("reading", 3, 3)
        captured = capsys.readouterr()
        assert captured.err == "reading (3) …\nwriting (3) …\n"
        assert captured.out == ""

    def test_quiet_is_quiet(self, capsys):
        with show_progress(quiet=True) as progress:
            progress("reading", 1, 3)
        assert capsys.readouterr() == ("", "")


class TestTerminal:
    def test_nothing_in_the_first_two_seconds(self, terminal, clock):
        with contextlib.redirect_stderr(terminal), show_progress(quiet=False) as progress:
            progress("reading", 1, 3)
            clock.now_s += 1.9
            progress("reading", 3, 3)
        assert terminal.getvalue() == ""

    def test_bars_from_then_on(self, terminal, clock):
        with contextlib.redirect_stderr(terminal), show_progress(quiet=False) as progress:
            clock.now_s += 2.1
            progress("reading [b]", 2, 3)
            progress("writing", 1, 1)
        shown = terminal.getvalue()
        assert "reading [b]" in shown
        assert "2/3" in shown
        assert "writing" in shown

    def test_bars_are_closed_where_the_command_fails(self, terminal, clock):
        shown = contextlib.redirect_stderr(terminal)
        with pytest.raises(ZeroDivisionError), shown, show_progress(quiet=False) as progress:
            clock.now_s += 3
            progress("reading", 1, 3)
            raise ZeroDivisionError
        # The cursor, which a live display hides, is shown again.
        assert terminal.getvalue().rstrip().endswith("\x1b[?25h")


def test_one_stage_names_the_stage():
    seen = []
    one_stage(lambda *each: seen.append(each), "evaluating")(2, 5)
    assert seen == [("evaluating", 2, 5)]
