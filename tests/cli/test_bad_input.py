"""What users get wrong: each fault has a message of its own, an exit code, and no traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper


@pytest.fixture
def text_network(tmp_path) -> Path:
    path = tmp_path / "notes.onnx"
    path.write_text("This is a note, and no network.\n")
    return path


@pytest.fixture
def truncated_network(network, tmp_path) -> Path:
    path = tmp_path / "half.onnx"
    path.write_bytes(network.read_bytes()[:20_000])
    return path


@pytest.fixture
def headless_network(tmp_path) -> Path:
    """One convolution: valid, runs, and gives feature maps that are no poses."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 64, 64))
    maps = helper.make_tensor_value_info("maps", TensorProto.FLOAT, (1, 5, 62, 62))
    weight = helper.make_tensor("w", TensorProto.FLOAT, (5, 3, 3, 3), [0.1] * 135)
    graph = helper.make_graph([helper.make_node("Conv", ["images", "w"], ["maps"])], "g", [image], [maps], [weight])
    path = tmp_path / "headless.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def _quantize(qtool, model, data, tmp_path, quick, *more):
    return qtool("quantize", model, "--data", data, "--mixed", "0.3", "--out", tmp_path / "out", *quick, *more)


class TestNetworks:
    COMMANDS = ("quantize", "sensitivity", "eval")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_text_file(self, command, text_network, people, qtool):
        result = qtool(command, text_network, "--data", people)
        assert result.exit_code == 3
        assert f"qtool: error: {text_network} is not an ONNX file" in result.stderr
        assert "found: a text file that begins with 'This is a note" in result.stderr

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_truncated_file(self, command, truncated_network, people, qtool):
        result = qtool(command, truncated_network, "--data", people)
        assert result.exit_code == 3
        assert f"qtool: error: {truncated_network} is truncated or damaged" in result.stderr
        assert "20000 bytes" in result.stderr

    @pytest.mark.parametrize("command", COMMANDS)
    def test_no_known_head(self, command, headless_network, people, qtool):
        result = qtool(command, headless_network, "--data", people)
        assert result.exit_code == 3
        assert "the outputs of this network fit no known pose head" in result.stderr
        assert "at an input of 64×64 (W×H), one of" in result.stderr
        assert "maps: 1×5×62×62" in result.stderr

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_missing_file(self, command, people, tmp_path, qtool):
        result = qtool(command, tmp_path / "no.onnx", "--data", people)
        assert result.exit_code == 3
        assert f"qtool: error: there is no file {tmp_path / 'no.onnx'}" in result.stderr

    def test_bench_refuses_them_too(self, text_network, truncated_network, tmp_path, qtool):
        for path, message in (
            (text_network, "is not an ONNX file"),
            (truncated_network, "is truncated or damaged"),
            (tmp_path / "no.onnx", "there is no file"),
        ):
            result = qtool("bench", path)
            assert result.exit_code == 3
            assert message in result.stderr

    def test_a_folder(self, people, qtool):
        result = qtool("eval", people, "--data", people)
        assert result.exit_code == 3
        assert "is a folder" in result.stderr

    def test_a_network_that_is_quantized_already(self, finished, people, tmp_path, qtool, quick):
        result = _quantize(qtool, finished[1] / "model.int8.onnx", people, tmp_path, quick)
        assert result.exit_code == 3
        assert "model.int8.onnx is quantized already" in result.stderr


class TestPhotos:
    @pytest.fixture
    def damaged(self, people) -> Path:
        """Of four photos to evaluate on, one is empty and one is text; of three to calibrate on, one is empty."""
        (people / "val" / "1.png").write_bytes(b"")
        (people / "val" / "3.png").write_text("no photo")
        (people / "calib" / "12.png").write_bytes(b"")
        return people

    def test_good_photos_are_used_and_bad_ones_listed(self, damaged, network, tmp_path, qtool, quick):
        result = _quantize(qtool, network, damaged, tmp_path, quick)
        assert result.exit_code == 0
        listed = result.stderr.splitlines()
        start = listed.index("photos that could not be used and were left out: 3")
        assert listed[start + 1 :] == [
            "  1.png: empty (0 bytes)",
            "  3.png: not an image: it starts with b'no photo'",
            "  12.png: empty (0 bytes)",
        ]
        data = json.loads((tmp_path / "out" / "scorecard.json").read_text())["data"]
        assert (data["images"], data["calibration_images"], data["skipped"]) == (2, 2, 3)

    def test_json_lists_them_with_their_paths(self, damaged, network, qtool):
        document = json.loads(qtool("eval", network, "--data", damaged, "--json").stdout)
        assert (document["images"], document["skipped"]) == (2, 2)
        assert [Path(each["path"]).name for each in document["skipped_photos"]] == ["1.png", "3.png"]

    def test_a_photo_that_only_decoding_shows_to_be_damaged(self, people, network, qtool):
        photo = people / "val" / "2.png"
        content = bytearray(photo.read_bytes())
        content[60:200] = bytes(140)
        photo.write_bytes(content)
        result = qtool("eval", network, "--data", people, "--json")
        assert result.exit_code == 0
        document = json.loads(result.stdout)
        assert (document["images"], document["skipped"]) == (3, 1)
        assert "2.png" in result.stderr

    def test_no_good_photo_at_all(self, people, network, qtool):
        for photo in (people / "val").iterdir():
            photo.write_bytes(b"")
        result = qtool("eval", network, "--data", people)
        assert result.exit_code == 3
        assert "no image of" in result.stderr
        assert "4 images, none of them usable (1.png: empty (0 bytes)" in result.stderr

    def test_calibration_photos_that_are_evaluated_on(self, people, network, tmp_path, qtool, quick):
        shutil.copy(people / "val" / "2.png", people / "calib" / "other_name.png")
        result = _quantize(qtool, network, people, tmp_path, quick)
        assert result.exit_code == 3
        assert "1 of the 4 calibration images are evaluation images too" in result.stderr
        assert "other_name.png (evaluated as 2.png)" in result.stderr
        assert not (tmp_path / "out").exists()


class TestLabels:
    @pytest.mark.parametrize("command", ["quantize", "eval"])
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"image_id": 77}, "annotation 1 (image 77): the image id is not in 'images'"),
            ({"category_id": 9}, "annotation 1: the category id is not in 'categories'"),
            ({"bbox": [float("nan"), 1, 2, 3]}, "annotation 1: bbox is NaN or infinite"),
            ({"keypoints": [1, 2, 3]}, "annotation 1: keypoints holds 3 values, expected 51"),
        ],
        ids=["unknown image", "unknown category", "NaN box", "too few keypoints"],
    )
    def test_faulty_people(self, command, changes, message, people, network, make_labels, qtool):
        (people / "val.json").write_text(json.dumps(make_labels(**changes)))
        result = qtool(command, network, "--data", people)
        assert result.exit_code == 3
        assert "val.json has 1 fault" in result.stderr
        assert message in result.stderr

    @pytest.mark.parametrize("key", ["bbox", "keypoints", "image_id", "area"])
    def test_a_missing_key(self, key, people, network, make_labels, qtool):
        document = make_labels()
        del document["annotations"][1][key]
        (people / "val.json").write_text(json.dumps(document))
        result = qtool("eval", network, "--data", people)
        assert result.exit_code == 3
        assert f"annotation 2: key '{key}' is missing" in result.stderr

    def test_no_json(self, people, network, qtool):
        (people / "val.json").write_text("{")
        result = qtool("eval", network, "--data", people)
        assert result.exit_code == 3
        assert "val.json" in result.stderr


class TestOptions:
    def test_a_share_above_1(self, network, people, qtool):
        result = qtool("quantize", network, "--data", people, "--mixed", "1.5")
        assert result.exit_code == 2
        assert "a number from 0 to 1, such as --mixed 0.3 for 30 %" in result.stderr
        assert "found: 1.5" in result.stderr

    def test_a_share_that_is_no_number(self, network, people, qtool):
        result = qtool("quantize", network, "--data", people, "--mixed", "30%")
        assert result.exit_code == 2
        assert "Invalid value for '--mixed'" in result.stderr

    def test_too_few_runs_are_refused_before_any_work(self, network, people, tmp_path, qtool):
        result = qtool("quantize", network, "--data", people, "--runs", "5", "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "5 is too few for a latency: at least 10, or 0 for none" in result.stderr
        assert not (tmp_path / "out").exists()

    def test_out_below_a_file(self, network, people, tmp_path, qtool):
        (tmp_path / "file").write_text("")
        result = qtool("quantize", network, "--data", people, "--out", tmp_path / "file" / "out")
        assert result.exit_code == 2
        assert f"the output folder {tmp_path / 'file' / 'out'} cannot be written" in result.stderr
        assert "give another folder with --out" in result.stderr

    def test_out_is_a_file(self, network, people, tmp_path, qtool):
        (tmp_path / "file").write_text("")
        assert qtool("quantize", network, "--data", people, "--out", tmp_path / "file").exit_code == 2

    def test_an_unknown_target_lists_the_known_ones(self, network, people, qtool):
        result = qtool("quantize", network, "--data", people, "--target", "abacus")
        assert result.exit_code == 2
        assert "expected: one of ort-cpu, openvino-cpu, tensorrt, tensorrt-strong, tensorrt-rtx, tidl" in result.stderr
        assert "found: 'abacus'" in result.stderr

    def test_a_16_bit_kind_the_target_does_not_have(self, network, people, qtool):
        result = qtool("quantize", network, "--data", people, "--target", "tensorrt", "--wide", "int16")
        assert result.exit_code == 2
        assert "expected: one of fp16" in result.stderr

    @pytest.mark.parametrize("command", ["quantize", "sensitivity", "eval"])
    def test_missing_data(self, command, network, tmp_path, qtool):
        result = qtool(command, network, "--data", tmp_path / "nowhere")
        assert result.exit_code == 3
        assert f"the data set {tmp_path / 'nowhere'} cannot be opened" in result.stderr
        assert "found: no such file or folder" in result.stderr

    def test_rendered_people_that_are_not_understood(self, network, qtool):
        result = qtool("quantize", network, "--data", "synthetic:many")
        assert result.exit_code == 2
        assert "expected: synthetic:N@seed" in result.stderr

    def test_no_data(self, network, qtool):
        result = qtool("eval", network)
        assert result.exit_code == 2
        assert "Missing option '--data'" in result.stderr

    def test_a_missing_plan(self, network, people, tmp_path, qtool):
        result = qtool("quantize", network, "--data", people, "--plan", tmp_path / "no.yaml")
        assert result.exit_code == 3
        assert f"the plan {tmp_path / 'no.yaml'} cannot be read" in result.stderr

    def test_a_plan_of_another_network(self, network, people, tmp_path, qtool):
        (tmp_path / "plan.yaml").write_text("layers: {conv1: int8}\n")
        result = qtool("quantize", network, "--data", people, "--plan", tmp_path / "plan.yaml")
        assert result.exit_code == 3
        assert "the plan does not fit the network" in result.stderr
