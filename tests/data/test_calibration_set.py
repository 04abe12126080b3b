from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qtoolkit.artifacts.files import sha256_file
from qtoolkit.data.calibration_set import DEFAULT_TRAIN_SAMPLE, CalibrationSet, calibration_set_of, check_disjoint
from qtoolkit.data.samples import Split, collect_samples
from qtoolkit.data.sources import DataSource, open_data_source
from qtoolkit.errors import DataSetError, UsageError

Photo = Callable[..., Path]


@pytest.fixture
def photos(tmp_path: Path, photo: Photo) -> Split:
    """Twelve photos, 00.png to 11.png."""
    for shade in range(12):
        photo(tmp_path / "photos" / f"{shade:02d}.png", shade=shade)
    return Split(tmp_path / "photos")


def names(chosen: CalibrationSet) -> list[str]:
    return [image.name for image in chosen.images]


def test_all_images_by_name(photos: Split) -> None:
    chosen = CalibrationSet.from_split(photos)
    assert names(chosen) == [f"{number:02d}.png" for number in range(12)]
    assert chosen.images[3].sha256 == sha256_file(photos.images_dir / "03.png")
    assert chosen.paths[3] == photos.images_dir / "03.png"
    assert len(chosen) == 12


def test_a_seed_draws_the_same_images_for_ever(photos: Split) -> None:
    """Computed outside this package: a draw that changed with a release would change published figures."""
    assert names(CalibrationSet.from_split(photos, limit=3, seed=0)) == ["01.png", "02.png", "06.png"]
    assert names(CalibrationSet.from_split(photos, limit=3, seed=1)) == ["06.png", "07.png", "09.png"]


def test_more_images_keep_those_already_drawn(photos: Split) -> None:
    draws = [set(names(CalibrationSet.from_split(photos, limit=limit))) for limit in (2, 5, 9, 12, 50)]
    assert [len(draw) for draw in draws] == [2, 5, 9, 12, 12]
    assert all(small <= large for small, large in itertools.pairwise(draws))


def test_seeds_differ(photos: Split) -> None:
    draws = {tuple(names(CalibrationSet.from_split(photos, limit=4, seed=seed))) for seed in range(8)}
    assert len(draws) > 4


def test_a_bad_image_is_skipped_and_another_drawn(photos: Split) -> None:
    first = names(CalibrationSet.from_split(photos, limit=3))
    (photos.images_dir / first[0]).write_bytes(b"")
    again = CalibrationSet.from_split(photos, limit=3)
    assert len(again) == 3
    assert set(first[1:]) < set(names(again))
    assert [(image.path.name, image.reason) for image in again.skipped] == [(first[0], "empty (0 bytes)")]


def test_without_a_limit_bad_images_are_skipped(photos: Split) -> None:
    (photos.images_dir / "04.png").write_text("no photo")
    chosen = CalibrationSet.from_split(photos)
    assert len(chosen) == 11
    assert len(chosen.skipped) == 1


def test_no_usable_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataSetError, match=r"1 images, none of them usable \(a.jpg: empty \(0 bytes\)\)"):
        CalibrationSet.from_split(Split(tmp_path))


def test_a_limit_of_zero(photos: Split) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        CalibrationSet.from_split(photos, limit=0)


def test_the_hash_is_of_the_content_alone(photos: Split, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(photos.images_dir, copied)
    (copied / "05.png").rename(copied / "05 renamed.png")
    first = CalibrationSet.from_split(photos)
    assert CalibrationSet.from_split(Split(copied)).sha256 == first.sha256
    assert CalibrationSet.from_split(photos, limit=11).sha256 != first.sha256


def test_a_saved_list_is_loaded_again(photos: Split, tmp_path: Path) -> None:
    chosen = CalibrationSet.from_split(photos, limit=5)
    chosen.save(tmp_path / "list.json")
    assert CalibrationSet.load(tmp_path / "list.json", photos.images_dir) == chosen


def test_a_list_names_no_folder_and_holds_no_image(photos: Split, tmp_path: Path) -> None:
    CalibrationSet.from_split(photos).save(tmp_path / "list.json")
    text = (tmp_path / "list.json").read_text()
    assert str(tmp_path) not in text
    assert set(json.loads(text)) == {"version", "sha256", "images"}
    assert set(json.loads(text)["images"][0]) == {"name", "sha256"}


def test_images_that_changed_since_are_listed(photos: Split, photo: Photo, tmp_path: Path) -> None:
    CalibrationSet.from_split(photos).save(tmp_path / "list.json")
    photo(photos.images_dir / "01.png", shade=99)
    (photos.images_dir / "02.png").unlink()
    with pytest.raises(DataSetError, match=r"2 of the 12 images[\s\S]*01.png \(other content\), 02.png \(missing\)"):
        CalibrationSet.load(tmp_path / "list.json", photos.images_dir)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("", "the file: Invalid JSON", id="zero bytes"),
        pytest.param('{"version": 1, "sha256": "", "images": []}', "no image", id="empty list"),
        pytest.param('{"version": 2, "sha256": "", "images": []}', "version: Input should be 1", id="version 2"),
        pytest.param(
            '{"version": 1, "sha256": "", "images": [{"name": "a.png", "sha256": "12"}]}',
            "images.0.sha256: String should match pattern",
            id="a hash that is none",
        ),
        pytest.param(
            '{"version": 1, "sha256": "", "images": [{"name": "../a.png", "sha256": "' + "0" * 64 + '"}]}',
            r"leads out of the folder: \.\./a\.png",
            id="a name that climbs",
        ),
        pytest.param(
            '{"version": 1, "sha256": "ab", "images": [{"name": "a.png", "sha256": "' + "0" * 64 + '"}]}',
            "the list says ab",
            id="edited by hand",
        ),
    ],
)
def test_faulty_lists(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataSetError, match=f"calibration list .*list.json cannot be used[\\s\\S]*{found}"):
        CalibrationSet.load(tmp_path / "list.json", tmp_path)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="No such file"):
        CalibrationSet.load(tmp_path / "list.json", tmp_path)


def test_the_part_calib_is_used_whole(coco_folder: Path) -> None:
    assert names(calibration_set_of(open_data_source(coco_folder))) == ["c.png", "d.png"]


def test_without_calib_a_sample_of_train_is_drawn(tmp_path: Path, photo: Photo) -> None:
    first = photo(tmp_path / "0000.png").read_bytes()
    for number in range(1, DEFAULT_TRAIN_SAMPLE + 10):
        (tmp_path / f"{number:04d}.png").write_bytes(first)
    source = DataSource("large", "images", train=Split(tmp_path))
    assert len(calibration_set_of(source)) == DEFAULT_TRAIN_SAMPLE
    assert len(calibration_set_of(source, limit=7)) == 7
    assert names(calibration_set_of(source, limit=7, seed=1)) != names(calibration_set_of(source, limit=7, seed=2))


def test_progress(photos: Split) -> None:
    seen: list[tuple[int, int]] = []
    CalibrationSet.from_split(photos, limit=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_separate_images_pass(coco_folder: Path) -> None:
    source = open_data_source(coco_folder)
    check_disjoint(calibration_set_of(source), source.evaluation_samples())


def test_an_image_in_both_is_found_under_any_name(coco_folder: Path) -> None:
    shutil.copy(coco_folder / "images" / "a.png", coco_folder / "calib" / "other.png")
    shutil.copy(coco_folder / "images" / "b.png", coco_folder / "calib" / "b.png")
    source = open_data_source(coco_folder)
    with pytest.raises(
        DataSetError,
        match=r"2 of the 4 calibration images are evaluation images too[\s\S]*b.png, other.png \(evaluated as a.png\)",
    ):
        check_disjoint(calibration_set_of(source), source.evaluation_samples())


def test_ten_files_are_listed_and_the_rest_counted(photos: Split) -> None:
    with pytest.raises(DataSetError, match=r"12 of the 12[\s\S]*09.png … and 2 more"):
        check_disjoint(CalibrationSet.from_split(photos), collect_samples(photos))


@pytest.mark.real
def test_the_real_photos_are_hashed_in_under_a_second(real_data: Path) -> None:
    source = open_data_source(real_data / "coco")
    start = time.perf_counter()
    calibration, evaluation = calibration_set_of(source), source.evaluation_samples()
    check_disjoint(calibration, evaluation)
    # 0.3 s where it was measured; the margin is for other work on the machine.
    assert time.perf_counter() - start < 3
    assert (len(calibration), len(evaluation)) == (158, 360)
