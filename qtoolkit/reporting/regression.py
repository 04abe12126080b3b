"""The gate of CI: is a scorecard worse than its baseline by more than is allowed? And the answer as JUnit XML."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qtoolkit.artifacts.scorecard import LatencyFigures, Scorecard, ScorecardRow
from qtoolkit.errors import GateFailed, UsageError
from qtoolkit.reporting import cells

__all__ = ["METRICS", "Metric", "Regression", "Tolerance", "compare", "junit_xml", "parse_max_drop", "raise_on_failure"]

Metric = Literal["ap", "ap50", "agreement", "latency", "size"]
METRICS: tuple[Metric, ...] = ("ap", "ap50", "agreement", "latency", "size")
_UNITS: dict[Metric, str] = {"ap": "points", "ap50": "points", "agreement": "points", "latency": "ms", "size": "MB"}
_TITLES: dict[Metric, str] = {"ap": "AP", "ap50": "AP50", "agreement": "agreement", "latency": "p50", "size": "size"}
_HIGHER_IS_BETTER: frozenset[Metric] = frozenset({"ap", "ap50", "agreement"})
_EXAMPLE = "--max-drop ap=0.5,latency=5%"
_AMOUNT = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)\s*(?P<unit>%|ms|MB)?")
# Far below any figure's last digit: 53.61 − 53.11 must not count as more than 0.5 for the sake of binary fractions.
_ROUNDING = 1e-9
# What XML 1.0 cannot hold in any form: https://www.w3.org/TR/xml/#charsets
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Tolerance:
    """How much worse ``metric`` may be: ``amount`` in its unit (AP points, ms, MB), or in percent of the baseline."""

    metric: Metric
    amount: float
    percent: bool = False

    def allowed(self, baseline: float) -> float:
        """The amount in the unit of the metric, for that baseline."""
        return abs(baseline) * self.amount / 100 if self.percent else self.amount

    def __str__(self) -> str:
        return f"{self.amount:g} {'%' if self.percent else _UNITS[self.metric]}"


@dataclass(frozen=True)
class Regression:
    """One metric of one variant against its baseline.

    ``worse_by`` is in the metric's unit and positive where the figure got worse; it, ``baseline`` and ``current`` are
    None where there was nothing to compare. ``reason`` is one sentence for a reader.
    """

    variant: str
    metric: Metric
    status: Literal["pass", "fail", "skipped"]
    reason: str
    baseline: float | None = None
    current: float | None = None
    worse_by: float | None = None


def parse_max_drop(text: str) -> tuple[Tolerance, ...]:
    """``"ap=0.5,latency=5%"`` → tolerances, in the order given.

    AP, AP50 and agreement take AP points; latency (p50) and size take a percentage of the baseline, or ms and MB.
    Raises UsageError for an empty text, an unknown or repeated metric, a negative number, or a unit the metric lacks.
    """
    tolerances: list[Tolerance] = []
    for item in text.split(","):
        name, separator, amount = (part.strip() for part in item.partition("="))
        metric = next((each for each in METRICS if each == name.lower()), None)
        if not separator or metric is None:
            raise _refused(item, f"metric=amount, with one of the metrics {', '.join(METRICS)}")
        if any(each.metric == metric for each in tolerances):
            raise _refused(item, f"each metric once, but {metric} stands there twice")
        tolerances.append(_tolerance(metric, amount, item))
    return tuple(tolerances)


def compare(scorecard: Scorecard, baseline: Scorecard, tolerances: Sequence[Tolerance]) -> tuple[Regression, ...]:
    """One result for each variant of the baseline and each tolerance, in that order.

    A variant that is only in the scorecard is new and not judged; one that is gone, and a figure that either side
    lacks, is ``skipped``, with the reason. So is latency on another device, target, runtime, batch or number of
    threads, and a modelled one beside a measured one: it is never compared. Raises UsageError where the two have other
    data (by hash and number of images), another input size, or no variant in common.
    """
    _check_alike(scorecard, baseline)
    return tuple(
        _judge(tolerance, before, scorecard.row(before.variant)) for before in baseline.rows for tolerance in tolerances
    )


def raise_on_failure(results: Sequence[Regression]) -> None:
    """Raise GateFailed where a result failed, and where nothing was compared: such a gate would hold nothing back."""
    failed = [each for each in results if each.status == "fail"]
    if failed:
        raise GateFailed(
            f"{len(failed)} of {len(results)} figures are worse than the baseline allows",
            found="; ".join(f"{each.variant}: {each.reason}" for each in failed),
            do="mend the cause, or commit the new scorecard as the baseline if the loss is wanted",
        )
    if all(each.status == "skipped" for each in results):
        raise GateFailed(
            "the gate compared nothing",
            expected="at least one figure that both scorecards hold under the same conditions",
            found="; ".join(dict.fromkeys(each.reason for each in results)) or "no results",
            do="make a baseline on this device, or gate on ap, which does not depend on it",
        )


def junit_xml(results: Sequence[Regression], suite: str = "qtool report") -> str:
    """The results as JUnit XML: a test case for each, with the variant as class and the metric as name."""
    counts = {
        "tests": str(len(results)),
        "failures": str(sum(each.status == "fail" for each in results)),
        "errors": "0",
        "skipped": str(sum(each.status == "skipped" for each in results)),
    }
    root = ET.Element("testsuites", counts)
    group = ET.SubElement(root, "testsuite", {"name": _xml_text(suite), **counts})
    for each in results:
        case = ET.SubElement(
            group, "testcase", {"classname": _xml_text(each.variant), "name": each.metric, "time": "0"}
        )
        reason = _xml_text(each.reason)
        if each.status == "fail":
            ET.SubElement(case, "failure", {"message": reason, "type": "regression"}).text = reason
        elif each.status == "skipped":
            ET.SubElement(case, "skipped", {"message": reason})
        else:
            ET.SubElement(case, "system-out").text = reason
    ET.indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _tolerance(metric: Metric, amount: str, item: str) -> Tolerance:
    found = _AMOUNT.fullmatch(amount)
    own = {"latency": "ms", "size": "MB"}.get(metric)
    units = ("", None) if own is None else ("", None, "%", own)
    if found is None or found["unit"] not in units:
        raise _refused(
            item, "AP points, such as 0.5" if own is None else f"5% of the baseline, or {own}, such as 2{own}"
        )
    return Tolerance(metric, float(found["number"]), percent=found["unit"] == "%")


def _refused(item: str, expected: str) -> UsageError:
    return UsageError(
        "--max-drop cannot be understood", expected=expected, found=repr(item.strip()), do=f"write it as {_EXAMPLE}"
    )


def _check_alike(scorecard: Scorecard, baseline: Scorecard) -> None:
    pairs = (
        ("data set", baseline.data.sha256, scorecard.data.sha256),
        ("input size", baseline.model.input_size_wh, scorecard.model.input_size_wh),
        # A part of the same data set gives other figures than the whole.
        ("number of images", baseline.data.images, scorecard.data.images),
    )
    for name, before, now in pairs:
        if before != now:
            raise UsageError(
                f"the scorecard and its baseline have another {name}: their figures cannot be compared",
                expected=f"{name} {_condition(before)}, as in the baseline",
                found=_condition(now),
                do="measure under the conditions of the baseline, or make a new baseline",
            )
    if not any(scorecard.row(row.variant) for row in baseline.rows):
        raise UsageError(
            "the scorecard and its baseline have no variant in common",
            expected=f"one of {_names(baseline)}",
            found=_names(scorecard),
        )


def _judge(tolerance: Tolerance, before: ScorecardRow, now: ScorecardRow | None) -> Regression:
    metric = tolerance.metric
    if now is None:
        return Regression(before.variant, metric, "skipped", "the variant is in the baseline but not in this scorecard")
    if metric == "latency" and before.latency and now.latency:
        unlike = _unlike(before.latency, now.latency)
        if unlike:
            return Regression(before.variant, metric, "skipped", f"latency is not compared: {unlike}")
    old, new = _value(before, metric), _value(now, metric)
    if old is None or new is None:
        where = "the baseline" if old is None else "this scorecard"
        return Regression(before.variant, metric, "skipped", f"{_TITLES[metric]} is not in {where}")
    worse_by = old - new if metric in _HIGHER_IS_BETTER else new - old
    # Not `worse_by > allowed`: a figure that is not a number is no pass.
    passed = math.isfinite(worse_by) and worse_by <= tolerance.allowed(old) + _ROUNDING
    reason = f"{_change(metric, old, new, worse_by)}; allowed: {tolerance} worse{_remark(metric, before, now)}"
    return Regression(before.variant, metric, "pass" if passed else "fail", reason, old, new, worse_by)


def _value(row: ScorecardRow, metric: Metric) -> float | None:
    if metric == "latency":
        return None if row.latency is None else row.latency.p50_ms
    values = {"ap": row.ap, "ap50": row.ap50, "agreement": row.agreement, "size": row.size_mb}
    return values[metric]


def _unlike(before: LatencyFigures, now: LatencyFigures) -> str:
    """What differs so that two latencies say nothing about each other; empty where they may be compared."""
    if before.measured != now.measured:
        kinds = ["measured" if each.measured else "modelled" for each in (before, now)]
        return f"the baseline's is {kinds[0]}, this one {kinds[1]}"
    names = ("device", "target", "runtime")
    facts = [(name, getattr(before, name), getattr(now, name)) for name in names]
    facts += [(name, before.conditions.get(name), now.conditions.get(name)) for name in ("threads", "batch")]
    return "; ".join(
        f"another {name} ({_condition(now)} after {_condition(old)})" for name, old, now in facts if old != now
    )


def _change(metric: Metric, old: float, new: float, worse_by: float) -> str:
    figures = f"{_TITLES[metric]} {old:.3f} → {new:.3f} {_UNITS[metric]}"
    if not math.isfinite(worse_by):
        return f"{figures}: not a number"
    if worse_by == 0:
        return f"{figures}: unchanged"
    relative = f" ({abs(worse_by / old):.1%})" if metric not in _HIGHER_IS_BETTER and old else ""
    return f"{figures}: {abs(worse_by):.3f} {'worse' if worse_by > 0 else 'better'}{relative}"


def _remark(metric: Metric, before: ScorecardRow, now: ScorecardRow) -> str:
    """What a reader of a comparison must know besides: a model, or other software, behind one of the figures."""
    if metric == "size":
        return ""
    if metric != "latency":
        pair = (before.accuracy_on, now.accuracy_on)
        return f" (computed by {_condition(pair[1])} after {_condition(pair[0])})" if pair[0] != pair[1] else ""
    if before.latency is None or now.latency is None:
        return ""
    modelled = "" if now.latency.measured else " (both modelled, not measured)"
    versions = (before.latency.version, now.latency.version)
    changed = f" ({now.latency.runtime} {versions[1]} after {versions[0]})" if versions[0] != versions[1] else ""
    return modelled + changed


def _condition(value: object) -> str:
    text = "×".join(map(str, value)) if isinstance(value, tuple) else cells.flat(value)
    return cells.short_hash(text) if re.fullmatch("[0-9a-f]{64}", text) else text


def _names(scorecard: Scorecard) -> str:
    return ", ".join(cells.plain(row.variant) for row in scorecard.rows) or "no variants"


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("�", text)
