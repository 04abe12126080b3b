from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.letterbox import Letterbox
from qtoolkit.data.samples import Split, collect_samples
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.quantization.ap_trials import ApJudge
from qtoolkit.quantization.labelled_photos import LabelledPhotos
from qtoolkit.quantization.sensitivity import analyse_sensitivity

HEAD = detect_head({"output0": (1, 56, 84)}, (64, 64))


@pytest.fixture
def photographed(tmp_path, make_data_set):
    root = make_data_set(tmp_path / "people")
    return collect_samples(Split(root / "val", root / "val.json"))


def outputs(sample, labels, moved=0.0):
    """The network's output (1, 56, 84) that finds the labelled person of a photo, ``moved`` pixels to the right."""
    letterbox = Letterbox.fit(sample.size_wh, (64, 64))
    (place,) = np.flatnonzero(labels.image_ids == sample.image_id)
    points = np.concatenate([letterbox.points_to_input(labels.keypoints[place, :, :2]), np.full((17, 1), 0.9)], axis=1)
    points[:, 0] += moved
    rows = np.zeros((84, 56), np.float32)
    rows[:, :4] = 10.0
    rows[3] = np.concatenate([[32, 32, 30, 30, 0.9], points.ravel()])
    return {"output0": rows.T[None]}


def test_what_is_found_where_the_labels_say_is_an_ap_of_100(photographed):
    judge = ApJudge(HEAD, photographed, "images")
    feeds = list(judge.feeds())
    assert [feed["images"].shape for feed in feeds] == [(1, 3, 64, 64)] * 4
    for photo, sample in enumerate(photographed):
        judge(photo, None, outputs(sample, photographed.annotations))
        judge(photo, "moved", outputs(sample, photographed.annotations, moved=2.0))
        judge(photo, "lost", {"output0": np.zeros((1, 56, 84), np.float32) + 10 * (np.arange(56) < 4)[None, :, None]})
    assert judge.ap(None) == pytest.approx(100.0)
    assert 0 < judge.ap("moved") < 80
    assert judge.ap("lost") == 0.0


def test_a_photo_that_cannot_be_decoded_is_left_out(photographed):
    second = photographed.samples[1].path
    content = bytearray(second.read_bytes())
    content[60:-20] = bytes(len(content) - 80)
    second.write_bytes(bytes(content))
    judge = ApJudge(HEAD, photographed, "images")
    assert len(list(judge.feeds())) == 3
    left = [sample for sample in photographed if sample.path != second]
    for photo, sample in enumerate(left):
        judge(photo, None, outputs(sample, photographed.annotations))
    # Of the photos that were run alone: the fourth is judged by its own labels, not by the third's.
    assert judge.ap(None) == pytest.approx(100.0)


def test_the_ranking_says_what_it_was_made_on(confident, photographed):
    photos = LabelledPhotos(photographed, "train")
    names = ["stem", "head.keypoints.0.1"]
    seen = []
    found = analyse_sensitivity(confident, HEAD, photos, metric="ap", layers=names, threads=1, progress=seen.append)
    assert [row.layer for row in found.layers] == names
    assert (found.metric, found.part, found.images, found.people) == ("ap", "train", 4, 0)
    assert 0 <= found.float_ap <= 100
    assert all(-100 <= row.loss <= found.float_ap and row.sqnr_db is None for row in found.layers)
    assert seen[-1] == 8


def test_other_metrics_run_on_the_same_photos(confident, photographed):
    found = analyse_sensitivity(
        confident, HEAD, LabelledPhotos(photographed, "calib"), metric="sqnr", layers=["stem"], threads=1
    )
    assert (found.part, found.images, found.float_ap) == ("calib", 4, None)
    assert found.layers[0].loss > 0
