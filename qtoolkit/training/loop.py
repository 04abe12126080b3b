"""Train a network by a recipe: read the data, take the steps, evaluate, save; and go on where a run was stopped."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

from qtoolkit.artifacts.files import prepare_out_dir, write_text
from qtoolkit.data.samples import Samples, SkippedImage
from qtoolkit.data.sources import DataSource, open_data_source
from qtoolkit.errors import QtoolError, UsageError
from qtoolkit.models.checkpoint import save_weights
from qtoolkit.training.checkpoint import TrainingState, check_same_training, read_state, write_state
from qtoolkit.training.dataset import LabelledImages, TrainingSet, read_labelled_images
from qtoolkit.training.distributed import Processes, join_processes
from qtoolkit.training.evaluate import evaluate_pose
from qtoolkit.training.image_cache import ImageCache
from qtoolkit.training.journal import Journal
from qtoolkit.training.loader import load_batches
from qtoolkit.training.losses import LOSS_PARTS
from qtoolkit.training.recipe import TrainRecipe
from qtoolkit.training.schedule import Schedule
from qtoolkit.training.threads import torch_threads
from qtoolkit.training.trainer import Trainer

__all__ = ["BEST_FILE", "LOG_FILE", "RECIPE_FILE", "STATE_FILE", "TrainResult", "train"]

BEST_FILE, STATE_FILE, LOG_FILE, RECIPE_FILE = "best.safetensors", "last.safetensors", "log.jsonl", "recipe.yaml"
"""What a training writes: the best averaged weights, its state, its log, its recipe."""

StageProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainResult:
    """What came out of a training.

    ``weights``: the averaged weights with the best AP (without a labelled part val: the last). ``images`` seen in
    ``steps``, ``ap`` (0–100) of the last evaluation and the best one, None without one; ``seconds`` of all its parts,
    ``images_per_second`` of the steps alone; ``skipped`` photos of the training part.
    """

    out: Path
    weights: Path
    images: int
    steps: int
    ap: float | None
    best_ap: float | None
    seconds: float
    images_per_second: float
    skipped: tuple[SkippedImage, ...]


def train(
    recipe: TrainRecipe,
    progress: StageProgress | None = None,
    *,
    resume: bool = False,
    source: DataSource | None = None,
) -> TrainResult:
    """Train by ``recipe`` into its folder ``out``, and go on there where an earlier run of the same recipe stopped.

    ``resume``: there must be something to go on with. ``source``: the data set, where it is open already. ``progress``
    is called with (stage, done, total). Under torchrun every process calls this.

    Raises DataSetError for data that cannot be trained on, CheckpointError for a state or weights that cannot be used,
    UsageError where ``out`` holds another training, QtoolError where the loss is no number any more. What ``out`` held
    stays as it was in each of these cases.
    """
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(join_processes(recipe.device))
        stack.enter_context(torch_threads(recipe.threads))
        say = progress if progress is not None and processes.is_main else _say_nothing
        if source is None:
            source = _open_in_turn(recipe, processes, say)
        run = _Run(recipe, source, processes, say, resume)
        return run.go()


class _Run:
    """One run: everything is read and checked before anything is written."""

    def __init__(
        self, recipe: TrainRecipe, source: DataSource, processes: Processes, progress: StageProgress, resume: bool
    ) -> None:
        self._recipe, self._processes, self._progress = recipe, processes, progress
        self._data: LabelledImages = read_labelled_images(source)
        self._val: Samples | None = source.evaluation_samples(recipe.eval_images) if source.has_labels else None
        self._schedule = Schedule(recipe, len(self._data.labels), processes.count)
        state = self._saved_state(resume)
        self._trainer = Trainer(recipe, processes)
        self._step = 0
        self._best_ap: float | None = None
        self._last_ap: float | None = None
        self._seconds = self._step_seconds = 0.0
        self._sums, self._summed = torch.zeros(len(LOSS_PARTS), device=processes.device), 0
        if state is not None:
            self._restore(state)
        self._journal: Journal | None = None
        self._begun = self._saved = time.monotonic()

    def go(self) -> TrainResult:
        """Take the steps that are left."""
        recipe, schedule = self._recipe, self._schedule
        out = prepare_out_dir(recipe.out)
        if self._processes.is_main:
            write_text(out / RECIPE_FILE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
            self._journal = Journal(out / LOG_FILE, self._step)
        folder = out / f".cache-{self._processes.rank}"
        folder.mkdir(exist_ok=True)
        try:
            with ImageCache(self._data.samples, recipe.largest_size, folder, recipe.cache_gib) as cache:
                images = TrainingSet(cache, self._data.labels, recipe.augmentation, recipe.largest_size, recipe.seed)
                self._steps(images)
        finally:
            folder.rmdir()
        seen = schedule.steps * schedule.step_images
        return TrainResult(
            out=out,
            weights=out / BEST_FILE,
            images=seen,
            steps=schedule.steps,
            ap=self._last_ap,
            best_ap=self._best_ap,
            seconds=self._elapsed(),
            images_per_second=seen / self._step_seconds if self._step_seconds else 0.0,
            skipped=self._data.skipped,
        )

    def _steps(self, images: TrainingSet) -> None:
        recipe, schedule = self._recipe, self._schedule
        tasks = schedule.batches(images, self._processes.rank, self._step)
        with contextlib.closing(load_batches(images, tasks, recipe.workers)) as loader:
            while self._step < schedule.steps:
                started = time.monotonic()
                batches = list(islice(loader, recipe.accumulate))
                rates, widths = schedule.rates(self._step), schedule.widths_at(self._step)
                parts = self._trainer.run_step(batches, rates, widths)
                # Left on the device: to ask for the numbers at each step would make it wait for each.
                self._sums += parts
                self._summed += 1
                self._step += 1
                self._step_seconds += time.monotonic() - started
                self._progress("training", self._step * schedule.step_images, schedule.steps * schedule.step_images)
                self._after_step()

    def _after_step(self) -> None:
        recipe, schedule = self._recipe, self._schedule
        last = self._step == schedule.steps
        if last or self._passes(recipe.log_every):
            self._log_losses()
        evaluates = last or (recipe.eval_every > 0 and self._passes(recipe.eval_every))
        if evaluates:
            self._evaluate()
        ends_epoch = self._step % schedule.epoch_steps == 0
        overdue = time.monotonic() - self._saved > 60 * recipe.save_every_minutes
        if last or overdue or (ends_epoch and self._worth_saving()):
            self._save()

    def _worth_saving(self) -> bool:
        """At the end of an epoch, unless epochs are so short that saving would take a good part of the time."""
        return time.monotonic() - self._saved > 20.0

    def _passes(self, every: int) -> bool:
        """Whether the last step crossed a multiple of ``every`` images."""
        now = self._step * self._schedule.step_images
        return now // every != (now - self._schedule.step_images) // every

    def _log_losses(self) -> None:
        totals = self._processes.total_of(self._sums / max(self._summed * self._processes.count, 1)).tolist()
        losses = dict(zip(LOSS_PARTS, totals, strict=True))
        self._sums, self._summed = torch.zeros_like(self._sums), 0
        if not all(math.isfinite(value) for value in losses.values()):
            raise QtoolError(
                f"the training has diverged after {self._step} steps: the loss is no number any more",
                expected="finite losses",
                found=", ".join(f"{name} {value:g}" for name, value in losses.items()),
                do="lower lr, lengthen warmup_images, or train with amp off or bf16; the last state is older than this",
            )
        step = self._step - 1
        rates = self._schedule.rates(step)
        facts = {"lr": rates.weights, "size": self._schedule.size_at(step), "loss": losses}
        self._write("train", {**facts, "images_per_second": round(self._rate(), 2)})

    def _evaluate(self) -> None:
        """Measure the averaged weights and keep them where they are the best so far."""
        if self._processes.is_main:
            best = self._best_ap
            model = self._trainer.ema.model
            if self._val is not None:
                metrics = evaluate_pose(model, self._val, self._recipe.image_size, self._show_evaluation)
                self._last_ap = metrics.ap
                self._write("eval", {name: getattr(metrics, name) for name in metrics.__dataclass_fields__})
            if self._last_ap is None or best is None or self._last_ap > best:
                self._best_ap = self._last_ap
                facts = {
                    "recipe": self._recipe.model_dump(mode="json"),
                    "images": self._step * self._schedule.step_images,
                    "data_sha256": self._data.sha256,
                    "ap": self._last_ap,
                }
                save_weights(self._recipe.out / BEST_FILE, model, facts)
        self._processes.wait()

    def _show_evaluation(self, done: int, total: int) -> None:
        self._progress(f"evaluating after {self._step * self._schedule.step_images} images", done, total)

    def _write(self, event: str, facts: dict[str, Any]) -> None:
        if self._journal is not None:
            seen = self._step * self._schedule.step_images
            when = {"images": seen, "epoch": self._step // self._schedule.epoch_steps, "seconds": self._elapsed()}
            self._journal.add(event, self._step, {**when, **facts})

    def _save(self) -> None:
        if self._processes.is_main:
            facts = {
                "recipe": self._recipe.outcome_fields(),
                "data_sha256": self._data.sha256,
                "processes": self._processes.count,
                "step": self._step,
                "best_ap": self._best_ap,
                "last_ap": self._last_ap,
                "seconds": self._elapsed(),
                "step_seconds": self._step_seconds,
                "sums": self._sums.tolist(),
                "summed": self._summed,
                "trainer": self._trainer.facts(),
            }
            write_state(self._recipe.out / STATE_FILE, self._trainer.tensors(), facts)
        self._saved = time.monotonic()

    def _saved_state(self, resume: bool) -> TrainingState | None:
        path = self._recipe.out / STATE_FILE
        if not path.exists():
            if resume:
                raise UsageError(
                    f"there is no training to go on with in {self._recipe.out}",
                    expected=f"{STATE_FILE}, the state of a training",
                    found="no such file",
                    do="leave --resume out to begin one, or correct --out",
                )
            return None
        state = read_state(path)
        check_same_training(path, state.facts, self._recipe.outcome_fields(), self._data.sha256)
        if state.facts["processes"] != self._processes.count:
            raise UsageError(
                "the training was begun with another number of processes",
                expected=f"{state.facts['processes']} processes",
                found=f"{self._processes.count}",
                do=f"start torchrun with --nproc-per-node {state.facts['processes']}",
            )
        return state

    def _restore(self, state: TrainingState) -> None:
        facts = state.facts
        self._trainer.restore(self._recipe.out / STATE_FILE, state.tensors, facts["trainer"])
        self._step = facts["step"]
        self._best_ap, self._last_ap = facts["best_ap"], facts["last_ap"]
        self._seconds, self._step_seconds = facts["seconds"], facts["step_seconds"]
        # Each process has summed its own share; the part of an interval that was saved is that of the main one.
        self._sums += torch.tensor(facts["sums"], device=self._sums.device)
        self._summed = facts["summed"]

    def _elapsed(self) -> float:
        return round(self._seconds + time.monotonic() - self._begun, 1)

    def _rate(self) -> float:
        seen = self._step * self._schedule.step_images
        return seen / self._step_seconds if self._step_seconds else 0.0


def _open_in_turn(recipe: TrainRecipe, processes: Processes, progress: StageProgress) -> DataSource:
    """The data set; rendered people are rendered by one process while the others wait."""
    parts = ("train", "val")
    if processes.is_main:
        source = open_data_source(recipe.data, parts=parts, progress=lambda d, t: progress("rendering people", d, t))
    processes.wait()
    return source if processes.is_main else open_data_source(recipe.data, parts=parts)


def _say_nothing(stage: str, done: int, total: int) -> None:
    pass
