"""The pipeline, in order; read this file first.

    open → calibrate → rank layers → select 16-bit layers → quantize → evaluate → bench → scorecard → report

Each stage takes what came before, writes files below the output folder, and is not run again while its inputs and options
hash the same: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import qtoolkit
from qtoolkit.artifacts.files import atomic_path, prepare_out_dir, sha256_file, write_bytes, write_text
from qtoolkit.artifacts.plan import Precision, PrecisionPlan, uniform_plan
from qtoolkit.artifacts.scorecard import DataFacts, LatencyFigures, ModelFacts, Scorecard
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.artifacts.stages import StageStore
from qtoolkit.artifacts.target import Target
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.table import RUNNERS
from qtoolkit.backends.targets import find_target
from qtoolkit.bench.cost import network_cost
from qtoolkit.bench.environment import capture_environment
from qtoolkit.bench.latency import measure_latency
from qtoolkit.data.calibration_set import CalibrationSet, calibration_set_of, check_disjoint
from qtoolkit.data.people import People
from qtoolkit.data.samples import Samples, SkippedImage
from qtoolkit.data.sources import open_data_source
from qtoolkit.evaluation.heads import Head, detect_head
from qtoolkit.evaluation.pose_network import PoseNetwork, predict_set
from qtoolkit.evaluation.predictions import read_predictions, write_predictions
from qtoolkit.graph.layers import Layer, find_layers
from qtoolkit.graph.load import NetworkInput, load_network, network_input
from qtoolkit.graph.neighbours import wide_implications
from qtoolkit.graph.view import GraphView
from qtoolkit.numerics.ranges import RangeEstimator
from qtoolkit.quantization.assess import accuracy_figures, latency_figures, variant_row
from qtoolkit.quantization.calibrate import CalibrationStatistics, calibrate, calibration_key, calibration_tensors
from qtoolkit.quantization.feeds import image_feeds
from qtoolkit.quantization.layer_times import added_ms
from qtoolkit.quantization.ptq import Quantizer, supported_plan, wide_precision
from qtoolkit.quantization.selection import Budget, plan_from_selection
from qtoolkit.quantization.sensitivity import analyse_sensitivity
from qtoolkit.recipe import Recipe

__all__ = ["Progress", "QuantizeResult", "Run", "calibrate_stage", "open_run", "quantize", "rank_stage", "select_stage"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

_LATENCY_FEEDS = 4


@dataclass(frozen=True, eq=False)
class Run:
    """What every stage of one run works on: the prepared float network, its head, the photos, the folder."""

    recipe: Recipe
    target: Target
    wide: Precision
    model: onnx.ModelProto
    model_sha256: str
    layers: tuple[Layer, ...]
    head: Head
    samples: Samples
    calibration: CalibrationSet
    store: StageStore
    progress: Progress
    data_name: str
    skipped: tuple[SkippedImage, ...] = ()

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.store.folder

    @property
    def input(self) -> NetworkInput:
        """Name and shape of the network's input."""
        return network_input(self.model)

    def calibration_feeds(self, limit: int | None = None) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The calibration photos as feeds; ``limit`` of them, spread evenly over the set."""
        paths = self.calibration.paths
        if limit is not None and limit < len(paths):
            paths = tuple(paths[i] for i in np.linspace(0, len(paths) - 1, limit).round().astype(int))
        return image_feeds(paths, self.input)


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
    sensitivity = rank_stage(run, quantizer) if recipe.mixed is not None and recipe.plan is None else None
    plan = select_stage(run, sensitivity)
    plans = quantize_stage(run, quantizer, plan)
    people = {variant: evaluate_stage(run, variant) for variant in plans}
    latencies = bench_stage(run, list(plans))
    scorecard = scorecard_stage(run, plans, people, latencies)
    return QuantizeResult(run.out, scorecard, plan, sensitivity, run.skipped)


def open_run(recipe: Recipe, progress: Progress = lambda stage, done, total: None) -> Run:
    """Check every input before any work is done, and write the prepared network as ``model.float.onnx``."""
    target = find_target(recipe.target)
    wide = wide_precision(target, recipe.wide)
    plan = PrecisionPlan.read(recipe.plan) if recipe.plan else None
    model = load_network(recipe.model, input_size_wh=recipe.input_size_wh)
    layers = find_layers(model)
    if plan is not None:
        plan.check_layers(layer.name for layer in layers)
    view = GraphView(model)
    head = detect_head({name: view.shape(name) or () for name in view.outputs}, network_input(model).input_size_wh, recipe.head)
    source = open_data_source(recipe.data)
    samples = source.evaluation_samples(recipe.images, lambda done, total: progress("reading photos", done, total))
    calibration = calibration_set_of(source, recipe.calibration_images, recipe.seed)
    check_disjoint(calibration, samples)
    store = StageStore(prepare_out_dir(recipe.out))
    path = store.folder / "model.float.onnx"
    write_bytes(path, model.SerializeToString(deterministic=True))
    return Run(
        recipe, target, wide, model, sha256_file(path), layers, head, samples, calibration, store, progress, source.name,
        (*samples.skipped, *calibration.skipped),
    )  # fmt: skip


def calibrate_stage(run: Run) -> Quantizer:
    """Statistics of every tensor a plan may quantize, kept in ``calib/`` by content hash."""
    tensors = calibration_tensors(run.model, run.target)
    key = calibration_key(run.model, tensors, run.calibration.sha256, 4096)
    path = run.out / "calib" / f"{key[:16]}.npz"
    statistics = CalibrationStatistics.read(path, key)
    if statistics is None:
        total = len(run.calibration)
        statistics = calibrate(
            run.model, tensors, run.calibration_feeds(), key=key, threads=run.recipe.threads,
            progress=lambda done: run.progress("calibrating", done, total),
        )  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        run.calibration.save(path.with_suffix(".json"))
        statistics.write(path)
    return Quantizer(run.model, run.target, statistics, RangeEstimator.from_name(run.recipe.ranges))


def rank_stage(run: Run, quantizer: Quantizer) -> Sensitivity:
    """``sensitivity.json``: the loss of each layer that can be 8-bit, and with a latency budget its time."""
    recipe = run.recipe
    photos = min(recipe.sensitivity_images, len(run.calibration))
    layers = [layer.name for layer in run.layers if layer.op_type in run.target.int8_layers]
    path = run.out / "sensitivity.json"
    inputs = [
        run.model_sha256, quantizer.statistics.key, recipe.target, recipe.metric, photos, recipe.ranges, recipe.head,
        [recipe.wide, recipe.threads] if recipe.mixed_by == "latency" else None, qtoolkit.__version__,
    ]  # fmt: skip

    def make() -> None:
        ranking = analyse_sensitivity(
            quantizer, run.head, run.calibration_feeds(photos), metric=recipe.metric, layers=layers,
            calibration_sha256=run.calibration.sha256, model_sha256=run.model_sha256, threads=recipe.threads,
            progress=lambda done: run.progress("ranking layers", done, photos * len(layers)),
        )  # fmt: skip
        if recipe.mixed_by == "latency":
            ranking = _with_times(run, quantizer, ranking)
        ranking.write(path)

    run.store.run("rank", inputs, [path], make)
    return Sensitivity.read(path)


def _with_times(run: Run, quantizer: Quantizer, ranking: Sensitivity) -> Sensitivity:
    names = [layer.name for layer in run.layers]
    plans = [_uniform(run, precision) for precision in (run.wide, Precision.INT8)]
    wide_model, int8_model = (quantizer.quantize(plan).model for plan in plans)
    feed = next(iter(run.calibration_feeds(1)))
    times = added_ms(wide_model, int8_model, frozenset(names), feed, run.recipe.threads)
    rows = tuple(row.model_copy(update={"added_ms": times[row.layer]}) for row in ranking.layers)
    return ranking.model_copy(update={"layers": rows})


def select_stage(run: Run, sensitivity: Sensitivity | None) -> PrecisionPlan | None:
    """``plan.yaml``: the user's own plan, or the best one within the budget; None without either."""
    recipe = run.recipe
    if recipe.plan is not None:
        plan = PrecisionPlan.read(recipe.plan)
    elif recipe.mixed is not None and sensitivity is not None:
        fixed = {layer.name: run.wide for layer in run.layers if layer.op_type not in run.target.int8_layers}
        implications = [pair for pair in wide_implications(run.model, run.target) if not fixed.keys() & set(pair)]
        chosen = plan_from_selection(sensitivity, Budget(recipe.mixed, recipe.mixed_by), run.wide, implications=implications)
        precisions = {layer.name: fixed.get(layer.name) or chosen.layers[layer.name] for layer in run.layers}
        plan = chosen.model_copy(update={"layers": precisions})
    else:
        return None
    plan.write(run.out / "plan.yaml")
    return plan


def _uniform(run: Run, precision: Precision) -> PrecisionPlan:
    facts = {"model_sha256": run.model_sha256, "target": run.target.name, "made_by": f"all layers {precision.value}"}
    return supported_plan(uniform_plan((layer.name for layer in run.layers), precision, **facts), run.layers, run.target)


def quantize_stage(run: Run, quantizer: Quantizer, mixed: PrecisionPlan | None) -> dict[str, PrecisionPlan]:
    """``model.VARIANT.onnx`` of each variant; returns the plan of each, ``float`` first."""
    plans = {"16bit": _uniform(run, run.wide), "int8": _uniform(run, Precision.INT8)}
    if mixed is not None:
        plans["mixed"] = mixed
    for done, (variant, plan) in enumerate(plans.items(), start=1):
        path = run.out / f"model.{variant}.onnx"
        inputs = [run.model_sha256, quantizer.statistics.key, run.recipe.ranges, plan.model_dump(mode="json"), qtoolkit.__version__]

        def make(path: Path = path, plan: PrecisionPlan = plan) -> None:
            write_bytes(path, quantizer.quantize(plan).model.SerializeToString(deterministic=True))

        run.store.run(f"quantize-{variant}", inputs, [path], make)
        run.progress("quantizing", done, len(plans))
    return {"float": _uniform(run, Precision.FP32), **plans}


def evaluate_stage(run: Run, variant: str) -> dict[int, People]:
    """The people each network finds on the evaluation photos, on ONNX Runtime, kept as npz."""
    network = run.out / f"model.{variant}.onnx"
    path = run.store.path("people", f"{variant}.npz")

    def make() -> None:
        with OnnxRuntimeCpu(network, threads=run.recipe.threads) as runner:
            poses = PoseNetwork(runner, run.head)
            people, _ = predict_set(
                poses, run.samples.samples, lambda done, total: run.progress(f"evaluating {variant}", done, total)
            )
        write_predictions(path, people)

    run.store.run(f"evaluate-{variant}", [sha256_file(network), run.samples.sha256, run.recipe.head], [path], make)
    return read_predictions(path)


def bench_stage(run: Run, variants: list[str]) -> dict[str, LatencyFigures]:
    """Latency of all variants in one run on the target's own runtime; none where it does not run here."""
    if run.recipe.runs == 0 or run.target.backend not in RUNNERS:
        return {}
    networks = {variant: run.out / f"model.{variant}.onnx" for variant in variants}
    path, feeds_path = run.store.path("latency.json"), run.store.path("latency-feeds.npy")
    inputs = [
        {variant: sha256_file(network) for variant, network in networks.items()}, run.recipe.runs, run.recipe.threads,
        run.calibration.sha256, run.target.backend, capture_environment().cpu,
    ]  # fmt: skip

    def make() -> None:
        feeds = [feed[run.input.name] for feed in run.calibration_feeds(_LATENCY_FEEDS)]
        with atomic_path(feeds_path) as temporary, temporary.open("wb") as stream:
            np.save(stream, np.concatenate(feeds))
        results = measure_latency(
            networks, threads=run.recipe.threads, runs=run.recipe.runs, feeds_path=feeds_path, backend=run.target.backend,
            progress=lambda done, total: run.progress("measuring latency", done, total),
        )  # fmt: skip
        figures = {variant: latency_figures(result).model_dump(mode="json") for variant, result in results.items()}
        write_text(path, json.dumps(figures, indent=1) + "\n")

    run.store.run("bench", inputs, [path], make)
    figures = json.loads(path.read_text(encoding="utf-8"))
    return {variant: LatencyFigures.model_validate(figures[variant]) for variant in variants}


def scorecard_stage(
    run: Run,
    plans: Mapping[str, PrecisionPlan],
    people: Mapping[str, Mapping[int, People]],
    latencies: Mapping[str, LatencyFigures],
) -> Scorecard:
    """``scorecard.json``: one row per variant, and the conditions all of them hold under."""
    cost = network_cost(run.model)
    simulated = run.target.backend not in RUNNERS
    runtime = "ort-cpu (simulating the target)" if simulated else "ort-cpu"
    rows = []
    for done, (variant, plan) in enumerate(plans.items(), start=1):
        accuracy = accuracy_figures(people[variant], people["float"], run.samples, runtime)
        path = run.out / f"model.{variant}.onnx"
        rows.append(variant_row(variant, path, plan, run.layers, cost.gmacs, accuracy, latencies.get(variant)))
        run.progress("scoring", done, len(plans))
    scorecard = Scorecard(
        qtoolkit=qtoolkit.__version__,
        target=run.target.name,
        model=ModelFacts(
            name=run.recipe.model.name, sha256=sha256_file(run.recipe.model), input_size_wh=run.input.input_size_wh,
            gmacs=cost.gmacs, params_m=cost.params_m,
        ),
        data=DataFacts(
            name=run.data_name, images=len(people["float"]), sha256=run.samples.sha256, skipped=len(run.skipped),
            calibration_images=len(run.calibration), calibration_sha256=run.calibration.sha256,
        ),
        environment=capture_environment().model_dump(mode="json"),
        settings=_settings(run.recipe),
        rows=tuple(rows),
        notes=_notes(run, latencies),
    )  # fmt: skip
    scorecard.write(run.out / "scorecard.json")
    return scorecard


def _settings(recipe: Recipe) -> dict[str, Any]:
    """The options that shaped the figures; no paths, which are this machine's."""
    return recipe.model_dump(mode="json", exclude={"model", "data", "out", "plan", "version"})


def _notes(run: Run, latencies: Mapping[str, LatencyFigures]) -> tuple[str, ...]:
    notes = ["Outputs of the last layers and everything behind them (the decode arithmetic) are in float in every network."]
    if run.target.wide_is_slower_note and latencies:
        notes.append(run.target.wide_is_slower_note + ".")
    if run.target.backend not in RUNNERS:
        notes.append(f"Target {run.target.name} does not run here: AP is that of its Q/DQ network in ONNX Runtime; no latency.")
    if run.skipped:
        notes.append(f"{len(run.skipped)} photos could not be used.")
    return tuple(notes)

