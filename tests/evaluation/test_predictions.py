from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.data.people import People
from qtoolkit.errors import InputFileError
from qtoolkit.evaluation.predictions import read_predictions, write_predictions


def some_people(count: int, keypoint_count: int = 17, seed: int = 0) -> People:
    random = np.random.default_rng(seed)
    keypoints = random.normal(0, 1e3, (count, keypoint_count, 3))
    return People(random.normal(0, 1e3, (count, 4)), random.random(count), keypoints)


def check_same(found: dict[int, People], wanted: dict[int, People]) -> None:
    assert list(found) == list(wanted)
    assert all(type(image_id) is int for image_id in found)
    for image_id, people in wanted.items():
        for name in ("boxes_xyxy", "scores", "keypoints"):
            ours, theirs = getattr(found[image_id], name), getattr(people, name)
            assert ours.dtype == theirs.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)


@pytest.fixture
def file(tmp_path):
    """Two photos with three people and one."""
    path = tmp_path / "int8.npz"
    write_predictions(path, {7: some_people(3), 2: some_people(1, seed=1)})
    return path


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param({1: 2}, id="one photo"),
        pytest.param({139: 2, 7: 5, 400000: 1}, id="order is kept"),
        pytest.param({1: 0, 2: 3, 3: 0, 4: 0, 5: 1, 6: 0}, id="nobody on some, first and last too"),
        pytest.param({1: 0, 2: 0}, id="nobody at all"),
        pytest.param({}, id="no photo"),
        pytest.param({2**40: 1, 0: 1, -3: 1}, id="large, zero and negative ids"),
    ],
)
def test_what_is_read_is_what_was_written_to_the_last_bit(tmp_path, counts):
    predictions = {image_id: some_people(count, seed=count) for image_id, count in counts.items()}
    write_predictions(tmp_path / "p.npz", predictions)
    check_same(read_predictions(tmp_path / "p.npz"), predictions)


def test_the_number_of_keypoints_is_known_where_nobody_was_found(tmp_path):
    write_predictions(tmp_path / "p.npz", {1: People.empty(13), 2: some_people(2, 13)})
    assert [people.keypoint_count for people in read_predictions(tmp_path / "p.npz").values()] == [13, 13]


def test_infinite_and_nan_values_are_kept(tmp_path):
    people = some_people(1)
    people.keypoints[0, 0] = [np.nan, np.inf, -0.0]
    write_predictions(tmp_path / "p.npz", {1: people})
    check_same(read_predictions(tmp_path / "p.npz"), {1: people})


def test_nothing_but_the_file_is_left_behind(file):
    assert [each.name for each in file.parent.iterdir()] == ["int8.npz"]


class TestUnreadable:
    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"not an archive", id="text"),
            pytest.param(b"PK\x03\x04 and no more", id="start of an archive"),
        ],
    )
    def test_another_file(self, tmp_path, content):
        (tmp_path / "p.npz").write_bytes(content)
        self.check_message(tmp_path / "p.npz")

    def test_a_missing_file(self, tmp_path):
        self.check_message(tmp_path / "p.npz")

    @pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
    def test_a_file_that_is_cut_off(self, file, keep):
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * keep)])
        self.check_message(file)

    @pytest.mark.parametrize("name", ["ids", "counts", "boxes_xyxy", "scores", "keypoints"])
    def test_an_archive_without_one_of_the_arrays(self, file, name):
        with np.load(file) as arrays:
            kept = {key: arrays[key] for key in arrays.files if key != name}
        np.savez(file, **kept)
        self.check_message(file)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            pytest.param("counts", np.array([3]), id="fewer counts than ids"),
            pytest.param("counts", np.array([9, 1]), id="more people counted than there are"),
            pytest.param("boxes_xyxy", np.zeros((4, 5)), id="boxes of five numbers"),
            pytest.param("ids", np.array(7), id="a single id"),
            pytest.param("scores", np.array([None] * 4, object), id="objects"),
        ],
    )
    def test_arrays_that_do_not_fit(self, file, name, value):
        with np.load(file) as arrays:
            kept = {key: arrays[key] for key in arrays.files}
        np.savez(file, **(kept | {name: value}))
        self.check_message(file)

    def test_a_single_array(self, tmp_path):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3))
        (tmp_path / "p.npz").write_bytes(buffer.getvalue())
        self.check_message(tmp_path / "p.npz")

    @given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def test_a_flipped_bit_is_an_error_or_changes_nothing(self, tmp_path_factory, place, bit):
        path = tmp_path_factory.mktemp("flip") / "p.npz"
        predictions = {7: some_people(3), 2: some_people(1, seed=1)}
        write_predictions(path, predictions)
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        path.write_bytes(content)
        try:
            found = read_predictions(path)
        except InputFileError:
            return
        check_same(found, predictions)

    @staticmethod
    def check_message(path):
        with pytest.raises(InputFileError, match=r"the predictions .* cannot be read") as caught:
            read_predictions(path)
        assert str(path) in caught.value.what
        assert caught.value.expected == "an npz file that qtool wrote"
        assert caught.value.found
        assert caught.value.do == "delete it and run the evaluation again"
