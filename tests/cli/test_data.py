from __future__ import annotations

import json
import shutil


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


def test_rendered_people_come_later(qtool):
    result = qtool("data", "synth", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"]["what"] == "rendered people come with a later release"
