from __future__ import annotations

import pytest

from qtoolkit.artifacts.plan import Precision
from qtoolkit.data.rendered_sets import write_set
from qtoolkit.data.samples import Samples
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.agreement import agreement
from qtoolkit.evaluation.coco_ap import ApInterval, coco_keypoint_ap
from qtoolkit.graph.default_network import default_network
from qtoolkit.pipeline import calibrate_stage, evaluate_stage, open_run
from qtoolkit.quantization.plan_judge import PlanJudge, better_network, is_no_worse
from qtoolkit.recipe import Recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The default network on eight rendered images, calibrated on four others."""
    folder = tmp_path_factory.mktemp("judge")
    data = folder / "people"
    write_set(data, 8, seed=3, size=320, calib=4)
    run = open_run(Recipe(model=default_network(), data=data, out=folder / "out"))
    return run, calibrate_stage(run)


@pytest.fixture
def judged(made, monkeypatch):
    """``judged(photos)`` → a judge, and the plans that it has run."""

    def open_judge(photos: Samples) -> tuple[PlanJudge, list[object]]:
        run, quantizer = made
        judge, ran, people = PlanJudge(run, quantizer, photos), [], PlanJudge._people
        monkeypatch.setattr(PlanJudge, "_people", lambda self, plan: ran.append(plan) or people(self, plan))
        return judge, ran

    return open_judge


def test_with_labels_it_is_ap_over_ap(made, judged):
    run, quantizer = made
    judge, ran = judged(run.samples)
    assert judge.measured == "ap"
    assert judge.kept(run.uniform_plan(Precision.FP32)) == 1.0
    int8 = run.uniform_plan(Precision.INT8)
    run.network("int8").write_bytes(quantizer.quantize(int8).model.SerializeToString())
    run.network("float").write_bytes(quantizer.model.SerializeToString())
    truth = run.samples.annotations.ground_truth(run.samples.image_ids)
    ap = {v: coco_keypoint_ap(truth, evaluate_stage(run, v), run.samples.image_ids).ap for v in ("float", "int8")}
    assert judge.kept(int8) == pytest.approx(ap["int8"] / ap["float"])
    assert judge.kept(int8) != 1.0
    assert len(ran) == 2, "what was measured once is not measured again"


def test_without_labels_it_is_agreement(made, judged):
    run, quantizer = made
    judge, _ = judged(Samples(run.samples.samples, (), None))
    assert judge.measured == "agreement"
    assert judge.kept(run.uniform_plan(Precision.FP32)) == pytest.approx(1.0)
    int8 = run.uniform_plan(Precision.INT8)
    run.network("int8").write_bytes(quantizer.quantize(int8).model.SerializeToString())
    run.network("float").write_bytes(quantizer.model.SerializeToString())
    people = {variant: evaluate_stage(run, variant) for variant in ("float", "int8")}
    own, found = (agreement(people["float"], people[variant]).ap for variant in ("float", "int8"))
    assert judge.kept(int8) == pytest.approx(found / own)


def test_nobody_found(made, monkeypatch):
    run, quantizer = made
    people = PlanJudge._people

    def nobody(self, plan):
        return {image: found.select([]) for image, found in people(self, plan).items()}

    monkeypatch.setattr(PlanJudge, "_people", nobody)
    with pytest.raises(UsageError, match="plans cannot be compared on these photos") as caught:
        PlanJudge(run, quantizer, run.samples)
    assert caught.value.found == "none on 8 photos"


def test_a_network_is_preferred_where_photos_show_it_to_be_better(made, monkeypatch):
    run, quantizer = made
    int8 = run.uniform_plan(Precision.INT8)
    clipped = {("images", 8): (0.0, 0.4)}
    worse = quantizer.with_ranges(clipped)
    bad = worse.quantize(int8).model
    with_labels, without = (PlanJudge(run, quantizer, p) for p in (run.samples, Samples(run.samples.samples, (), None)))
    for judge in (with_labels, without):
        assert judge.prefers(quantizer.model, bad) and not judge.prefers(bad, quantizer.model)
        # What is the same is no better.
        assert not judge.prefers(bad, bad) and not judge.prefers(quantizer.model, quantizer.model)
    monkeypatch.setattr("qtoolkit.quantization.plan_judge.judge_of", lambda run, quantizer: (with_labels, None, ""))
    assert better_network(run, worse, int8, quantizer.model) is quantizer.model
    assert better_network(run, quantizer, int8, bad) == quantizer.quantize(int8).model
    # Only what is shown to be worse is.
    assert not is_no_worse(run, quantizer, int8, bad)
    assert is_no_worse(run, worse, int8, quantizer.model) and is_no_worse(run, worse, int8, bad)


@pytest.mark.parametrize(("lowest", "better"), [(0.1, True), (0.0, False), (-0.1, False)])
def test_what_learned_from_labels_is_compared_by_ap(made, monkeypatch, lowest, better):
    run, quantizer = made
    judge, asked = PlanJudge(run, quantizer, run.samples), []

    def interval(truth, people, ids, **options):
        asked.append((truth is judge._truth, options["level"]))
        return ApInterval(0.5, lowest, 0.9, 0.68, 200, len(ids))

    monkeypatch.setattr("qtoolkit.quantization.plan_judge.bootstrap_interval", interval)
    for by_labels in (False, True):
        assert judge.prefers(quantizer.model, quantizer.model, by_labels) == better
    assert asked == [(False, 0.68), (True, 0.68)]


def test_where_there_is_nobody_to_tell_by_what_was_learned_is_preferred(made, monkeypatch):
    run, quantizer = made
    judge = PlanJudge(run, quantizer, run.samples)
    monkeypatch.setattr(judge, "_float", {i: found.select([]) for i, found in judge._float.items()})
    assert judge.prefers(quantizer.model, quantizer.model)
    monkeypatch.setattr("qtoolkit.quantization.plan_judge.judge_of", lambda run, quantizer: (judge, None, ""))
    assert is_no_worse(run, quantizer, run.uniform_plan(Precision.INT8), quantizer.model)
