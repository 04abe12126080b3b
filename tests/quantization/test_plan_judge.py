from __future__ import annotations

import pytest

from qtoolkit.artifacts.plan import Precision
from qtoolkit.data.rendered_sets import write_set
from qtoolkit.data.samples import Samples
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.agreement import agreement
from qtoolkit.evaluation.coco_ap import coco_keypoint_ap
from qtoolkit.graph.default_network import default_network
from qtoolkit.pipeline import calibrate_stage, evaluate_stage, open_run
from qtoolkit.quantization.plan_judge import PlanJudge, better_network
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


def test_networks_that_repeat_float_are_compared_by_agreement_whatever_the_labels(made, monkeypatch):
    run, quantizer = made
    int8 = run.uniform_plan(Precision.INT8)
    ptq = quantizer.quantize(int8).model
    with_labels, without = (PlanJudge(run, quantizer, p) for p in (run.samples, Samples(run.samples.samples, (), None)))
    assert with_labels.agreement_of(ptq) == pytest.approx(without.agreement_of(ptq))
    assert with_labels.agreement_of(quantizer.model) == pytest.approx(100.0)
    monkeypatch.setattr("qtoolkit.quantization.plan_judge.judge_of", lambda run, quantizer: (with_labels, None, ""))
    assert better_network(run, quantizer, int8, quantizer.model) is quantizer.model
    # A network that agrees less than PTQ's stays out, though its AP may happen to be higher.
    monkeypatch.setattr(PlanJudge, "kept_by", lambda self, model: 2.0 - (model is not quantizer.model))
    monkeypatch.setattr(PlanJudge, "agreement_of", lambda self, model: 99.0 - (model is quantizer.model))
    assert better_network(run, quantizer, int8, quantizer.model) == ptq
    assert better_network(run, quantizer, int8, quantizer.model, by_labels=True) is quantizer.model
