"""Fine-tuning: gradients, until the outputs are those of the original; labels may have their say."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qtoolkit.bench.environment import cpu_flags
from qtoolkit.errors import QtoolError
from qtoolkit.training.journal import Journal
from qtoolkit.training.labelled_loss import LabelledLoss
from qtoolkit.training.network_pair import NetworkPair
from qtoolkit.training.retrain_options import RetrainOptions
from qtoolkit.training.shards import ShardedGradients
from qtoolkit.training.threads import torch_threads
from qtoolkit.training.tuned_pair import TunedPair, TuningFolder, TuningOptions
from qtoolkit.training.tuning_batches import TuningBatch, TuningBatches

__all__ = ["FineTuning", "WeightedLabels", "learning_rate_share", "tuning_size_wh"]

_SHARE = 0.7
_BETAS = (0.9, 0.98)
_WARMUP, _FINAL = 0.05, 0.02
_LOG_EVERY = 400
_MOMENTS = ("exp_avg", "exp_avg_sq")
_PART_PIXELS = 600_000
_AVERAGE_DECAY = 0.998
_PARTS = ("scores", "rest", "labels")
_FIRST_BF16 = (8, 0)


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the highest learning rate: a linear warm-up over 5 % of the run, then a cosine to 2 %."""
    warm = max(1, round(_WARMUP * steps))
    fall = (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))) / 2
    return min(1.0, (step + 1) / warm) * (_FINAL + (1 - _FINAL) * fall)


def tuning_size_wh(pair: NetworkPair, options: RetrainOptions) -> tuple[int, int]:
    """Size of the photos in pixels. Raises UsageError where the network does not run at ``options.train_size``."""
    return pair.photo_size_wh(options.train_size, _SHARE, "--train-size")


class WeightedLabels(NamedTuple):
    """The loss of the labels, and how much of it is added to the distance from the teacher."""

    loss: LabelledLoss
    weight: float


class FineTuning:
    """Adam on the student of ``pair``, from the state in ``folder`` or from its weights of now.

    It learns from ``batches``, from their labels too where ``labels`` says by how much. ``measure(images seen)`` writes
    the network and returns its AP, if it can be measured; ``aps`` are those measured so far. ``progress`` is called
    with (images seen, total).

    What is measured and kept at the end is the average of the weights over about the last 500 steps. Both networks
    compute in bfloat16 where ``options.amp`` says so or the device multiplies in it (``auto``).

    Everything is computed where the parameters lie. On the CPU a batch is done in parts, one on each core, and the loss
    is looked at after every step; elsewhere it is done at once, and the loss is read where something is written, so
    that the device never waits for the processor.

    The learning rate, the batches and the variances that the loss divides by are functions of the step and the seed: a
    run that goes on from a state computes, on the CPU to the last bit, what it would have computed without the stop,
    whatever the number of threads.
    """

    def __init__(
        self,
        pair: TunedPair,
        folder: TuningFolder,
        options: TuningOptions,
        batches: TuningBatches,
        measure: Callable[[int], float | None],
        aps: Mapping[int, float],
        progress: Callable[[int, int], None],
        labels: WeightedLabels | None = None,
    ) -> None:
        self._pair, self._folder, self._options = pair, folder, options
        self._measure, self._aps, self._progress = measure, aps, progress
        self._steps = options.steps
        self._batches, self._labels = batches, labels
        self._parameters = dict(pair.trained())
        self._device = next(iter(self._parameters.values())).device
        self._on_cpu = self._device.type == "cpu"
        self._optimizer = torch.optim.Adam(self._groups(), lr=options.lr, betas=_BETAS)
        self._average = {name: each.detach().clone() for name, each in self._parameters.items()}
        self._bf16 = options.amp == "bf16" or (options.amp == "auto" and _multiplies_bf16(self._device))
        self._sums, self._summed = torch.zeros(len(_PARTS), dtype=torch.float64, device=self._device), 0
        self._step = self._clock_step = 0
        if folder.tuned is not None:
            self._restore(folder.tuned.tensors, folder.tuned.facts)
        self._clock = self._saved = time.monotonic()

    def run(self, settle: Callable[[], object]) -> None:
        """Take the steps that are left; ``settle`` is called behind the last one, before the network is written."""
        if self._step == self._steps:
            return
        journal = self._folder.open_log(self._step)
        with torch.no_grad():
            # Of batch 0 always, wherever the run begins.
            self._pair.loss.measure_spread(self._pair.teacher(self._batches.batch(0).to(self._device).images))
        w, h = self._batches.size_wh
        part_images = max(1, min(self._options.batch, _PART_PIXELS // (w * h))) if self._on_cpu else self._options.batch
        with (
            torch_threads(1) as threads,
            ShardedGradients(
                self._loss_of, list(self._parameters.values()), threads if self._on_cpu else 0
            ) as gradients,
        ):
            for batch in self._batches.batches(self._step, self._steps):
                self._take_step(batch.to(self._device).parts(part_images), gradients)
                self._step += 1
                self._progress(self._seen, self._steps * self._options.batch)
                if self._step < self._steps:
                    self._record(journal, False)
        self._load_average_()
        if not all(bool(each.isfinite().all()) for each in self._parameters.values()):
            raise self._diverged("weights that are none")
        settle()
        self._record(journal, True)

    @property
    def _seen(self) -> int:
        return self._step * self._options.batch

    def _record(self, journal: Journal, last: bool) -> None:
        if last or self._passes(_LOG_EVERY):
            self._check_losses()
            self._log_losses(journal)
        if last or (self._options.eval_every and self._passes(self._options.eval_every)):
            self._check_losses()
            with self._averaged():
                ap = self._measure(self._seen)
            if ap is not None:
                journal.add("evaluate", self._step, {"images": self._seen, "variant": "retrained", "ap": ap})
        if last or time.monotonic() - self._saved > 60 * self._options.save_every_minutes:
            self._check_losses()
            self._save()

    def _passes(self, every: int) -> bool:
        """Whether the last step crossed a multiple of ``every`` images."""
        return self._seen // every != (self._seen - self._options.batch) // every

    def _take_step(self, parts: list[TuningBatch], gradients: ShardedGradients[TuningBatch, Tensor]) -> None:
        self._set_rate()
        for losses in gradients(parts):
            self._sums += losses
            self._summed += 1
        if self._on_cpu:
            self._check_losses()
        self._optimizer.step()
        decay = min(_AVERAGE_DECAY, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.values()), list(self._parameters.values()), 1 - decay)

    def _check_losses(self) -> None:
        """Raise QtoolError where a loss since the last line of the log was no number: the sums are none either."""
        total = sum(self._sums.tolist())
        if not math.isfinite(total):
            raise self._diverged(str(total))

    def _diverged(self, found: str) -> QtoolError:
        return QtoolError(
            f"the loss is no number any more after {self._seen} images",
            expected="a finite loss",
            found=found,
            do=f"begin anew with a lower {self._options.rate_option} and another --out; the last saved state is kept",
        )

    def _loss_of(self, batch: TuningBatch) -> tuple[Tensor, Tensor]:
        """The loss of a part, and ``_PARTS`` of it, which stay on the device: (3,) float64."""
        images = batch.images
        with torch.autocast(self._device.type, torch.bfloat16) if self._bf16 else contextlib.nullcontext():
            with torch.no_grad():
                wanted = self._pair.teacher(images)
            given = self._pair.student(images)
        floats = [{name: values.float() for name, values in each.items()} for each in (wanted, given)]
        loss = self._pair.loss(*floats)
        total, labels = loss.total, torch.zeros_like(loss.rest)
        if self._labels is not None and batch.targets is not None:
            labels = self._labels.loss(floats[1], batch.targets)
            total = total + self._labels.weight * labels
        return total, torch.stack([part.detach().double() for part in (loss.scores, loss.rest, labels)])

    @torch.no_grad()
    def _load_average_(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self._average[name])

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Meanwhile the student has the averaged weights."""
        current = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._load_average_()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(current[name])

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by their share of the learning rate, that of the weights first."""
        shares = {name: self._pair.rate_share(name) for name in self._parameters}
        return [
            {"share": share, "params": [self._parameters[name] for name, own in shares.items() if own == share]}
            for share in sorted(set(shares.values()))
        ]

    def _set_rate(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._options.lr * group["share"] * learning_rate_share(self._step, self._steps)

    def _log_losses(self, journal: Journal) -> None:
        losses = dict(zip(_PARTS, (total / self._summed for total in self._sums.tolist()), strict=True))
        now = time.monotonic()
        if self._labels is None:
            del losses["labels"]
        facts = {"images": self._seen, **losses, "lr": self._optimizer.param_groups[0]["lr"]}
        rate = (self._step - self._clock_step) * self._options.batch / (now - self._clock)
        journal.add("train", self._step, {**facts, "images_per_second": rate})
        self._summed = 0
        self._sums.zero_()
        self._clock, self._clock_step = now, self._step

    def _save(self) -> None:
        moments = {
            f"optimizer.{key}.{name}": self._optimizer.state[parameter][key]
            for name, parameter in self._parameters.items()
            for key in _MOMENTS
        }
        averages = {f"average.{name}": average for name, average in self._average.items()}
        aps = {str(seen): ap for seen, ap in self._aps.items()}
        facts = {"step": self._step, "sums": self._sums.tolist(), "summed": self._summed, "ap": aps}
        self._folder.save_tuned({**self._pair.tensors(), **moments, **averages}, facts)
        self._saved = time.monotonic()

    def _restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self._pair.load_(tensors)
        self._step = self._clock_step = int(facts["step"])
        # A state that an earlier release wrote has no sum of the labels.
        for place, total in enumerate(facts.get("sums", ())):
            self._sums[place] = float(total)
        self._summed = facts.get("summed", 0)
        for name, parameter in self._parameters.items():
            self._average[name].copy_(tensors[f"average.{name}"])
            kept = {key: torch.empty_like(parameter).copy_(tensors[f"optimizer.{key}.{name}"]) for key in _MOMENTS}
            self._optimizer.state[parameter] = {"step": torch.tensor(float(self._step)), **kept}


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        # Not is_bf16_supported(), which takes emulation for support.
        return torch.cuda.get_device_capability(device) >= _FIRST_BF16
    return bool({"avx512_bf16", "amx_bf16"} & set(cpu_flags()))
