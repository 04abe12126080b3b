from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from qtoolkit.data.check import SplitReport, check_data_source
from qtoolkit.data.sources import DataSource, open_data_source

Photo = Callable[..., Path]


def val_of(folder: Path) -> SplitReport:
    return check_data_source(open_data_source(folder)).splits[0]


def relabel(folder: Path, document: dict[str, Any]) -> None:
    (folder / "val.json").write_text(json.dumps(document))


def test_a_sound_data_set(coco_folder: Path) -> None:
    report = check_data_source(open_data_source(coco_folder))
    assert report.ok
    assert [(split.split, split.images, split.readable) for split in report.splits] == [
        ("val", 2, 2),
        ("calib", 2, 2),
        ("unlabeled", 1, 1),
    ]
    val = report.splits[0]
    assert (val.people, val.people_with_keypoints, val.crowds, val.images_without_people) == (2, 2, 0, 0)
    assert (val.outside, val.miscounted, val.unlabelled, val.wrong_size, val.repeated) == ((), (), (), (), ())


def test_the_report_is_json(coco_folder: Path) -> None:
    report = json.loads(check_data_source(open_data_source(coco_folder)).model_dump_json())
    assert report["ok"] is True
    assert report["splits"][0]["unreadable"] == []


def test_missing_and_unreadable_photos(coco_folder: Path) -> None:
    (coco_folder / "images" / "a.png").unlink()
    (coco_folder / "images" / "b.png").write_bytes(b"")
    (coco_folder / "calib" / "c.png").write_text("no photo")
    report = check_data_source(open_data_source(coco_folder))
    assert not report.ok
    val, calib = report.splits[:2]
    assert (val.missing, val.readable, val.ok) == (("a.png",), 0, False)
    assert [(fault.name, fault.reason) for fault in val.unreadable] == [("b.png", "empty (0 bytes)")]
    assert calib.unreadable[0].reason == "not an image: it starts with b'no photo'"


def test_damage_inside_a_photo_is_found_by_decoding(coco_folder: Path) -> None:
    path = coco_folder / "images" / "a.png"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(40) + content[100:])
    image = cv2.imread(str(path))
    assert image is None, "the damage must be one that OpenCV cannot decode"
    assert val_of(coco_folder).unreadable[0].reason.startswith("damaged or truncated")


def test_a_faulty_label_file_is_reported_and_the_photos_still_looked_at(coco_folder: Path) -> None:
    (coco_folder / "val.json").write_text("{")
    val = val_of(coco_folder)
    assert val.annotation_fault is not None
    assert "is not JSON" in val.annotation_fault
    assert (val.images, val.readable, val.ok) == (2, 2, False)


def test_photos_without_labels_and_labels_without_people(
    coco_folder: Path, photo: Photo, document: Any, person_record: Any
) -> None:
    photo(coco_folder / "images" / "extra.png", shade=9)
    crowd = person_record(1, 10, iscrowd=1, num_keypoints=0, keypoints=[0] * 51)
    nobody = person_record(2, 10, num_keypoints=0, keypoints=[0] * 51)
    relabel(coco_folder, document([crowd, nobody, person_record(3, 10)]))
    val = val_of(coco_folder)
    assert val.unlabelled == ("extra.png",)
    assert val.images_without_people == 1
    assert (val.people, val.people_with_keypoints, val.crowds) == (2, 1, 1)
    assert val.ok


def test_a_photo_of_another_size_than_labelled(coco_folder: Path, photo: Photo) -> None:
    photo(coco_folder / "images" / "a.png", size_wh=(12, 16), shade=5)
    val = val_of(coco_folder)
    assert val.wrong_size == ("a.png",)
    assert not val.ok


@pytest.mark.parametrize(
    ("change", "outside"),
    [
        pytest.param({"bbox": [0, 0, 17.0, 12]}, False, id="box one pixel over the edge"),
        pytest.param({"bbox": [0, 0, 17.5, 12]}, True, id="box over the right edge"),
        pytest.param({"bbox": [-1.5, 0, 5, 5]}, True, id="box over the left edge"),
        pytest.param({"bbox": [0, 8, 5, 6]}, True, id="box over the bottom"),
        pytest.param({"keypoints": [20, 6, 2, 7, 8, 1] + [0] * 45}, True, id="keypoint over the right edge"),
        pytest.param({"keypoints": [5, -2, 1, 7, 8, 1] + [0] * 45}, True, id="keypoint over the top"),
        pytest.param({"keypoints": [5, 6, 2, 7, 8, 1, 99, 99, 0] + [0] * 42}, False, id="absent keypoint"),
    ],
)
def test_labels_outside_their_photo(
    coco_folder: Path, document: Any, person_record: Any, change: dict[str, Any], outside: bool
) -> None:
    relabel(coco_folder, document([person_record(1, 10), person_record(8, 20, **change)]))
    val = val_of(coco_folder)
    assert val.outside == ((8,) if outside else ())
    assert val.ok


def test_keypoints_that_are_counted_wrongly(coco_folder: Path, document: Any, person_record: Any) -> None:
    relabel(coco_folder, document([person_record(4, 10, num_keypoints=3), person_record(5, 20)]))
    assert val_of(coco_folder).miscounted == (4,)


def test_labels_without_any_person(coco_folder: Path, document: Any) -> None:
    relabel(coco_folder, document([]))
    val = val_of(coco_folder)
    assert (val.people, val.images_without_people, val.outside) == (0, 2, ())


def test_repeated_photos_and_overlap(coco_folder: Path) -> None:
    shutil.copy(coco_folder / "images" / "a.png", coco_folder / "calib" / "x.png")
    shutil.copy(coco_folder / "calib" / "c.png", coco_folder / "calib" / "y.png")
    report = check_data_source(open_data_source(coco_folder))
    assert report.splits[1].repeated == ("y.png",)
    assert [(both.calibration, both.evaluation) for both in report.overlap] == [("x.png", "a.png")]
    assert not report.ok


def test_overlap_with_train_counts_where_there_is_no_calib(coco_folder: Path) -> None:
    source = open_data_source(coco_folder)
    same = DataSource("same", "coco-keypoints", evaluation=source.evaluation, train=source.evaluation)
    assert len(check_data_source(same).overlap) == 2


def test_progress_runs_over_all_parts(coco_folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    check_data_source(open_data_source(coco_folder), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]


@pytest.mark.real
def test_the_real_data_set_is_sound(real_data: Path) -> None:
    source = open_data_source(real_data / "coco")
    report = check_data_source(DataSource(source.name, source.kind, source.evaluation, source.calib))
    assert report.ok
    val, calib = report.splits
    assert (val.images, val.readable, val.people_with_keypoints, val.crowds) == (360, 360, 640, 11)
    assert (calib.readable, calib.people_with_keypoints) == (158, 446)
    assert val.outside == val.miscounted == ()
