"""What every stage of one run works on, checked before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.artifacts.files import prepare_out_dir, sha256_file, write_bytes
from qtoolkit.artifacts.plan import Precision, PrecisionPlan, uniform_plan
from qtoolkit.artifacts.stages import StageStore
from qtoolkit.artifacts.target import Target
from qtoolkit.backends.nvidia_driver import gpu_or_none
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.runner import Runner
from qtoolkit.backends.table import RUNNERS, runner_class
from qtoolkit.backends.targets import find_target
from qtoolkit.corrections import Correction, default_corrections
from qtoolkit.data.calibration_set import CalibrationSet, calibration_set_of, check_disjoint
from qtoolkit.data.samples import Samples, SkippedImage
from qtoolkit.data.sources import open_data_source
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.heads import Head, detect_head
from qtoolkit.graph.equalize import can_be_equalized, equalized
from qtoolkit.graph.layers import Layer, find_layers
from qtoolkit.graph.load import NetworkInput, load_network, network_input
from qtoolkit.graph.view import GraphView
from qtoolkit.quantization.budget import BudgetUnit
from qtoolkit.quantization.feeds import image_feeds
from qtoolkit.quantization.labelled_photos import LabelledPhotos, find_labelled_photos
from qtoolkit.quantization.learning_photos import LearningSet, learning_photos
from qtoolkit.quantization.modelled_times import check_device
from qtoolkit.quantization.ptq import check_plan, supported_plan, wide_precision
from qtoolkit.quantization.sensitivity import check_metric
from qtoolkit.recipe import Recipe

__all__ = ["Progress", "Run", "chosen_corrections", "open_run"]

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclass(frozen=True, eq=False)
class Run:
    """What every stage of one run works on: the prepared float network, its head, the photos, the folder.

    ``model`` is what is quantized: the network of ``model.float.onnx``, of which ``model_sha256`` is the hash, or, with
    the correction ``equalize``, one that computes the same, with the same layers. ``corrections``: what is corrected.
    ``learning`` are the photos that quantization-aware training learns from, None without it.
    """

    recipe: Recipe
    target: Target
    wide: Precision
    model: onnx.ModelProto
    model_sha256: str
    layers: tuple[Layer, ...]
    corrections: frozenset[Correction]
    head: Head
    samples: Samples
    calibration: CalibrationSet
    store: StageStore
    progress: Progress
    data_name: str
    skipped: tuple[SkippedImage, ...] = ()
    learning: LearningSet | None = None
    labelled: LabelledPhotos | None = None
    """What the metric ap ranks layers on; None for the others."""

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

    @property
    def runs_here(self) -> bool:
        """Whether the target's own runtime can run these networks on this machine."""
        return self.target.backend in RUNNERS and not self.target.needs_engine

    @property
    def unit(self) -> BudgetUnit:
        """What the budget of a mixed plan counts."""
        if self.recipe.mixed_by is not None:
            return self.recipe.mixed_by
        if self.recipe.min_ap_retention is None:
            return "layers"
        return "latency" if self.target.backend == "ort-cpu" or self.recipe.device is not None else "macs"

    def accuracy_runner(self, network: Path | onnx.ModelProto) -> Runner:
        """What AP of a network is computed on, closed, one thread: the target's own runtime where it runs here, else
        ONNX Runtime without integer kernels, which computes every Q/DQ pair as written."""
        if not self.runs_here:
            return OnnxRuntimeCpu(network, threads=1, integer_kernels=False)
        return runner_class(self.target.backend)(network, threads=1)

    def network(self, variant: str) -> Path:
        """The file of a variant's network."""
        return self.out / f"model.{variant}.onnx"

    def uniform_plan(self, precision: Precision) -> PrecisionPlan:
        """Every layer at ``precision``; int8 layers that the target cannot run so at the 16 bit of this run."""
        facts = {
            "model_sha256": self.model_sha256,
            "target": self.target.name,
            "made_by": f"all layers {precision.value}",
        }
        plan = uniform_plan((layer.name for layer in self.layers), precision, **facts)
        return supported_plan(plan, self.layers, self.target, self.wide)


def open_run(recipe: Recipe, progress: Progress = lambda stage, done, total: None) -> Run:
    """Check every input before any work is done, and write the prepared network as ``model.float.onnx``."""
    target = find_target(recipe.target)
    _check_backend(target, recipe)
    wide = wide_precision(target, recipe.wide)
    plan = PrecisionPlan.read(recipe.plan) if recipe.plan else None
    if plan is None:
        check_metric(recipe.metric)
    model = load_network(recipe.model, input_size_wh=recipe.input_size_wh)
    corrections = chosen_corrections(recipe, target, model)
    to_quantize = equalized(model) if "equalize" in corrections else model
    layers = find_layers(to_quantize)
    if plan is not None:
        plan.check_layers(layer.name for layer in layers)
        check_plan(plan, layers, target)
    view = GraphView(model)
    head = detect_head(
        {name: view.shape(name) or () for name in view.outputs}, network_input(model).input_size_wh, recipe.head
    )
    if recipe.labelled is not None:
        # Only here: everything else runs without torch. Refused now, not behind the calibration.
        from qtoolkit.training.labelled_loss import LabelledLoss

        LabelledLoss.of(model, head)
    source = open_data_source(recipe.data, progress=lambda done, total: progress("rendering people", done, total))
    samples = source.evaluation_samples(recipe.images, lambda done, total: progress("reading photos", done, total))
    calibration = calibration_set_of(source, recipe.calibration_images, recipe.seed)
    check_disjoint(calibration, samples)
    learning = learning_photos(recipe, source, samples, calibration, progress) if recipe.qat else None
    labelled = None
    if recipe.metric == "ap" and recipe.plan is None:
        labelled = find_labelled_photos(source, calibration, samples, recipe.sensitivity_images, recipe.seed)
    store = StageStore(prepare_out_dir(recipe.out))
    _keep_edited_plan(store, recipe)
    path = store.folder / "model.float.onnx"
    write_bytes(path, model.SerializeToString(deterministic=True))
    return Run(
        recipe, target, wide, to_quantize, sha256_file(path), layers, corrections, head, samples, calibration, store,
        progress, source.name,
        tuple(dict.fromkeys((*samples.skipped, *calibration.skipped, *(learning.skipped if learning else ())))),
        learning, labelled,
    )  # fmt: skip


def chosen_corrections(recipe: Recipe, target: Target, model: onnx.ModelProto) -> frozenset[Correction]:
    """What is corrected: what the recipe names, else what its effort and the target take and ``model`` allows."""
    if recipe.corrections is not None:
        return frozenset(recipe.corrections)
    chosen = default_corrections(recipe.effort, target.corrections)
    return chosen if "equalize" not in chosen or can_be_equalized(model) else chosen - {"equalize"}


def _check_backend(target: Target, recipe: Recipe) -> None:
    """Raise UnavailableError where the target's library is missing, UsageError where nobody can time its layers."""
    if target.backend in RUNNERS and not target.needs_engine:
        runner_class(target.backend)
    check_device(recipe.device, target)
    profiles = target.backend == "ort-cpu" or (target.backend == "tensorrt" and gpu_or_none() is not None)
    if recipe.mixed_by == "latency" and not profiles and recipe.device is None:
        raise UsageError(
            f"the time of single layers cannot be measured for target {target.name}",
            expected="--mixed-by layers or macs with this target",
            found="--mixed-by latency",
            do="choose another budget, --target ort-cpu, or --target tensorrt: measured where there is a GPU, "
            "modelled with --device jetson",
        )


def _keep_edited_plan(store: StageStore, recipe: Recipe) -> None:
    """Raise UsageError where this run would replace a plan.yaml that somebody wrote or edited."""
    path = store.folder / "plan.yaml"
    makes_plan = recipe.makes_plan or recipe.plan is not None
    is_applied = recipe.plan is not None and path.exists() and path.samefile(recipe.plan)
    if makes_plan and path.exists() and not is_applied and not store.wrote("select", path):
        raise UsageError(
            f"{path} was written or edited by hand, and this run would replace it",
            expected="a plan.yaml as an earlier run left it, or none",
            found="another text",
            do=f"apply it with --plan {path}, move it away, or give another --out",
        )
