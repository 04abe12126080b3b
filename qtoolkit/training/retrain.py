"""Retrain any ONNX network for another activation function without labels: it learns to repeat the original.

1. The activation functions are replaced (``graph.swap_activations``); names of layers, inputs and outputs stay.
2. Every convolution is fitted to what the original computed there, in closed form (``reconstruction``).
3. The whole network is fine-tuned to give the original's outputs on changed photos (``distill``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from qtoolkit.artifacts.files import prepare_out_dir, sha256_file, write_bytes
from qtoolkit.data.calibration_set import CalibrationSet, check_disjoint
from qtoolkit.data.samples import Split
from qtoolkit.data.sources import DataSource, open_data_source
from qtoolkit.errors import DataSetError, HeadError, QtoolError
from qtoolkit.evaluation.evaluate import evaluate_network
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.graph.load import load_network
from qtoolkit.graph.shapes import network_input
from qtoolkit.graph.swap_activations import ActivationSwap, swap_activations
from qtoolkit.graph.view import GraphView
from qtoolkit.training.checkpoint import check_same_training, read_state, write_state
from qtoolkit.training.distill import Distillation, head_outputs, score_channels
from qtoolkit.training.journal import Journal
from qtoolkit.training.onnx_module import OnnxModule
from qtoolkit.training.photos import PhotoBatches, letterboxed
from qtoolkit.training.reconstruction import reconstruct_layers_
from qtoolkit.training.retrain_options import RetrainOptions

__all__ = ["RetrainResult", "retrain_network"]

StageProgress = Callable[[str, int, int], None]

_CELL = 64
_FIT_SHARE, _TRAIN_SHARE = 0.75, 0.65
_BETAS = (0.9, 0.98)
_WARMUP, _FINAL = 0.05, 0.02
_LOG_EVERY = 400


@dataclass(frozen=True)
class RetrainResult:
    """``model``: the retrained network; ``changes``: activation functions replaced; ``ap``: images seen → AP measured
    (−1: the original network); ``photos``: number used; ``skipped``: photos that could not be used, with reasons."""

    model: Path
    changes: tuple[ActivationSwap, ...]
    ap: dict[int, float]
    photos: int
    seconds: float
    skipped: tuple[Any, ...]


def retrain_network(options: RetrainOptions, progress: StageProgress | None = None) -> RetrainResult:
    """Retrain into ``options.out``, and go on there where an earlier run of the same options stopped.

    Writes model.onnx (after the fit and at the end), fitted.safetensors and last.safetensors (states), log.jsonl.
    Raises ModelFileError for a network that cannot be used or has nothing to replace, DataSetError where there are no
    usable photos, UsageError where ``out`` holds another retraining, QtoolError where the loss is no number any more.
    """
    return _Retraining(options, progress or (lambda stage, done, total: None)).go()


class _Retraining:
    def __init__(self, options: RetrainOptions, progress: StageProgress) -> None:
        self.options, self.progress = options, progress
        original = load_network(options.model, input_size_wh=options.input_size_wh)
        _add_biases_(original)
        swapped, self.changes = swap_activations(original, options.activation)
        self.swapped = swapped
        self.input_size_wh = network_input(original).input_size_wh
        outputs = head_outputs(original)
        self.loss = Distillation(outputs, score_channels(original, _head_of(original, options)))
        self.teacher = OnnxModule(original, outputs=outputs, channels_last=True).eval().requires_grad_(False)
        self.student = OnnxModule(swapped, outputs=outputs, channels_last=True).eval()
        photos = _photos(open_data_source(options.images))
        self.photos = CalibrationSet.from_split(photos, options.max_images, options.seed)
        self.data = None if options.data is None else open_data_source(options.data)
        if self.data is not None:
            check_disjoint(self.photos, self.data.evaluation_samples(options.eval_images))
        prepare_out_dir(options.out)
        self.facts = {"recipe": options.outcome_fields() | {"model_sha256": sha256_file(options.model)}}
        self.aps: dict[int, float] = {}

    def go(self) -> RetrainResult:
        start = time.monotonic()
        threads = torch.get_num_threads()
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)
        try:
            self._fit()
            self._tune()
        finally:
            torch.set_num_threads(threads)
        return RetrainResult(
            self.options.out / "model.onnx", self.changes, self.aps, len(self.photos), time.monotonic() - start,
            self.photos.skipped,
        )  # fmt: skip

    def _fit(self) -> None:
        """Closed-form fit, or the one an earlier run made."""
        path = self.options.out / "fitted.safetensors"
        if path.exists():
            state = read_state(path)
            check_same_training(path, state.facts, self.facts["recipe"], self.photos.sha256)
            self._load(state.tensors)
            self.aps = {int(seen): ap for seen, ap in state.facts["ap"].items()}
            return
        size = self.options.fit_size or _cells(max(self.input_size_wh) * _FIT_SHARE)
        count = min(self.options.fit_images, len(self.photos))
        chosen = np.linspace(0, len(self.photos) - 1, count).round().astype(int)
        images = torch.from_numpy(letterboxed([self.photos.paths[index] for index in chosen], size))
        kinds = {name: change.kind for change in self.changes if (name := self._layer_before(change)) is not None}
        fits = reconstruct_layers_(
            self.teacher, self.student, self.swapped, kinds, images, rows=self.options.rows, seed=self.options.seed,
            progress=lambda done, total: self.progress("fitting layers", done, total),
        )  # fmt: skip
        self._write_model()
        self._evaluate(-1, self.options.model)
        self._evaluate(0)
        self._save(path, {}, {"fits": {fit.layer: round(fit.error, 5) for fit in fits}})

    def _layer_before(self, change: ActivationSwap) -> str | None:
        view = GraphView(self.swapped)
        producer = view.producer(change.input)
        readers = view.consumers(change.input)
        return producer.name if producer is not None and len(readers) == 1 else None

    def _tune(self) -> None:
        steps = self.options.steps_images // self.options.batch
        if steps == 0:
            return
        path = self.options.out / "last.safetensors"
        parameters = self.student.parameters_by_name()
        optimizer = torch.optim.Adam(parameters.values(), lr=self.options.lr, betas=_BETAS)
        first = self._resume(path, optimizer) if path.exists() else 0
        journal = Journal(self.options.out / "log.jsonl", first)
        size = self.options.train_size or _cells(max(self.input_size_wh) * _TRAIN_SHARE)
        batches = PhotoBatches(self.photos.paths, self.options.batch, self.options.seed)
        self._measure_spread(batches, size)
        saved, clock, sums, seen_at = time.monotonic(), time.monotonic(), [0.0, 0.0, 0], first
        for step, batch in enumerate(batches.batches(first, steps, [size] * steps), start=first):
            for group in optimizer.param_groups:
                group["lr"] = self.options.lr * _rate(step, steps)
            scores, rest = self._step(batch, optimizer, step)
            sums = [sums[0] + scores, sums[1] + rest, sums[2] + 1]
            done, seen = step + 1, (step + 1) * self.options.batch
            self.progress("fine-tuning", seen, steps * self.options.batch)
            if seen // _LOG_EVERY > (seen - self.options.batch) // _LOG_EVERY or done == steps:
                now = time.monotonic()
                rate = (done - seen_at) * self.options.batch / (now - clock)
                journal.add("train", done, {"images": seen, "scores": sums[0] / sums[2], "rest": sums[1] / sums[2],
                            "lr": self.options.lr * _rate(step, steps), "images_per_second": rate})  # fmt: skip
                clock, sums, seen_at = now, [0.0, 0.0, 0], done
            every = self.options.eval_every
            if done == steps or (every and seen // every > (seen - self.options.batch) // every):
                self._write_model()
                if (ap := self._evaluate(seen)) is not None:
                    journal.add("evaluate", done, {"images": seen, "ap": ap})
            if done == steps or time.monotonic() - saved > 60 * self.options.save_every_minutes:
                self._save(path, _moments(optimizer, parameters), {"step": done})
                saved = time.monotonic()

    def _step(self, batch: Any, optimizer: torch.optim.Optimizer, step: int) -> tuple[float, float]:
        images = torch.from_numpy(batch).permute(0, 3, 1, 2)
        with torch.no_grad():
            wanted = self.teacher(images)
        loss = self.loss(wanted, self.student(images))
        if not math.isfinite(float(loss.total.detach())):
            raise QtoolError(
                f"the loss is no number any more after {step * self.options.batch} images",
                expected="a finite loss",
                found=str(float(loss.total.detach())),
                do="give a lower --lr; the last saved state is kept",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.scores), float(loss.rest)

    def _measure_spread(self, batches: PhotoBatches, size: int) -> None:
        """Variances that the loss divides by, from batch 0 always, so that a run that goes on computes the same."""
        with torch.no_grad():
            wanted = self.teacher(torch.from_numpy(batches.batch(0, size)).permute(0, 3, 1, 2))
            self.loss(wanted, wanted)

    def _resume(self, path: Path, optimizer: torch.optim.Optimizer) -> int:
        state = read_state(path)
        check_same_training(path, state.facts, self.facts["recipe"], self.photos.sha256)
        self._load(state.tensors)
        self.aps = {int(seen): ap for seen, ap in state.facts["ap"].items()}
        _restore_moments_(optimizer, self.student.parameters_by_name(), state.tensors, state.facts["step"])
        return int(state.facts["step"])

    def _load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.student.parameters_by_name().items():
                parameter.copy_(tensors[f"model.{name}"])

    def _save(self, path: Path, more: dict[str, Tensor], facts: dict[str, Any]) -> None:
        weights = {f"model.{name}": tensor for name, tensor in self.student.parameters_by_name().items()}
        ap = {str(seen): value for seen, value in self.aps.items()}
        write_state(path, weights | more, self.facts | {"data_sha256": self.photos.sha256, "ap": ap} | facts)

    def _write_model(self) -> None:
        write_bytes(self.options.out / "model.onnx", self.student.to_onnx().SerializeToString(deterministic=True))

    def _evaluate(self, seen: int, model: Path | None = None) -> float | None:
        if self.data is None:
            return None
        record = evaluate_network(
            model or self.options.out / "model.onnx", self.data, head=self.options.head,
            images=self.options.eval_images, input_size_wh=self.options.input_size_wh, threads=self.options.threads,
            progress=lambda done, total: self.progress("evaluating", done, total),
        ).record  # fmt: skip
        if record.ap is not None:
            self.aps[seen] = record.ap
        return record.ap


def _photos(source: DataSource) -> Split:
    split = source.unlabeled or source.train or source.calib
    if split is None:
        raise DataSetError(
            f"the data set {source.name} has no photos to retrain on",
            expected="a folder of photos, or a data set with a part unlabeled, train or calib",
            found="an evaluation part only",
            do="give other photos with --images: those that are evaluated on must not be trained on",
        )
    return Split(split.images_dir, None, split.names)


def _head_of(model: onnx.ModelProto, options: RetrainOptions) -> Head | None:
    """The pose head, for the weights of the loss; None for a network that has none that is known."""
    view = GraphView(model)
    shapes = {name: view.shape(name) or () for name in view.outputs}
    try:
        return detect_head(shapes, network_input(model).input_size_wh, options.head)
    except HeadError:
        if options.head is not None:
            raise
        return None


def _add_biases_(model: onnx.ModelProto) -> None:
    """Give every Conv without a bias one of zeros: the fit needs a place for the constants that move."""
    view = GraphView(model)
    for node in view.nodes:
        if node.op_type == "Conv" and (len(node.input) == 2 or not node.input[2]):
            shape = view.shape(node.input[1])
            if shape and shape[0]:
                del node.input[2:]
                node.input.append(f"{node.name}.bias")
                zeros = numpy_helper.from_array(np.zeros(shape[0], np.float32), node.input[2])
                model.graph.initializer.append(zeros)


def _cells(pixels: float) -> int:
    return max(_CELL, round(pixels / _CELL) * _CELL)


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: a linear warm-up over 5 % of the run, then a cosine to 2 %."""
    warm = max(1, round(_WARMUP * steps))
    fall = (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))) / 2
    return min(1.0, (step + 1) / warm) * (_FINAL + (1 - _FINAL) * fall)


def _moments(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {
        f"optimizer.{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in parameters.items()
        for key in ("exp_avg", "exp_avg_sq")
    }


def _restore_moments_(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor], step: int
) -> None:
    for name, parameter in parameters.items():
        moments = {key: tensors[f"optimizer.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
        kept = {key: torch.empty_like(parameter).copy_(value) for key, value in moments.items()}
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **kept}
