from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.errors import GateFailed, UsageError
from qtoolkit.reporting.regression import (
    METRICS,
    Regression,
    Tolerance,
    compare,
    junit_xml,
    parse_max_drop,
    raise_on_failure,
)


@pytest.mark.parametrize(
    ("text", "tolerances"),
    [
        ("ap=0.5", [Tolerance("ap", 0.5)]),
        ("ap=0.5,latency=5%", [Tolerance("ap", 0.5), Tolerance("latency", 5, percent=True)]),
        (" AP = .5 , size = 1. ", [Tolerance("ap", 0.5), Tolerance("size", 1)]),
        ("latency=2", [Tolerance("latency", 2)]),
        ("latency=2ms,size=0.25MB", [Tolerance("latency", 2), Tolerance("size", 0.25)]),
        ("agreement=0,ap50=1", [Tolerance("agreement", 0), Tolerance("ap50", 1)]),
    ],
)
def test_max_drop(text, tolerances):
    assert list(parse_max_drop(text)) == tolerances


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        pytest.param("", "''", "ap, ap50, agreement, latency, size", id="empty"),
        pytest.param("ap=0.5,", "''", "metric=amount", id="trailing comma"),
        pytest.param("ap", "'ap'", "metric=amount", id="no amount"),
        pytest.param("map=1", "'map=1'", "ap, ap50", id="unknown metric"),
        pytest.param("ap=", "'ap='", "AP points", id="empty amount"),
        pytest.param("ap=-1", "'ap=-1'", "AP points", id="negative"),
        pytest.param("ap=nan", "'ap=nan'", "AP points", id="not a number"),
        pytest.param("ap=" + "9" * 400, "'ap=" + "9" * 400 + "'", "AP points", id="too long for a number"),
        pytest.param("ap=inf", "'ap=inf'", "AP points", id="infinite"),
        pytest.param("ap=1%", "'ap=1%'", "AP points", id="percent of AP is ambiguous"),
        pytest.param("latency=1MB", "'latency=1MB'", "5% of the baseline, or ms", id="another metric's unit"),
        pytest.param("ap=1,ap=2", "'ap=2'", "each metric once", id="twice"),
    ],
)
def test_max_drop_refused(text, found, expected):
    with pytest.raises(UsageError, match="--max-drop cannot be understood") as caught:
        parse_max_drop(text)
    assert caught.value.found == found
    assert expected in caught.value.expected
    assert "--max-drop ap=0.5,latency=5%" in caught.value.do


@given(st.text())
def test_max_drop_of_any_text_is_understood_or_refused(text):
    try:
        tolerances = parse_max_drop(text)
    except UsageError:
        return
    assert tolerances


@given(
    st.dictionaries(
        st.sampled_from(METRICS), st.decimals(0, 1000, allow_nan=False, allow_infinity=False, places=3), min_size=1
    )
)
def test_max_drop_of_any_amounts(amounts):
    found = parse_max_drop(",".join(f"{metric}={amount}" for metric, amount in amounts.items()))
    assert {each.metric: each.amount for each in found} == {metric: float(each) for metric, each in amounts.items()}


def judged(card, now, before, max_drop) -> Regression:
    (result,) = compare(card((now,)), card((before,)), parse_max_drop(max_drop))
    return result


@pytest.mark.parametrize(
    ("before", "now", "max_drop", "status"),
    [
        pytest.param(53.61, 53.61, "ap=0", "pass", id="unchanged"),
        pytest.param(53.61, 53.11, "ap=0.5", "pass", id="exactly as much as is allowed"),
        pytest.param(53.0, 52.8, "ap=0.2", "pass", id="exactly as much, though not in binary"),
        pytest.param(53.61, 53.10, "ap=0.5", "fail", id="a hundredth more"),
        pytest.param(53.61, 60.0, "ap=0", "pass", id="better"),
        pytest.param(53.61, float("nan"), "ap=100", "fail", id="not a number"),
        pytest.param(float("nan"), 53.61, "ap=100", "fail", id="baseline not a number"),
    ],
)
def test_ap(card, row, *, before, now, max_drop, status):
    assert judged(card, row(ap=now), row(ap=before), max_drop).status == status


def test_ap_result_in_full(card, row):
    result = judged(card, row(ap=52.61), row(ap=53.61), "ap=0.5")
    assert (result.variant, result.metric, result.status) == ("mixed", "ap", "fail")
    assert (result.baseline, result.current) == (53.61, 52.61)
    assert result.worse_by == pytest.approx(1.0)
    assert result.reason == "AP 53.610 → 52.610 points: 1.000 worse; allowed: 0.5 points worse"


@pytest.mark.parametrize("metric", ["ap50", "agreement"])
def test_other_accuracies_are_gated_on_their_own_figure(card, row, metric):
    assert judged(card, row(**{metric: 80.0}), row(**{metric: 81.0}), f"{metric}=0.9").status == "fail"
    assert judged(card, row(**{metric: 80.0}, ap=0.0), row(**{metric: 81.0}), f"{metric}=1.1").status == "pass"


@pytest.mark.parametrize(
    ("before_ms", "now_ms", "max_drop", "status"),
    [
        pytest.param(40.0, 42.0, "latency=5%", "pass", id="5 % of 40 ms is 2 ms"),
        pytest.param(40.0, 42.01, "latency=5%", "fail", id="a little more"),
        pytest.param(40.0, 10.0, "latency=0%", "pass", id="faster"),
        pytest.param(40.0, 42.0, "latency=2", "pass", id="2 ms"),
        pytest.param(40.0, 42.0, "latency=1.9ms", "fail", id="less than 2 ms"),
    ],
)
def test_latency(card, row, latency, *, before_ms, now_ms, max_drop, status):
    result = judged(card, row(latency=latency(now_ms)), row(latency=latency(before_ms)), max_drop)
    assert result.status == status


def test_latency_result_in_full(card, row, latency):
    result = judged(card, row(latency=latency(44.0)), row(latency=latency(40.0)), "latency=5%")
    assert result.worse_by == pytest.approx(4.0)
    assert result.reason == "p50 40.000 → 44.000 ms: 4.000 worse (10.0%); allowed: 5 % worse"


@pytest.mark.parametrize(
    ("now_mb", "max_drop", "status"),
    [(4.4, "size=10%", "pass"), (4.41, "size=10%", "fail"), (4.41, "size=0.5", "pass"), (3.0, "size=0", "pass")],
)
def test_size(card, row, now_mb, max_drop, status):
    assert judged(card, row(size_mb=now_mb), row(size_mb=4.0), max_drop).status == status


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "another CPU"}, "another device (another CPU after Test CPU @ 2.10GHz)"),
        ({"target": "tensorrt"}, "another target (tensorrt after ort-cpu)"),
        ({"runtime": "openvino"}, "another runtime (openvino after onnxruntime)"),
        ({"conditions": {"threads": 1, "batch": 1}}, "another threads (1 after 2)"),
        ({"conditions": {"threads": 2, "batch": 8}}, "another batch (8 after 1)"),
        ({"measured": False}, "the baseline's is measured, this one modelled"),
    ],
)
def test_latency_under_other_conditions_is_never_compared(card, row, latency, change, reason):
    # A thousand times slower would fail, were it compared.
    slow, results = row(latency=latency(45_200.0, **change)), parse_max_drop("latency=5%,ap=0.5")
    skipped, ap = compare(card((slow,)), card((row(latency=latency()),)), results)
    assert skipped.status == "skipped"
    assert skipped.reason == f"latency is not compared: {reason}"
    assert (skipped.baseline, skipped.current, skipped.worse_by) == (None, None, None)
    assert ap.status == "pass"


def test_another_version_of_the_runtime_is_compared_and_said(card, row, latency):
    result = judged(card, row(latency=latency(version="1.33.0")), row(latency=latency()), "latency=5%")
    assert result.status == "pass"
    assert result.reason.endswith("(onnxruntime 1.33.0 after 1.32.0)")


def test_two_modelled_latencies_are_compared_and_marked(card, row, modelled):
    result = judged(card, row(latency=modelled(14.0)), row(latency=modelled(12.0)), "latency=5%")
    assert result.status == "fail"
    assert result.reason.endswith("(both modelled, not measured)")


def test_accuracy_computed_elsewhere_is_said(card, row):
    result = judged(card, row(accuracy_on="tensorrt 10.3"), row(), "ap=0.5")
    assert result.reason.endswith("(computed by tensorrt 10.3 after onnxruntime 1.32.0)")


@pytest.mark.parametrize(
    ("metric", "nothing", "title"), [("ap", {"ap": None}, "AP"), ("latency", {"latency": None}, "p50")]
)
def test_a_figure_that_one_side_lacks_is_skipped(card, row, metric, nothing, title):
    now = judged(card, row(**nothing), row(), f"{metric}=1")
    before = judged(card, row(), row(**nothing), f"{metric}=1")
    assert (now.status, now.reason) == ("skipped", f"{title} is not in this scorecard")
    assert (before.status, before.reason) == ("skipped", f"{title} is not in the baseline")


def test_variants_gone_and_new(card, row):
    results = compare(
        card((row("int8"), row("new"))), card((row("int8"), row("mixed"))), parse_max_drop("ap=0.5,size=1%")
    )
    assert [(each.variant, each.metric, each.status) for each in results] == [
        ("int8", "ap", "pass"),
        ("int8", "size", "pass"),
        ("mixed", "ap", "skipped"),
        ("mixed", "size", "skipped"),
    ]
    assert "not in this scorecard" in results[2].reason


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("data", {"sha256": "f" * 64}, "another data set"),
        ("data", {"images": 299}, "another number of images"),
        ("model", {"input_size_wh": (640, 640)}, "another input size"),
    ],
)
def test_unlike_scorecards_are_refused(card, part, change, message):
    other = card(**{part: getattr(card(), part).model_copy(update=change)})
    with pytest.raises(UsageError, match=message) as caught:
        compare(other, card(), parse_max_drop("ap=0.5"))
    assert caught.value.do is not None


def test_unlike_input_size_names_both(card):
    other = card(model=card().model.model_copy(update={"input_size_wh": (640, 640)}))
    with pytest.raises(UsageError) as caught:
        compare(other, card(), parse_max_drop("ap=0.5"))
    assert caught.value.expected == "input size 640×480, as in the baseline"
    assert caught.value.found == "640×640"


def test_another_network_of_the_same_conditions_is_compared(card):
    other = card(model=card().model.model_copy(update={"sha256": "f" * 64, "name": "retrained.onnx"}))
    assert all(each.status == "pass" for each in compare(other, card(), parse_max_drop("ap=0.5,latency=5%")))


def test_no_variant_in_common(card, row):
    with pytest.raises(UsageError, match="no variant in common") as caught:
        compare(card((row("a"),)), card((row("b"), row("c"))), parse_max_drop("ap=0.5"))
    assert caught.value.expected == "one of b, c"
    assert caught.value.found == "a"


PASS = Regression("int8", "ap", "pass", "AP 50.00 → 50.00 points: unchanged", 50.0, 50.0, 0.0)
FAIL = Regression("mixed", "latency", "fail", 'p50 1 → 2 ms: <slow> & "bad"', 1.0, 2.0, 1.0)
SKIPPED = Regression("mixed", "ap", "skipped", "AP is not in the baseline")


def test_gate(card):
    raise_on_failure([PASS, SKIPPED])
    with pytest.raises(GateFailed, match="1 of 3 figures are worse") as caught:
        raise_on_failure([PASS, FAIL, SKIPPED])
    assert caught.value.exit_code == 1
    assert "mixed: p50 1 → 2 ms" in caught.value.found


@pytest.mark.parametrize("results", [[], [SKIPPED, SKIPPED]], ids=["no results", "all skipped"])
def test_a_gate_that_compared_nothing_is_not_green(results):
    with pytest.raises(GateFailed, match="the gate compared nothing"):
        raise_on_failure(results)


def test_junit():
    root = ET.fromstring(junit_xml([PASS, FAIL, SKIPPED], suite="gate"))
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.attrib == {"name": "gate", "tests": "3", "failures": "1", "errors": "0", "skipped": "1"}
    cases = list(suite)
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        ("int8", "ap"),
        ("mixed", "latency"),
        ("mixed", "ap"),
    ]
    assert [[child.tag for child in case] for case in cases] == [["system-out"], ["failure"], ["skipped"]]
    assert cases[0].findtext("system-out") == PASS.reason
    assert cases[1].find("failure").get("message") == FAIL.reason
    assert cases[2].find("skipped").get("message") == SKIPPED.reason


def test_junit_of_nothing():
    assert ET.fromstring(junit_xml([])).get("tests") == "0"


@given(st.text())
def test_junit_can_be_read_back_whatever_the_names(name):
    # Surrogates are in no file; what XML cannot hold becomes a replacement character.
    root = ET.fromstring(junit_xml([Regression(name, "ap", "fail", name)]).encode("utf-8"))
    found = root.find("testsuite/testcase").get("classname")
    assert len(found) == len(name)
    assert all(a in (b, "�", " ") for a, b in zip(found, name, strict=True))
