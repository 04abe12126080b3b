import json
import re

import onnx
import pytest
import torch

from qtoolkit.models.checkpoint import save_weights
from qtoolkit.models.yolopose import YoloPose, YoloPoseConfig


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """best.safetensors of an n6 lite trained at 64 pixels."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_weights(path, YoloPose(YoloPoseConfig(lite=True, activation="relu")), {"recipe": {"image_size": 64}})
    return path


def _outputs(path):
    return [value.name for value in onnx.load(path, load_external_data=False).graph.output]


def test_weights_into_a_folder(weights, tmp_path, qtool):
    result = qtool("export", weights, "--out", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "new" / "folder" / "best.onnx").is_file()
    assert "n6-lite relu · input 64×64 · opset 17" in result.stdout
    assert "0.023 GMACs · 3.20 M parameters" in result.stdout
    assert "torch and ONNX Runtime differ by" in result.stdout


def test_weights_into_a_file_with_suppression_inside(weights, tmp_path, qtool):
    out = tmp_path / "x.onnx"
    result = qtool("export", weights, "--out", out, "--size", "128x64", "--opset", "21", "--end-to-end", "--json")
    document = json.loads(result.stdout)
    assert (document["path"], document["opset"], document["end_to_end"]) == (str(out), 21, True)
    assert document["input_size_wh"] == [128, 64]
    assert document["relative_error"] <= 1e-4
    assert _outputs(out) == ["boxes", "scores", "keypoints"]


def test_weights_stored_as_fp16(weights, tmp_path, qtool):
    result = qtool("export", weights, "--out", tmp_path / "half.onnx", "--half-storage", "--end-to-end")
    assert result.exit_code == 0, result.stderr
    said = re.search(r"weights are stored as fp16, which changes outputs by (\S+) at most", result.stdout)
    assert 0 < float(said[1]) < 0.05
    # 3.20 M parameters of two bytes, and the graph.
    assert (tmp_path / "half.onnx").stat().st_size < 1.08 * 2 * 3.2e6
    assert _outputs(tmp_path / "half.onnx") == ["boxes", "scores", "keypoints"]


def test_a_network_beside_itself(network, tmp_path, qtool):
    (tmp_path / "tiny.onnx").write_bytes(network.read_bytes())
    result = qtool("export", tmp_path / "tiny.onnx", "--end-to-end", "--score-threshold", "0.25")
    assert result.exit_code == 0, result.stderr
    assert _outputs(tmp_path / "tiny.end-to-end.onnx") == ["boxes", "scores", "keypoints"]
    assert "suppression behind a yolov8-pose head" in result.stdout
    assert (tmp_path / "tiny.onnx").read_bytes() == network.read_bytes()


def test_the_same_ap_with_suppression_inside(network, people, tmp_path, qtool):
    qtool("export", network, "--end-to-end", "--out", tmp_path / "inside.onnx")
    plain, inside = (
        json.loads(qtool("eval", path, "--data", people, "--threads", "1", "--json").stdout)
        for path in (network, tmp_path / "inside.onnx")
    )
    assert inside["head"] == "separate-outputs"
    assert inside["ap"] == pytest.approx(plain["ap"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["WEIGHTS", "--size", "100"], 2, "give --size 128x128"),
        (["WEIGHTS", "--opset", "13"], 2, "expected: 17 to 21\n  found: 13"),
        (["WEIGHTS", "--iou-threshold", "0.5"], 2, "thresholds are for suppression inside"),
        (["WEIGHTS", "--activation", "relu"], 2, "name their activation themselves"),
        (["WEIGHTS", "--head", "yolov5-pose"], 2, "--head does not go with weights"),
        (["WEIGHTS", "--architecture", "s6"], 3, "model.33.m_kpt.0.11.weight missing"),
        (["WEIGHTS", "--architecture", "s7"], 2, "no architecture called 's7'"),
        (["NETWORK"], 2, "the network is ONNX already"),
        (["NETWORK", "--end-to-end", "--opset", "21"], 2, "--opset does not go with an ONNX network"),
        (["NETWORK", "--end-to-end", "--half-storage"], 2, "--half-storage does not go with an ONNX network"),
        (["NETWORK", "--end-to-end", "--head", "heatmap"], 3, "do not fit --head heatmap"),
        (["absent.safetensors"], 3, "found: no such file"),
        (["absent.onnx", "--end-to-end"], 3, "absent.onnx"),
        (["TEXT"], 3, "the weights .* cannot be read"),
    ],
)
def test_wrong_use_and_bad_files(options, exit_code, message, weights, network, tmp_path, qtool):
    (tmp_path / "text.pt").write_text("no weights")
    files = {"WEIGHTS": weights, "NETWORK": network, "TEXT": tmp_path / "text.pt"}
    source, *rest = options
    result = qtool("export", files.get(source, tmp_path / source), *rest, "--out", tmp_path / "out.onnx")
    assert result.exit_code == exit_code, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_an_output_below_a_file(weights, tmp_path, qtool):
    (tmp_path / "file").write_text("")
    result = qtool("export", weights, "--out", tmp_path / "file" / "x.onnx")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
