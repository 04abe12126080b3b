from __future__ import annotations

import json
import re

import onnx
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

METRICS = ("AP", "AP50", "AP75", "AP-M", "AP-L", "AR")


def test_the_table_has_every_metric_and_its_conditions(network, people, qtool):
    result = qtool("eval", network, "--data", people, "--threads", "1")
    assert result.exit_code == 0
    assert all(re.search(rf"^{name} +(\d+\.\d\d|–)$", result.stdout, re.MULTILINE) for name in METRICS)
    assert re.search(r"^images +4$", result.stdout, re.MULTILINE)
    assert re.search(r"^skipped +0$", result.stdout, re.MULTILINE)
    assert "threads 1 · input 64×64 · head yolov8-pose · score threshold 0.001 · IoU threshold 0.7" in result.stdout
    assert result.stderr == "evaluating (4) …\n"


def test_json(network, people, qtool):
    result = qtool("eval", network, "--data", people, "--images", "2", "--iou-threshold", "0.5", "--json", "--quiet")
    document = json.loads(result.stdout)
    assert document["model"] == "tiny.onnx"
    assert (document["images"], document["skipped"], document["skipped_photos"]) == (2, 0, [])
    assert (document["score_threshold"], document["iou_threshold"]) == (0.001, 0.5)
    assert 0 <= document["ap"] <= document["ap50"] <= 100
    assert result.stderr == ""


@pytest.mark.parametrize("variant", ["16bit", "int8", "mixed"])
def test_quantized_networks(variant, finished, qtool):
    data, out, _ = finished
    result = qtool("eval", out / f"model.{variant}.onnx", "--data", data, "--threads", "1", "--json")
    rows = json.loads((out / "scorecard.json").read_text())["rows"]
    assert json.loads(result.stdout)["ap"] == next(row["ap"] for row in rows if row["variant"] == variant)


def test_an_open_size_needs_input_size(dynamic_pose_model, people, tmp_path, qtool):
    onnx.save(dynamic_pose_model(activation="relu"), tmp_path / "open.onnx")
    refused = qtool("eval", tmp_path / "open.onnx", "--data", people)
    assert refused.exit_code == 3
    assert "open.onnx leaves the size of its input 'images' open" in refused.stderr
    assert "--input-size 640x640" in refused.stderr
    result = qtool("eval", tmp_path / "open.onnx", "--data", people, "--input-size", "96x64", "--json")
    assert json.loads(result.stdout)["input_size_wh"] == [96, 64]


def test_saved_people_give_the_same_ap_in_pycocotools(network, people, tmp_path, qtool, capsys):
    saved = tmp_path / "found" / "people.json"
    result = qtool("eval", network, "--data", people, "--save-people", saved, "--json")
    truth = COCO(people / "val.json")
    evaluation = COCOeval(truth, truth.loadRes(str(saved)), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert json.loads(result.stdout)["ap"] == pytest.approx(evaluation.stats[0] * 100, abs=1e-3)
    records = json.loads(saved.read_text())
    assert 0 < len(records) <= 4 * 20
    assert {len(each["keypoints"]) for each in records} == {51}


def test_people_cannot_be_saved_below_a_file(network, people, tmp_path, qtool):
    (tmp_path / "file").write_text("")
    result = qtool("eval", network, "--data", people, "--save-people", tmp_path / "file" / "people.json")
    assert result.exit_code == 2
    assert "give another file with --save-people" in result.stderr
    # Found before anything was evaluated.
    assert "evaluating" not in result.stderr


def test_photos_without_labels_have_no_ap(network, people, qtool):
    result = qtool("eval", network, "--data", people / "val")
    assert result.exit_code == 3
    assert "the data set val has no labels to evaluate with" in result.stderr


@pytest.mark.parametrize("option", [("--score-threshold", "1.5"), ("--images", "0"), ("--input-size", "big")])
def test_values_out_of_range(option, network, people, qtool):
    assert qtool("eval", network, "--data", people, *option).exit_code == 2


def test_an_unknown_head_lists_the_known_ones(network, people, qtool):
    result = qtool("eval", network, "--data", people, "--head", "yolov9")
    assert result.exit_code == 2
    assert "there is no pose head called 'yolov9'" in result.stderr
    assert "yolov8-pose" in result.stderr
