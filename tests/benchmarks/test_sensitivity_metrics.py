import json
import math

import onnx
import pytest
import sensitivity_metrics


@pytest.mark.slow
def test_every_metric_gets_a_row_and_nothing_is_ranked_twice(confident_network, tmp_path, capsys):
    pytest.importorskip("torch")
    onnx.save(confident_network, tmp_path / "tiny.onnx")
    out = tmp_path / "out"
    command = [str(tmp_path / "tiny.onnx"), "synthetic:6@3/64", "--out", str(out)]
    command += ["--photos", "4", "--calibration-images", "4"]
    sensitivity_metrics.main([*command, "--metrics", "fisher"])
    first = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in first.splitlines()}
    assert set(lines) >= {"ap", "fisher"} and not {"oks", "sqnr"} & set(lines)
    # Nobody is where this network sees people: no layer loses any AP, and there is no rank to correlate with.
    assert lines["ap"][1] in ("1.000", "nan") and lines["fisher"][3] == "nan"
    assert lines["ap"][5] == lines["ap"][7] == "100.0%" and int(lines["fisher"][9]) > 0

    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json")}
    sensitivity_metrics.main([*command, "--halves"])
    second = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in second.splitlines()}
    assert set(lines) >= {"ap", "oks", "sqnr", "fisher"}
    assert lines["oks"][3] == "1.000" and float(lines["fisher"][3]) > 0.3
    assert int(lines["oks"][9]) > 0
    assert "ap on one half of the photos against the other" in second
    for name in ("ap.json", "fisher.json"):
        assert (out / name).stat().st_mtime_ns == made[name]
    assert len(json.loads((out / "ap-half0.json").read_text())["layers"]) == len(
        json.loads((out / "ap.json").read_text())["layers"]
    )


def test_the_order_of_layers_that_lose_by_chance_is_left_out():
    of_ap = [5.0, -0.1, 0.02, 1.0, 0.09, 0.3]
    assert sensitivity_metrics.losing(of_ap) == [0, 3, 5]
    assert sensitivity_metrics.correlation_of_losing([9.0, 8.0, 7.0, 3.0, 6.0, 1.0], of_ap) == pytest.approx(1.0)
    assert sensitivity_metrics.correlation_of_losing([1.0, 8.0, 7.0, 3.0, 6.0, 9.0], of_ap) == pytest.approx(-1.0)
    assert math.isnan(sensitivity_metrics.correlation_of_losing([1.0, 2.0], [1.0, -2.0]))
