from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtoolkit.artifacts.stages import StageStore


class Work:
    """Makes files of a stage and counts how often."""

    def __init__(self, *files: Path) -> None:
        self.files = files
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        for file in self.files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"content of {file.name}")


@pytest.fixture
def store(tmp_path) -> StageStore:
    return StageStore(tmp_path)


@pytest.fixture
def work(tmp_path) -> Work:
    return Work(tmp_path / "a.txt", tmp_path / "calib" / "b.txt")


class TestRun:
    def test_it_is_called_once_for_the_same_inputs(self, store, work):
        assert store.run("rank", {"metric": "oks", "photos": 4}, work.files, work) is True
        # Neither the order of keys nor a new process matters.
        again = StageStore(store.folder)
        assert again.run("rank", {"photos": 4, "metric": "oks"}, work.files, work) is False
        assert work.calls == 1

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            pytest.param({"photos": 4}, {"photos": 5}, id="another value"),
            pytest.param({"photos": 4}, {"photos": 4, "seed": 0}, id="one more option"),
            pytest.param([None, "x"], ["x", None], id="another order"),
            pytest.param([0.3], [0.30000000000000004], id="the next float"),
            pytest.param(["1"], [1], id="text for a number"),
        ],
    )
    def test_a_changed_option_runs_it_again(self, store, work, before, after):
        assert store.run("rank", before, work.files, work)
        assert store.run("rank", after, work.files, work)
        assert not store.run("rank", after, work.files, work)
        assert store.run("rank", before, work.files, work)
        assert work.calls == 3

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize(
        "harm",
        [
            pytest.param(Path.unlink, id="deleted"),
            pytest.param(lambda path: path.write_text(""), id="emptied"),
            pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1]), id="cut off"),
            pytest.param(lambda path: path.write_text(path.read_text() + "#"), id="edited"),
            pytest.param(lambda path: (path.unlink(), path.mkdir()), id="a folder now"),
        ],
    )
    def test_a_changed_output_runs_it_again(self, store, work, which, harm):
        store.run("rank", 1, work.files, work)
        file = work.files[which]
        harm(file)
        if file.is_dir():
            with pytest.raises(IsADirectoryError):
                store.run("rank", 1, work.files, work)
            file.rmdir()
        assert store.run("rank", 1, work.files, work)
        assert [path.read_text() for path in work.files] == ["content of a.txt", "content of b.txt"]

    def test_one_more_file_runs_it_again(self, store, work):
        store.run("rank", 1, work.files[:1], work)
        assert store.run("rank", 1, work.files, work)

    def test_stages_have_records_of_their_own(self, store, work):
        store.run("quantize-int8", 1, work.files, work)
        assert store.run("quantize-mixed", 1, work.files, work)
        assert not store.run("quantize-int8", 1, work.files, work)

    @pytest.mark.parametrize("how", [KeyboardInterrupt, MemoryError], ids=["killed", "failed"])
    def test_what_stops_in_the_middle_is_run_again(self, store, work, how):
        def stop() -> None:
            work()
            raise how

        with pytest.raises(how):
            store.run("rank", 1, work.files, stop)
        # Its files are there, but there is no record that they are whole.
        assert not (store.folder / ".stages" / "rank.json").exists()
        assert store.run("rank", 1, work.files, work)
        assert not store.run("rank", 1, work.files, work)

    def test_what_stops_when_run_anew_spoils_the_old_record_too(self, store, work):
        store.run("rank", "old", work.files, work)

        def stop() -> None:
            work.files[0].write_text("half of the new content")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.run("rank", "new", work.files, stop)
        assert store.run("rank", "old", work.files, work)
        assert work.files[0].read_text() == "content of a.txt"

    def test_a_make_that_leaves_a_file_out_is_found_at_once(self, store, work, tmp_path):
        with pytest.raises(FileNotFoundError):
            store.run("rank", 1, [*work.files, tmp_path / "forgotten.txt"], work)
        assert not (store.folder / ".stages" / "rank.json").exists()

    @pytest.mark.parametrize("record", ["", "{", "[]", "null", '{"key": 1}', "\x00"], ids=repr)
    def test_a_damaged_record_counts_as_none(self, store, work, record):
        store.run("rank", 1, work.files, work)
        (store.folder / ".stages" / "rank.json").write_text(record)
        assert store.run("rank", 1, work.files, work)

    def test_the_folder_may_be_moved(self, tmp_path):
        old, new = tmp_path / "old", tmp_path / "new"
        old.mkdir()
        work = Work(old / "a.txt")
        StageStore(old).run("rank", 1, work.files, work)
        record = json.loads((old / ".stages" / "rank.json").read_text())
        assert list(record["files"]) == ["a.txt"]
        old.rename(new)
        assert not StageStore(new).run("rank", 1, [new / "a.txt"], work)


class TestWrote:
    def test_a_file_as_the_stage_left_it(self, store, work):
        store.run("select", 1, work.files, work)
        assert all(store.wrote("select", file) for file in work.files)

    def test_an_edited_file(self, store, work):
        store.run("select", 1, work.files, work)
        work.files[0].write_text("content of a.txt\n# and mine")
        assert not store.wrote("select", work.files[0])
        assert store.wrote("select", work.files[1])

    def test_an_edit_that_is_taken_back(self, store, work):
        store.run("select", 1, work.files, work)
        work.files[0].write_text("mine")
        work.files[0].write_text("content of a.txt")
        assert store.wrote("select", work.files[0])

    def test_a_file_that_no_stage_made(self, store, work, tmp_path):
        (tmp_path / "a.txt").write_text("mine")
        assert not store.wrote("select", tmp_path / "a.txt")
        store.run("select", 1, work.files[1:], work)
        work.files[0].write_text("mine")
        assert not store.wrote("select", work.files[0])

    def test_a_file_of_another_stage(self, store, work):
        store.run("rank", 1, work.files, work)
        assert not store.wrote("select", work.files[0])

    def test_a_deleted_file(self, store, work):
        store.run("select", 1, work.files, work)
        work.files[0].unlink()
        assert not store.wrote("select", work.files[0])

    @pytest.mark.parametrize("record", ["", "[]", "null", "{}", '{"files": []}', '{"files": null}'], ids=repr)
    def test_a_damaged_record(self, store, work, record):
        store.run("select", 1, work.files, work)
        (store.folder / ".stages" / "select.json").write_text(record)
        assert not store.wrote("select", work.files[0])


def test_intermediate_files_lie_in_a_hidden_folder_that_is_made(store):
    path = store.path("people", "int8.npz")
    assert path == store.folder / ".stages" / "people" / "int8.npz"
    assert path.parent.is_dir()
    assert not path.exists()
    assert store.path("people", "int8.npz") == path
