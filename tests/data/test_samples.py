from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtoolkit.artifacts.files import sha256_file
from qtoolkit.data.samples import Split, collect_samples
from qtoolkit.errors import DataSetError, UsageError

Photo = Callable[..., Path]


@pytest.fixture
def split(coco_folder: Path) -> Split:
    return Split(coco_folder / "images", coco_folder / "val.json")


def test_samples_follow_the_ids_of_the_labels(split: Split) -> None:
    found = collect_samples(split)
    assert found.image_ids == (10, 20)
    assert [sample.path.name for sample in found] == ["a.png", "b.png"]
    assert [sample.size_wh for sample in found] == [(16, 12), (16, 12)]
    assert found.samples[1].sha256 == sha256_file(split.images_dir / "b.png")
    assert found.skipped == ()
    assert found.annotations is not None
    assert len(found.annotations) == 2


def test_without_labels_files_are_numbered_and_measured(tmp_path: Path, photo: Photo) -> None:
    photo(tmp_path / "z.png", size_wh=(9, 5))
    photo(tmp_path / "y.jpg", size_wh=(7, 3))
    found = collect_samples(Split(tmp_path))
    assert [(s.image_id, s.path.name, s.size_wh) for s in found] == [(1, "y.jpg", (7, 3)), (2, "z.png", (9, 5))]
    assert found.annotations is None


def test_a_split_of_named_files_leaves_the_others_out(tmp_path: Path, photo: Photo) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    assert [s.path.name for s in collect_samples(Split(tmp_path, names=("b.png",)))] == ["b.png"]


def test_good_photos_among_bad_ones_are_used_and_the_bad_ones_listed(
    split: Split, document: Any, image_record: Any
) -> None:
    names = ("a.png", "zero.jpg", "text.jpg", "gone.jpg", "cut.jpg", "b.png")
    images = [image_record(number, name) for number, name in enumerate(names)]
    assert split.annotations is not None
    split.annotations.write_text(json.dumps(document([], images)))
    (split.images_dir / "zero.jpg").touch()
    (split.images_dir / "text.jpg").write_text("this is no photo")
    (split.images_dir / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    found = collect_samples(split)
    assert found.image_ids == (0, 5)
    assert {image.path.name: image.reason for image in found.skipped} == {
        "zero.jpg": "empty (0 bytes)",
        "text.jpg": "not an image: it starts with b'this is no p'",
        "gone.jpg": "missing",
        "cut.jpg": "truncated JPEG: it holds no picture",
    }


def test_the_limit_counts_bad_photos_so_that_the_others_stay_the_same(split: Split) -> None:
    (split.images_dir / "a.png").write_bytes(b"")
    assert collect_samples(split, limit=2).image_ids == (20,)
    with pytest.raises(DataSetError, match=r"no image of .*images can be used[\s\S]*1 images, none .*a.png: empty"):
        collect_samples(split, limit=1)


def test_a_folder_without_photos(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="found: no image file"):
        collect_samples(Split(tmp_path))


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one(split: Split, limit: int) -> None:
    with pytest.raises(UsageError, match=f"at least 1\n  found: {limit}"):
        collect_samples(split, limit)


def test_the_hash_depends_on_content_and_labels_but_not_on_the_place(
    split: Split, tmp_path: Path, photo: Photo
) -> None:
    first = collect_samples(split).sha256
    assert split.annotations is not None
    shutil.copytree(split.images_dir, tmp_path / "elsewhere")
    assert collect_samples(Split(tmp_path / "elsewhere", split.annotations)).sha256 == first
    assert collect_samples(split, limit=1).sha256 != first
    photo(tmp_path / "elsewhere" / "b.png", shade=77)
    assert collect_samples(Split(tmp_path / "elsewhere", split.annotations)).sha256 != first
    split.annotations.write_text(split.annotations.read_text().replace("30.25", "30.5"))
    assert collect_samples(split).sha256 != first


def test_progress_counts_every_photo(split: Split) -> None:
    seen: list[tuple[int, int]] = []
    collect_samples(split, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
