"""The pipeline, in order; read this file first.

    open → calibrate → rank layers → select 16-bit layers → quantize → fine-tune (QAT, optional) → evaluate → bench
         → scorecard → report

Each stage takes what came before, writes files below the output folder, and is not run again while its inputs and
options hash the same: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import qtoolkit
from qtoolkit.artifacts.files import atomic_path, sha256_file, sha256_json, write_bytes, write_text
from qtoolkit.artifacts.frontier import Frontier
from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.scorecard import LatencyFigures, Scorecard
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.backends.throughput import worker_count
from qtoolkit.bench.environment import capture_environment
from qtoolkit.bench.latency import measure_latency
from qtoolkit.data.people import People
from qtoolkit.data.samples import SkippedImage
from qtoolkit.engine_build import engine_node_times
from qtoolkit.evaluation.pose_network import PoseNetwork, predict_set
from qtoolkit.evaluation.predictions import read_predictions, write_predictions
from qtoolkit.quantization.assess import latency_figures
from qtoolkit.quantization.bias_correction import input_means, read_means, write_means
from qtoolkit.quantization.budget_plan import PlanMaker
from qtoolkit.quantization.calibrate import CalibrationStatistics, calibrate, calibration_key, calibration_tensors
from qtoolkit.quantization.effort import (
    quantized_network,
    quantizer_of,
    with_plan_biases,
    with_searched_ranges,
    without_biases,
)
from qtoolkit.quantization.frontier_run import frontier_of, search_plan
from qtoolkit.quantization.modelled_times import device_inputs, modelled_latencies
from qtoolkit.quantization.plan_judge import better_network
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.ranked_times import with_times
from qtoolkit.quantization.run import Progress, Run, open_run
from qtoolkit.quantization.score import score_variants
from qtoolkit.quantization.sensitivity import analyse_sensitivity
from qtoolkit.recipe import Recipe

__all__ = [
    "Progress",
    "QuantizeResult",
    "Run",
    "bench_stage",
    "calibrate_stage",
    "evaluate_stage",
    "finetune_stage",
    "frontier_stage",
    "open_run",
    "quantize",
    "quantize_stage",
    "rank_stage",
    "select_stage",
]

_LATENCY_FEEDS = 4
_SAMPLE_SIZE = 4096
_MEANS_IMAGES = 64


@dataclass(frozen=True, eq=False)
class QuantizeResult:
    """What a run made: the scorecard, and the plan and ranking behind its mixed network (None without one)."""

    out: Path
    scorecard: Scorecard
    plan: PrecisionPlan | None
    sensitivity: Sensitivity | None
    skipped: tuple[SkippedImage, ...] = field(default=())


def quantize(recipe: Recipe, progress: Progress = lambda stage, done, total: None) -> QuantizeResult:
    """The main job: float, 16-bit, 8-bit and mixed networks with AP, cost and latency of each, in ``recipe.out``."""
    run = open_run(recipe, progress)
    quantizer = calibrate_stage(run)
    sensitivity = rank_stage(run, quantizer) if recipe.makes_plan else None
    plan = select_stage(run, quantizer, sensitivity)
    plans = quantize_stage(run, quantizer, plan)
    plans |= finetune_stage(run, quantizer, plans)
    people = {variant: evaluate_stage(run, variant) for variant in plans}
    run = _with_undecodable(run, people["float"])
    latencies = bench_stage(run, list(plans))
    scorecard = score_variants(run, plans, people, latencies, without_biases(run, quantizer, plans))
    scorecard.write(run.out / "scorecard.json")
    return QuantizeResult(run.out, scorecard, plan, sensitivity, run.skipped)


def _with_undecodable(run: Run, people: Mapping[int, People]) -> Run:
    """``run`` with the photos listed as skipped that looked whole and could not be decoded."""
    lost = [
        SkippedImage(sample.path, "it cannot be decoded") for sample in run.samples if sample.image_id not in people
    ]
    return replace(run, skipped=(*run.skipped, *lost)) if lost else run


def calibrate_stage(run: Run) -> Quantizer:
    """Statistics of every tensor a plan may quantize, kept in ``calib/`` by content hash."""
    tensors = calibration_tensors(run.model, run.target)
    key = calibration_key(run.model, tensors, run.calibration.sha256, _SAMPLE_SIZE)
    path = run.out / "calib" / f"{key[:16]}.npz"
    statistics = CalibrationStatistics.read(path, key)
    if statistics is None:
        total = len(run.calibration)
        statistics = calibrate(
            run.model, tensors, run.calibration_feeds(), key=key, sample_size=_SAMPLE_SIZE, threads=run.recipe.threads,
            progress=lambda done: run.progress("calibrating", done, total),
        )  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        run.calibration.save(path.with_suffix(".json"))
        statistics.write(path)
    means = _means(run, path.with_name(f"{key[:16]}.means.npz")) if "bias" in run.corrections else {}
    return with_searched_ranges(run, quantizer_of(run, statistics, means))


def _means(run: Run, path: Path) -> Mapping[str, NDArray[np.float64]]:
    """Channel means for the correction of biases, kept beside the statistics."""
    means = read_means(path)
    if means is None:
        total = min(_MEANS_IMAGES, len(run.calibration))
        means = input_means(
            run.model, run.calibration_feeds(total), threads=run.recipe.threads,
            progress=lambda done: run.progress("measuring channel means", done, total),
        )  # fmt: skip
        write_means(path, means)
    return means


def rank_stage(run: Run, quantizer: Quantizer) -> Sensitivity:
    """``sensitivity.json``: the loss of each layer that can be 8-bit, and with a latency budget its time."""
    recipe = run.recipe
    photos = min(recipe.sensitivity_images, len(run.calibration) if run.labelled is None else len(run.labelled.samples))
    layers = [layer.name for layer in run.layers if layer.op_type in run.target.int8_layers]
    path = run.out / "sensitivity.json"
    inputs = [
        run.model_sha256, quantizer.statistics.key, recipe.target, recipe.metric, photos, recipe.ranges, recipe.head,
        [recipe.wide, recipe.threads, "borders", *device_inputs(recipe.device)] if run.unit == "latency" else None,
        qtoolkit.__version__, None if run.labelled is None else [run.labelled.part, run.labelled.samples.sha256],
    ]  # fmt: skip

    def make() -> None:
        ranking = analyse_sensitivity(
            quantizer, run.head, run.labelled or run.calibration_feeds(photos), metric=recipe.metric, layers=layers,
            calibration_sha256=run.calibration.sha256, model_sha256=run.model_sha256, threads=recipe.threads,
            progress=lambda done: run.progress("ranking layers", done, photos * len(layers)),
        )  # fmt: skip
        if run.unit == "latency":
            ranking = with_times(run, quantizer, ranking, engine_node_times)
        ranking.write(path)

    run.store.run("rank", inputs, [path], make)
    return Sensitivity.read(path)


def select_stage(run: Run, quantizer: Quantizer, sensitivity: Sensitivity | None) -> PrecisionPlan | None:
    """``plan.yaml``: the user's own plan, the best within the budget, the cheapest that keeps enough; or None."""
    recipe, path = run.recipe, run.out / "plan.yaml"
    if recipe.plan is not None:
        plan = PrecisionPlan.read(recipe.plan)
        if path.exists() and path.samefile(recipe.plan):
            return plan  # the user's own text, comments included, stays as it is
    elif recipe.mixed is not None and sensitivity is not None:
        plan = PlanMaker(run, sensitivity).plan(recipe.mixed)
    elif recipe.min_ap_retention is not None and sensitivity is not None:
        return _search(run, quantizer, sensitivity, recipe.min_ap_retention)
    else:
        return None
    run.store.run("select", plan.model_dump(mode="json"), [path], lambda: plan.write(path))
    return plan


def _search(run: Run, quantizer: Quantizer, sensitivity: Sensitivity, wanted: float) -> PrecisionPlan:
    path = run.out / "plan.yaml"
    inputs = [sensitivity.model_dump(mode="json"), wanted, run.unit, run.wide.value, run.recipe.ranges, run.recipe.seed,
              qtoolkit.__version__]  # fmt: skip

    def make() -> None:
        search_plan(run, quantizer, sensitivity, wanted).write(path)

    run.store.run("select", inputs, [path], make)
    return PrecisionPlan.read(path)


def frontier_stage(run: Run, quantizer: Quantizer, sensitivity: Sensitivity) -> Frontier:
    """``frontier.json``: plans from all-8-bit to all-16-bit, each measured on photos that nothing is reported on."""
    path = run.out / "frontier.json"
    inputs = [sensitivity.model_dump(mode="json"), run.unit, run.wide.value, run.recipe.ranges, run.recipe.seed,
              qtoolkit.__version__]  # fmt: skip
    run.store.run("frontier", inputs, [path], lambda: frontier_of(run, quantizer, sensitivity).write(path))
    return Frontier.read(path)


def quantize_stage(run: Run, quantizer: Quantizer, mixed: PrecisionPlan | None) -> dict[str, PrecisionPlan]:
    """``model.VARIANT.onnx`` of each variant; returns the plan of each, ``float`` first."""
    plans = {"16bit": run.uniform_plan(run.wide), "int8": run.uniform_plan(Precision.INT8)}
    if mixed is not None:
        plans["mixed"] = mixed
    plans = {variant: quantizer.within_fp16(plan) for variant, plan in plans.items()}
    for done, (variant, plan) in enumerate(plans.items(), start=1):
        path = run.network(variant)
        inputs = [
            run.model_sha256,
            quantizer.statistics.key,
            run.recipe.ranges,
            plan.model_dump(mode="json"),
            qtoolkit.__version__,
        ]

        def make(variant: str = variant, path: Path = path, plan: PrecisionPlan = plan) -> None:
            network = quantizer.handed_out(quantized_network(run, quantizer, variant, plan))
            write_bytes(path, network.SerializeToString(deterministic=True))

        run.store.run(f"quantize-{variant}", inputs, [path], make)
        run.progress("quantizing", done, len(plans))
    return {"float": run.uniform_plan(Precision.FP32), **plans}


def finetune_stage(run: Run, quantizer: Quantizer, plans: Mapping[str, PrecisionPlan]) -> dict[str, PrecisionPlan]:
    """``model.VARIANT-qat.onnx`` of the 8-bit and the mixed network, where the recipe asks for it, and their plans.

    Where the fine-tuned network keeps less than PTQ's on photos that nothing is reported on, PTQ's stays.
    """
    if run.learning is None:
        return {}
    # Only here: everything else runs without torch.
    from qtoolkit.quantization.qat import QatOptions, finetune_quantized

    recipe, learning = run.recipe, run.learning
    options = QatOptions(
        images=recipe.qat_images, lr=recipe.qat_lr, seed=recipe.seed % 2**32, threads=recipe.threads,
        device=recipe.qat_device,
    )  # fmt: skip
    finetuned: dict[str, PrecisionPlan] = {}
    for variant in (name for name in ("int8", "mixed") if name in plans):
        name, plan = f"{variant}-qat", plans[variant]
        inputs = [
            run.model_sha256, quantizer.statistics.key, recipe.ranges, recipe.head, plan.model_dump(mode="json"),
            options.outcome_fields(), learning.sha256, qtoolkit.__version__, sha256_file(run.network(variant)),
        ]  # fmt: skip
        path, folder = (
            run.network(name),
            run.store.path("qat", f"{name}-{sha256_json(inputs)[:12]}", "log.jsonl").parent,
        )

        def make(name: str = name, plan: PrecisionPlan = plan, path: Path = path, folder: Path = folder) -> None:
            corrected = with_plan_biases(run, quantizer, plan)
            network = finetune_quantized(
                replace(corrected, splits_scales=False), plan, run.head, learning, options, folder,
                lambda done, total: run.progress(f"fine-tuning {name}", done, total),
            )  # fmt: skip
            network = better_network(run, corrected, plan, network, by_labels=recipe.labelled is not None)
            write_bytes(path, quantizer.handed_out(network).SerializeToString(deterministic=True))

        run.store.run(f"finetune-{variant}", inputs, [path], make)
        finetuned[name] = plan
    return finetuned


def evaluate_stage(run: Run, variant: str) -> dict[int, People]:
    """The people each network finds on the evaluation photos, on the target's own runtime where it runs here."""
    network = run.network(variant)
    path = run.store.path("people", f"{variant}.npz")
    target_runner = run.accuracy_runner(network)

    def make() -> None:
        with target_runner as runner:
            people, _ = predict_set(
                PoseNetwork(runner, run.head), run.samples,
                lambda done, total: run.progress(f"evaluating {variant}", done, total),
                workers=worker_count(run.recipe.threads),
            )  # fmt: skip
        write_predictions(path, people)

    # Figures of another release of the runtime are not figures of this one.
    inputs = [
        sha256_file(network), run.samples.sha256, run.recipe.head, target_runner.conditions(),
        capture_environment().packages,
    ]  # fmt: skip
    run.store.run(f"evaluate-{variant}", inputs, [path], make)
    return read_predictions(path)


def bench_stage(run: Run, variants: list[str]) -> dict[str, LatencyFigures]:
    """Latency of all variants in one run on the target's own runtime, or modelled for a Jetson; else none."""
    if run.recipe.device is not None:
        return modelled_latencies({variant: run.network(variant) for variant in variants}, run.recipe.device)
    if run.recipe.runs == 0 or not run.runs_here:
        return {}
    networks = {variant: run.network(variant) for variant in variants}
    path, feeds_path = run.store.path("latency.json"), run.store.path("latency-feeds.npy")
    machine = capture_environment()
    inputs = [
        {variant: sha256_file(network) for variant, network in networks.items()}, run.recipe.runs, run.recipe.threads,
        run.calibration.sha256, run.target.backend, machine.cpu, machine.cores_physical, machine.packages,
    ]  # fmt: skip

    def make() -> None:
        feeds = [feed[run.input.name] for feed in run.calibration_feeds(_LATENCY_FEEDS)]
        with atomic_path(feeds_path) as temporary, temporary.open("wb") as stream:
            np.save(stream, np.concatenate(feeds))
        results = measure_latency(
            networks, threads=run.recipe.threads, runs=run.recipe.runs, feeds_path=feeds_path,
            backend=run.target.backend,
            progress=lambda done, total: run.progress("measuring latency", done, total),
        )  # fmt: skip
        figures = {variant: latency_figures(result).model_dump(mode="json") for variant, result in results.items()}
        write_text(path, json.dumps(figures, indent=1) + "\n")

    run.store.run("bench", inputs, [path], make)
    figures = json.loads(path.read_text(encoding="utf-8"))
    return {variant: LatencyFigures.model_validate(figures[variant]) for variant in variants}
