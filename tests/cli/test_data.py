from __future__ import annotations

import json
import shutil

from qtoolkit.data.synthetic import RENDERER_VERSION


def test_a_good_data_set(people, qtool):
    result = qtool("data", "check", people)
    assert result.exit_code == 0
    assert result.stdout == (
        "tiny (coco-keypoints): good\n"
        "  val: 4 images, 4 readable; 4 people, 4 of them with keypoints, 0 crowds\n"
        "  calib: 3 images, 3 readable\n"
    )
    assert result.stderr == "checking photos (7) …\n"


def test_every_fault_is_printed_and_fails_the_check(people, qtool):
    (people / "val" / "1.png").unlink()
    (people / "val" / "2.png").write_bytes(b"")
    shutil.copy(people / "val" / "3.png", people / "calib" / "copy.png")
    result = qtool("data", "check", people)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny (coco-keypoints): with faults"
    assert "    fault: labelled, but missing (1): 1.png" in lines
    assert "    fault: unreadable (1): 2.png: empty (0 bytes)" in lines
    assert "  fault: calibrated on and evaluated on (1): copy.png = 3.png" in lines
    assert "qtool: error: the data set tiny has faults" in result.stderr
    assert "found: faults in val, the overlap of calib and val" in result.stderr


def test_notes_do_not_fail_the_check(people, make_labels, qtool):
    shutil.copy(people / "val" / "1.png", people / "val" / "again.png")
    (people / "val.json").write_text(json.dumps(make_labels(num_keypoints=3, bbox=[10, 10, 400, 40])))
    result = qtool("data", "check", people)
    assert result.exit_code == 0
    assert "    note: not in the labels (1): again.png" in result.stdout
    assert "    note: annotations that reach outside their image (1): id 1" in result.stdout
    assert "    note: annotations with a wrong num_keypoints (1): id 1" in result.stdout


def test_json_is_one_document_even_where_the_check_fails(people, qtool):
    (people / "val" / "1.png").unlink()
    result = qtool("data", "check", people, "--json", "--quiet")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert document["splits"][0]["missing"] == ["1.png"]


def test_faulty_labels_are_a_fault_of_their_part(people, make_labels, qtool):
    (people / "val.json").write_text(json.dumps(make_labels(image_id=99)))
    result = qtool("data", "check", people)
    assert result.exit_code == 1
    assert "the image id is not in 'images'" in result.stdout


def test_nothing_there(tmp_path, qtool):
    result = qtool("data", "check", tmp_path / "no", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["found"] == "no such file or folder"


class TestRenderedPeople:
    def test_a_set_is_written_and_good(self, tmp_path, qtool):
        out = tmp_path / "people"
        result = qtool("data", "synth", "--out", out, "--images", 4, "--seed", 7, "--size", 64, "--train", 2)
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines[0].startswith("val: 4 images; ") and lines[0].endswith(" of them with keypoints")
        assert [line.split(":")[0] for line in lines] == ["val", "calib", "train", f"use it with --data {out}"]
        assert result.stderr == "rendering people (10) …\n"
        checked = qtool("data", "check", out)
        assert checked.exit_code == 0
        assert checked.stdout.startswith("people (coco-keypoints): good\n  val: 4 images, 4 readable; ")

    def test_json(self, tmp_path, qtool):
        sheet = tmp_path / "sheet.jpg"
        options = ("--images", 2, "--size", 64, "--calib", 1, "--json", "--quiet", "--sheet", sheet)
        result = qtool("data", "synth", "--out", tmp_path / "people", *options)
        document = json.loads(result.stdout)
        assert (document["renderer"], document["seed"], document["size"]) == (RENDERER_VERSION, 0, 64)
        assert document["difficulty"] == "usual"
        assert {name: part["images"] for name, part in document["parts"].items()} == {"val": 2, "calib": 1}
        assert sheet.read_bytes().startswith(b"\xff\xd8\xff")
        assert result.stderr == ""

    def test_a_folder_of_something_else_is_left_alone(self, people, qtool):
        before = sorted(path.name for path in people.rglob("*"))
        result = qtool("data", "synth", "--out", people, "--images", 2, "--json")
        assert result.exit_code == 2
        assert "is not empty" in json.loads(result.stdout)["error"]["what"]
        assert sorted(path.name for path in people.rglob("*")) == before

    def test_wrong_numbers(self, tmp_path, qtool):
        for wrong in (("--images", 0), ("--seed", -1), ("--size", 9), ("--train", 0)):
            assert qtool("data", "synth", "--out", tmp_path / "people", *wrong).exit_code == 2
        assert not (tmp_path / "people").exists()

    def test_what_is_rendered_on_demand_can_be_checked(self, tmp_path, monkeypatch, qtool):
        monkeypatch.setenv("QTOOLKIT_CACHE", str(tmp_path))
        result = qtool("data", "check", "synthetic:3@1/64")
        assert result.exit_code == 0
        assert result.stdout.startswith("synthetic:3@1/64 (coco-keypoints): good\n")
        assert result.stderr == "rendering people (6) …\nchecking photos (6) …\n"
        assert qtool("data", "check", "synthetic:3@1/64").stderr == "checking photos (6) …\n"
