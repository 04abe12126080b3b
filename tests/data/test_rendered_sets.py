from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from qtoolkit.data import rendered_parts, rendered_sets
from qtoolkit.data.check import check_data_source
from qtoolkit.data.coco import read_coco_keypoints
from qtoolkit.data.images import list_images, read_image
from qtoolkit.data.rendered_sets import cache_folder, cached_parts, write_set, write_sheet
from qtoolkit.data.sources import open_data_source
from qtoolkit.data.synthetic import SyntheticSpec, parse_spec, render
from qtoolkit.errors import UsageError

SIZE = 64


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("QTOOLKIT_CACHE", str(folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Steps:
    def __init__(self):
        self.seen = []

    def __call__(self, done, total):
        self.seen.append((done, total))


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("QTOOLKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "qtoolkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "qtoolkit"
    monkeypatch.setenv("QTOOLKIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


class TestTheCache:
    def test_a_rendered_set_is_an_ordinary_data_set(self, cache):
        steps = Steps()
        source = open_data_source(f"synthetic:18@3/{SIZE}", progress=steps)
        assert (source.name, source.kind, source.has_labels) == (f"synthetic:18@3/{SIZE}", "coco-keypoints", True)
        assert steps.seen == [(16, 36), (18, 36), (34, 36), (36, 36)]
        samples = source.evaluation_samples()
        assert samples.image_ids == tuple(range(1, 19))
        assert len(source.calibration_split().file_names()) == 18
        assert source.train is None
        report = check_data_source(source)
        assert report.ok
        assert not any(part.outside or part.miscounted or part.unlabelled for part in report.splits)
        for sample in list(samples)[:3]:
            assert (read_image(sample.path) == render(3, sample.image_id - 1, "val", SIZE).image).all()

    def test_a_second_opening_renders_nothing(self, cache):
        first = open_data_source(f"synthetic:4/{SIZE}")
        steps = Steps()
        assert open_data_source(f"synthetic:4/{SIZE}", progress=steps) == first
        assert steps.seen == []

    def test_only_the_parts_asked_for_are_rendered(self, cache):
        spec = SyntheticSpec(3, 1, SIZE)
        assert set(cached_parts(spec, ("train",))) == {"train"}
        (folder,) = (cache / "rendered").glob("v*/*")
        assert folder.name.startswith("train-3@1")
        source = open_data_source(spec.name, parts=("val", "train"))
        assert source.calib is None and source.train is not None and source.evaluation is not None

    def test_how_many_images_the_parts_have(self, cache, monkeypatch):
        made = {}

        def note(images_dir, labels, job, count, report):
            made[job.part] = count
            images_dir.mkdir()
            labels.write_text("{}")

        monkeypatch.setattr(rendered_sets, "render_part", note)
        monkeypatch.setattr(rendered_sets, "_is_whole", lambda folder, count: folder.exists())
        cached_parts(SyntheticSpec(900, 1, SIZE), ("val", "calib"))
        assert made == {"val": 900, "calib": 200}
        made.clear()
        cached_parts(SyntheticSpec(900, 1, SIZE), ("train", "val"))
        assert made == {"val": 500, "train": 900}

    def test_a_longer_set_begins_with_the_shorter_one(self, cache):
        short, long = (cached_parts(SyntheticSpec(n, 5, SIZE), ("val",))["val"] for n in (3, 6))
        assert short.images_dir != long.images_dir
        for name in short.file_names():
            assert (short.images_dir / name).read_bytes() == (long.images_dir / name).read_bytes()
        both = [read_coco_keypoints(split.annotations) for split in (short, long)]
        kept = both[1].image_ids <= 3
        assert (both[1].keypoints[kept] == both[0].keypoints).all()

    def test_a_damaged_set_is_rendered_again(self, cache):
        split = cached_parts(SyntheticSpec(3, 0, SIZE), ("val",))["val"]
        before = contents(split.images_dir)
        (split.images_dir / "000001.jpg").unlink()
        again = cached_parts(SyntheticSpec(3, 0, SIZE), ("val",))["val"]
        assert contents(again.images_dir) == before
        assert [entry.name for entry in split.images_dir.parent.parent.iterdir()] == [split.images_dir.parent.name]

    def test_a_failure_leaves_nothing(self, cache, monkeypatch):
        def fail(*arguments):
            raise MemoryError("full")

        monkeypatch.setattr(rendered_parts, "render", fail)
        with pytest.raises(MemoryError):
            cached_parts(SyntheticSpec(3, 0, SIZE), ("val",))
        assert contents(cache) == {}
        assert not list((cache / "rendered").glob("v*/*"))

    def test_what_a_killed_process_left_goes_after_a_day(self, cache):
        first = cached_parts(SyntheticSpec(1, 0, SIZE), ("val",))["val"].images_dir.parent.parent
        fresh, old = first / ".rendering-a", first / ".rendering-b"
        for folder in (fresh, old):
            (folder / "images").mkdir(parents=True)
        for each in (old / "images", old):
            os.utime(each, (0, time.time() - 25 * 3600))
        # Somebody still writes into it, though the folder itself is old.
        os.utime(fresh, (0, time.time() - 25 * 3600))
        cached_parts(SyntheticSpec(2, 0, SIZE), ("val",))
        assert fresh.exists()
        assert not old.exists()

    def test_who_comes_second_takes_what_the_first_made(self, cache, monkeypatch):
        spec = SyntheticSpec(3, 0, SIZE)
        entered = []

        def meanwhile(done, total):
            if not entered:  # another process finishes the same set while this one is at work
                entered.append(True)
                entered.append(cached_parts(spec, ("val",)))

        mine = cached_parts(spec, ("val",), meanwhile)
        assert mine == entered[1]
        assert len(list((cache / "rendered").glob("v*/*"))) == 1
        assert len(mine["val"].file_names()) == 3

    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("QTOOLKIT_CACHE", str(tmp_path / "file"))
        with pytest.raises(UsageError, match="do: set QTOOLKIT_CACHE"):
            open_data_source(f"synthetic:2/{SIZE}")

    def test_an_unknown_part(self, cache):
        with pytest.raises(UsageError, match=r"expected: val, calib, train\n  found: test"):
            open_data_source("synthetic:5", parts=("val", "test"))

    def test_several_processes_give_what_one_gives(self, cache, monkeypatch):
        spec = SyntheticSpec(rendered_parts._FEWEST_FOR_PROCESSES, 2, SIZE)
        monkeypatch.setattr(rendered_parts, "_cores", lambda: 2)
        many = contents(cached_parts(spec, ("val",))["val"].images_dir.parent)
        monkeypatch.setattr(rendered_parts, "_cores", lambda: 1)
        monkeypatch.setenv("QTOOLKIT_CACHE", str(cache / "other"))
        assert contents(cached_parts(spec, ("val",))["val"].images_dir.parent) == many


class TestAWrittenSet:
    def test_it_is_good_and_says_what_it_holds(self, tmp_path):
        steps = Steps()
        parts = write_set(tmp_path / "people", 5, 3, SIZE, calib=3, train=4, progress=steps)
        assert {name: part.images for name, part in parts.items()} == {"val": 5, "calib": 3, "train": 4}
        assert steps.seen == [(5, 12), (8, 12), (12, 12)]
        source = open_data_source(tmp_path / "people")
        report = check_data_source(source)
        assert report.ok and [part.images for part in report.splits] == [5, 3, 4]
        assert [part.people for part in report.splits] == [part.people for part in parts.values()]
        assert sorted(entry.name for entry in (tmp_path / "people").iterdir()) == [
            "calib", "dataset.yaml", "person_keypoints_calib.json", "person_keypoints_train.json",
            "person_keypoints_val.json", "rendered.json", "train", "val",
        ]  # fmt: skip
        assert json.loads((tmp_path / "people" / "rendered.json").read_text())["seed"] == 3

    @pytest.mark.parametrize(("difficulty", "behind"), [("usual", ""), ("hard", ":hard")])
    def test_it_has_the_images_of_the_spec(self, tmp_path, cache, difficulty, behind):
        write_set(tmp_path / "people", 3, 9, SIZE, difficulty=difficulty)
        cached = cached_parts(parse_spec(f"synthetic:3@9/{SIZE}{behind}"), ("val",))["val"]
        assert contents(tmp_path / "people" / "val") == contents(cached.images_dir)

    def test_hard_images_are_others(self, tmp_path, cache):
        usual, hard = (cached_parts(parse_spec(f"synthetic:3@9/{SIZE}{each}"), ("val",)) for each in ("", ":hard"))
        assert contents(usual["val"].images_dir) != contents(hard["val"].images_dir)

    def test_it_replaces_one_of_its_own(self, tmp_path):
        write_set(tmp_path, 4, 1, SIZE, calib=2)
        write_set(tmp_path, 2, 1, SIZE)
        assert len(list_images(tmp_path / "val")) == 2
        assert not (tmp_path / "calib").exists() and not (tmp_path / "person_keypoints_calib.json").exists()
        assert open_data_source(tmp_path).calib is None

    @pytest.mark.parametrize("name", ["notes.txt", "val", "dataset.yaml"])
    def test_it_does_not_touch_anything_else(self, tmp_path, name):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UsageError, match=f"is not empty[\\s\\S]*found: {name}"):
            write_set(tmp_path, 2, 1, SIZE)
        assert contents(tmp_path) == {name: b"mine"}

    def test_it_does_not_touch_what_was_added_to_its_own(self, tmp_path):
        write_set(tmp_path, 2, 1, SIZE)
        (tmp_path / "mine.jpg").write_bytes(b"")
        with pytest.raises(UsageError, match=r"found: mine\.jpg"):
            write_set(tmp_path, 2, 2, SIZE)

    @pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
    def test_an_interruption_leaves_the_folder_as_it_was(self, tmp_path, monkeypatch, there):
        place = tmp_path / "people"
        if there:
            write_set(place, 2, 1, SIZE)
        before = contents(tmp_path)
        calls = []

        def stop(*arguments, **keywords):
            calls.append(arguments)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return render(*arguments, **keywords)

        monkeypatch.setattr(rendered_parts, "render", stop)
        with pytest.raises(KeyboardInterrupt):
            write_set(place, 9, 5, SIZE)
        assert len(calls) == 3
        assert contents(tmp_path) == before
        assert place.exists() == there

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="is not empty"):
            write_set(tmp_path / "file", 2, 1, SIZE)
        with pytest.raises(UsageError, match="do: give another folder with --out"):
            write_set(tmp_path / "file" / "inside", 2, 1, SIZE)

    def test_a_size_that_is_not_rendered(self, tmp_path):
        with pytest.raises(UsageError, match="a long side of 64 to 2048"):
            write_set(tmp_path / "people", 2, 1, 10)
        assert not (tmp_path / "people").exists()


def test_a_sheet_of_the_first_images(tmp_path):
    write_sheet(tmp_path / "sheet.png", 4, 1, SIZE)
    assert read_image(tmp_path / "sheet.png").shape[1] == 4 * SIZE
    with pytest.raises(UsageError, match=r"expected: a name that ends in \.jpg or \.png"):
        write_sheet(tmp_path / "sheet.gif", 4, 1, SIZE)
    with pytest.raises(UsageError, match="do: give another name with --sheet"):
        write_sheet(tmp_path / "no" / "sheet.png", 1, 1, SIZE)
