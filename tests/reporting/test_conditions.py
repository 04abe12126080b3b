from __future__ import annotations

from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.reporting.conditions import (
    conditions,
    conditions_lines,
    environment,
    latency_conditions,
    plan_summary,
    sensitivity_line,
    title,
)

DATA = (
    "input 640×480 · 300 images of coco (sha256 3f2a91c04b1e, 2 skipped)"
    " · calibrated on 158 images (sha256 cdcdcdcdcdcd)"
)


def test_title(card):
    assert title(card()) == "net.onnx on ort-cpu"


def test_one_line_where_all_rows_share_their_conditions(card):
    assert conditions_lines(card()) == (f"Test CPU @ 2.10GHz · onnxruntime 1.32.0 · 2 threads · batch 1 · {DATA}",)


def test_a_line_for_each_group_where_they_differ(card, row, latency, modelled):
    rows = (row("float", latency=latency()), row("int8", latency=modelled()), row("mixed", latency=modelled(13.0)))
    assert conditions_lines(card(rows)) == (
        "float: Test CPU @ 2.10GHz · onnxruntime 1.32.0 · 2 threads · batch 1",
        "int8, mixed: latency modelled, not measured (±6 %) · Test board · TensorRT 10.3 · 2 threads · batch 1",
        DATA,
    )


def test_without_latency_the_data_remain(card, row):
    assert conditions_lines(card((row(latency=None),))) == (DATA,)


def test_not_calibrated(card):
    facts = card().data.model_copy(update={"calibration_images": 0, "images": 1, "skipped": 0})
    (line,) = conditions_lines(card(data=facts))
    assert line.endswith("1 image of coco (sha256 3f2a91c04b1e) · not calibrated")


def test_number_of_threads_and_the_mark_keep_groups_apart(latency, modelled):
    one = {"threads": 1, "batch": 1}
    groups = latency_conditions(
        [("a", latency()), ("b", None), ("c", latency(conditions=one)), ("d", latency()), ("e", modelled(device="x"))]
    )
    assert [names for names, _ in groups] == ["a, d", "c", "e"]
    assert "1 thread · " in groups[1][1]
    assert [what.startswith("latency modelled, not measured") for _, what in groups] == [False, False, True]


def test_missing_conditions_are_left_out(latency):
    assert latency_conditions([("a", latency(conditions={}))]) == (("a", "Test CPU @ 2.10GHz · onnxruntime 1.32.0"),)


def test_all_conditions_on_the_page(card, row, latency):
    rows = (
        row("float", latency=latency(conditions={"threads": 2, "batch": 1, "count": 200, "warm_up_count": 20})),
        row("int8", latency=latency(conditions={"threads": 2, "batch": 1, "count": 200, "warm_up_count": 31})),
    )
    found = dict(conditions(card(rows)))
    assert found["network"] == "net.onnx (sha256 abababababab)"
    assert found["input"] == "640×480 pixels (width × height)"
    assert found["latency of float, int8"] == "Test CPU @ 2.10GHz · onnxruntime 1.32.0 · 2 threads · batch 1"
    assert found["latency: count"] == "200"
    assert found["latency: warm up count"] == "20 | 31"
    assert found["accuracy computed by"] == "onnxruntime 1.32.0"
    assert found["bias correction"] == "yes"
    assert "latency: threads" not in found


def test_environment(card):
    assert environment(card()) == (("cpu", "Test CPU"), ("governor", "–"), ("packages", "numpy 2.4, onnx 1.23"))


def test_plan_summary(plan):
    assert plan_summary(plan) == "1 of 2 layers at 16 bit (1 at int16, 1 at int8). Made by: oks, 30 % of layers."
    alone = PrecisionPlan(layers={"conv": Precision.FP32})
    assert plan_summary(alone) == "0 of 1 layer at 16 bit (1 at fp32)."


def test_sensitivity_line_says_how_many_layers_are_left_out(sensitivity):
    line = sensitivity_line(sensitivity, shown=2)
    assert line.startswith("2 of 3 layers · loss: mean of 1 − OKS")
    assert line.endswith("only this layer at int8 · 64 calibration images with 120 people · target ort-cpu")
    assert sensitivity_line(sensitivity, shown=3).startswith("3 layers · ")


def test_sensitivity_line_of_ap(sensitivity):
    of_ap = sensitivity.model_copy(update={"metric": "ap", "people": 0, "part": "train", "float_ap": 52.52})
    line = sensitivity_line(of_ap, shown=3)
    assert "loss: COCO AP lost, in points" in line
    assert "64 training images (float AP 52.52) · target" in line


def test_sensitivity_line_of_sqnr(sensitivity):
    line = sensitivity_line(sensitivity.model_copy(update={"metric": "sqnr", "people": 0}), shown=3)
    assert "noise over signal" in line
    assert "people" not in line
