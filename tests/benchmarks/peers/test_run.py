"""The whole command on a tiny network, with stand-ins for the tools: scripts that do what ``child`` asks of them."""

import json
from pathlib import Path

import cv2
import onnx
import peer_settings
import pytest
import run
from peer_openvino import _figures
from peer_settings import Setting, Tool
from peer_table import results_text

SCRIPTS = {
    "copy": "onnx.save(onnx.load(job.network), job.out); Path(job.network).write_text('a tool may write on its copy')",
    "broken": "raise ValueError('this operator is unknown')",
    "silent": "pass",
}


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A tool per script; ``count`` says how often each was started."""
    child = Path(peer_settings.__file__).parent / "quantizers"
    tools = []
    for name, body in SCRIPTS.items():
        script = tmp_path / f"stand_in_{name}.py"
        script.write_text(
            f"import sys; sys.path.insert(0, {str(child)!r})\n"
            "from pathlib import Path\nimport onnx\nfrom child import main\n\n"
            f"def quantize(job):\n"
            f"    with open({str(tmp_path / name)!r} + '.count', 'a') as stream: stream.write('x')\n"
            f"    {body}\n\n"
            "main('onnx', {'default': quantize})\n"
        )
        tools.append(Tool(name, name.title(), None, (Setting("default", "as it is", is_default=True),)))
    monkeypatch.setattr(Tool, "script", property(lambda tool: tmp_path / f"stand_in_{tool.name}.py"))
    monkeypatch.setattr(peer_settings, "TOOLS", tuple(tools))
    return lambda name: len((tmp_path / f"{name}.count").read_text()) if (tmp_path / f"{name}.count").exists() else 0


@pytest.fixture
def command(confident_network, make_data_set, tmp_path):
    onnx.save(confident_network, tmp_path / "tiny.onnx")
    data = make_data_set(tmp_path / "data")
    paths = [str(tmp_path / "tiny.onnx"), "--data", str(data), "--out", str(tmp_path / "out")]
    return [*paths, "--runs", "10", "--threads", "1", "--resamples", "5"]


def compare(command, *options, only=tuple(SCRIPTS)):
    made = run.parser().parse_args([*command, *options])
    made.only = only
    results = run.compare(made)
    return results, {row["label"]: row for row in results["rows"]}


@pytest.mark.slow
def test_one_tool_fails_the_others_go_on_and_nothing_done_is_done_again(stand_ins, command, tmp_path):
    results, rows = compare(command)
    assert list(rows) == ["float", "copy-default", "broken-default", "silent-default"]
    copy = rows["copy-default"]
    assert (copy["ap"], copy["ap50"]) == (rows["float"]["ap"], rows["float"]["ap50"])
    assert copy["agreement"] == rows["float"]["agreement"]
    assert (copy["q"], copy["dq"]) == (0, 0) and copy["seconds"] > 0
    assert copy["latency"]["measured"] and rows["float"]["latency"]["ratio"] == 1
    assert rows["broken-default"]["reason"] == "exit code 1: ValueError: this operator is unknown"
    assert rows["silent-default"]["reason"] == "it ended well and wrote no network"
    assert "latency" not in rows["silent-default"]
    assert json.loads((tmp_path / "out/results.json").read_text()) == results

    latency = copy["latency"]
    again, rows = compare(command)
    assert (stand_ins("copy"), stand_ins("broken"), stand_ins("silent")) == (1, 2, 2)
    assert rows["copy-default"]["latency"] == latency

    script = tmp_path / "stand_in_copy.py"
    script.write_text(script.read_text() + "# another version\n")
    compare(command, "--runs", "0", only=("copy",))
    assert stand_ins("copy") == 2

    text = results_text(again)
    assert "- broken-default: not run: exit code 1: ValueError: this operator is unknown" in text
    assert "| Copy | default |" in text


def test_tables_leave_out_what_was_not_measured():
    text = results_text(
        {
            "rows": [
                {"label": "float", "title": "float", "setting": "", "text": "as given", "ap": 50.0},
                {"label": "peer-a", "title": "Peer", "setting": "a", "text": "first", "version": "2.6", "ap": 49.5,
                 "q": 3, "dq": 7, "differences": {"qtool-mixed": {"ap": {"value": -0.5, "lo": -1.0, "hi": 0.25}}},
                 "openvino": {"refused": "no such operator"}},
                {"label": "peer-ir", "title": "Peer", "setting": "ir", "text": "second", "ran_on": "openvino-cpu",
                 "openvino": {"ap": 48.0, "p50_ms": 9.0, "ratio": 0.5, "ratio_lo": 0.4, "ratio_hi": 0.6}},
            ],
            "conditions": ["24 photos"],
        }
    )  # fmt: skip
    lines = text.splitlines()
    assert "| float |  | 50.00 | – | – | – | – | – | – | – | – | – |" in lines
    assert "| Peer | a | 49.50 | – | – | – | – | – | – | – | 3 / 7 | – |" in lines
    assert "| Peer | a | – | -0.50 (-1.00 to +0.25) |" in lines
    assert "| Peer | ir | 48.00 | – | 9.0 | 0.50 (0.40–0.60) | – | – | – |" in lines
    assert [line for line in lines if line.startswith("| Peer | ir")] == [
        "| Peer | ir | 48.00 | – | 9.0 | 0.50 (0.40–0.60) | – | – | – |"
    ]
    assert "- peer-a: not on OpenVINO: no such operator" in lines and "- peer-a (2.6): first" in lines


@pytest.mark.slow
def test_agreement_is_measured_on_photos_without_labels_too(stand_ins, command, add_unlabelled, tmp_path):
    mirrored = [cv2.imread(str(photo))[:, ::-1] for photo in sorted((tmp_path / "data" / "val").iterdir())]
    add_unlabelled(tmp_path / "data", [cv2.imencode(".png", image)[1].tobytes() for image in mirrored])
    results, rows = compare(command, "--runs", "0", only=("copy",))
    assert results["data"]["unlabelled_images"] == 4
    assert rows["copy-default"]["images_all"] == 8
    assert rows["copy-default"]["agreement_all"] == rows["float"]["agreement_all"] == 100.0
    assert "agreement on 8 photos" in results_text(results)
    _, rows = compare(command, "--runs", "0", "--unlabelled-images", "0", only=("copy",))
    assert "agreement_all" not in rows["copy-default"]


@pytest.mark.slow
def test_qtool_itself_and_the_differences_to_it(command):
    _, rows = compare(command, "--runs", "0", only=("qtool",))
    int8, mixed = rows["qtool-int8"], rows["qtool-mixed"]
    assert int8["q"] > mixed["q"] > 0 and int8["peak_rss_mb"] > 50
    assert mixed["notes"]["layers_16bit"] > 0 == int8["notes"]["layers_16bit"]
    difference = mixed["differences"]["qtool-int8"]["ap"]
    assert difference["value"] == pytest.approx(mixed["ap"] - int8["ap"], abs=2e-3)
    assert difference["lo"] <= difference["value"] <= difference["hi"] and difference["images"] == 4
    assert "qtool-mixed" not in mixed["differences"]


def test_a_failure_before_the_tools_is_told(command, capsys):
    arguments = [command[0], "--data", command[2] + "-elsewhere", *command[3:]]
    assert run.main(arguments) == 3
    assert "elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--only", "tensorrt"], ["--runs", "5"], ["--images", "0"]], ids=str)
def test_wrong_use(command, options, capsys):
    with pytest.raises(SystemExit) as caught:
        run.parser().parse_args([*command, *options])
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_latencies_on_openvino_are_ratios_to_the_first():
    samples = {"float": [[4.0, 4.0]] * 10, "peer": [[1.0, 1.0]] * 10}
    figures = _figures({"samples_ms": samples, "refused": {"fp16": "not supported"}, "version": "2026.4"})
    assert figures["peer"]["ratio"] == figures["peer"]["ratio_hi"] == 0.25
    assert (figures["float"]["p50_ms"], figures["float"]["count"]) == (4.0, 20)
    assert figures["fp16"] == {"refused": "not supported"}
    nothing = _figures({"samples_ms": {}, "refused": {"float": "no CPU plugin"}, "version": "2026.4"})
    assert nothing == {"float": {"refused": "no CPU plugin"}}
