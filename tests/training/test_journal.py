"""The log of a training."""

from __future__ import annotations

import pytest

from qtoolkit.errors import InputFileError
from qtoolkit.training.journal import Journal, read_journal


def test_lines_are_appended_and_read(tmp_path):
    journal = Journal(tmp_path / "log", 0)
    journal.add("train", 3, {"loss": 1.5})
    journal.add("eval", 3, {"ap": 2})
    assert read_journal(tmp_path / "log") == [
        {"event": "train", "step": 3, "loss": 1.5},
        {"event": "eval", "step": 3, "ap": 2},
    ]


def test_a_run_that_goes_on_takes_out_the_lines_after_its_state(tmp_path):
    first = Journal(tmp_path / "log", 0)
    for step in (2, 4, 6):
        first.add("train", step, {})
    with (tmp_path / "log").open("a") as stream:
        stream.write('{"event": "train", "st')  # killed while it wrote
    Journal(tmp_path / "log", 4).add("train", 5, {})
    assert [line["step"] for line in read_journal(tmp_path / "log")] == [2, 4, 5]


def test_a_run_that_begins_begins_its_log(tmp_path):
    Journal(tmp_path / "log", 0).add("train", 2, {})
    Journal(tmp_path / "log", 0)
    assert read_journal(tmp_path / "log") == []


def test_a_file_that_is_no_log(tmp_path):
    (tmp_path / "log").write_text("nothing\n")
    with pytest.raises(InputFileError, match="cannot be read"):
        read_journal(tmp_path / "log")
