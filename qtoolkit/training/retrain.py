"""Retrain any ONNX network for another activation function without labels: it learns to repeat the original.

1. The activation functions are replaced (``graph.swap_activations``); names of layers, inputs and outputs stay.
2. Every convolution is fitted to what the original computed there, in closed form (``layer_fit``).
3. The whole network is fine-tuned to give the original's outputs on changed photos (``fine_tuning``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qtoolkit.data.calibration_set import CalibrationSet, check_disjoint
from qtoolkit.data.samples import SkippedImage
from qtoolkit.data.sources import DataSource, open_data_source
from qtoolkit.errors import DataSetError
from qtoolkit.evaluation.evaluate import evaluate_network
from qtoolkit.graph.swap_activations import ActivationSwap
from qtoolkit.training.distributed import pick_device
from qtoolkit.training.fine_tuning import FineTuning, tuning_size_wh
from qtoolkit.training.layer_fit import fit_images, fit_layers_
from qtoolkit.training.network_pair import NetworkPair
from qtoolkit.training.retrain_folder import RetrainFolder
from qtoolkit.training.retrain_options import RetrainOptions
from qtoolkit.training.threads import torch_threads
from qtoolkit.training.tuning_batches import PlainBatches

__all__ = ["RetrainResult", "retrain_network"]

StageProgress = Callable[[str, int, int], None]

_ORIGINAL, _FITTED = -1, 0


@dataclass(frozen=True)
class RetrainResult:
    """What came out of a retraining.

    ``model``: the retrained network; ``changes``: activation functions replaced; ``ap``: images seen → AP (0–100) that
    was measured, 0 behind the fit and −1 for the original network; ``photos``: number used; ``seconds`` of this run;
    ``skipped``: photos that could not be used.
    """

    model: Path
    changes: tuple[ActivationSwap, ...]
    ap: dict[int, float]
    photos: int
    seconds: float
    skipped: tuple[SkippedImage, ...]


def retrain_network(options: RetrainOptions, progress: StageProgress | None = None) -> RetrainResult:
    """Retrain into ``options.out``, and go on there where an earlier run of the same options stopped.

    Writes model.onnx (behind the fit, with every evaluation and at the end), fitted.safetensors and last.safetensors
    (states) and log.jsonl. ``progress`` is called with (stage, done, total).

    Raises, before anything is written: ModelFileError for a network that cannot be used or has nothing to replace,
    HeadError where its outputs do not fit ``head``, DataSetError where there are no usable photos, or ones that are
    evaluated on too, or no labels to evaluate by, CheckpointError and UsageError where ``out`` holds something else or
    another retraining, UsageError for a size that the network does not run at, UnavailableError for a device that is
    not there. Later: QtoolError where the loss is no number any more.
    """
    with torch_threads(options.threads):
        return _Retraining(options, progress or (lambda stage, done, total: None)).go()


class _Retraining:
    """One run: everything is read and checked before anything is written."""

    def __init__(self, options: RetrainOptions, progress: StageProgress) -> None:
        self._begun = time.monotonic()
        self._options, self._progress = options, progress
        self._device = pick_device(options.device)
        self._pair = NetworkPair.of(options)
        self._tuning_size_wh = tuning_size_wh(self._pair, options)
        source = open_data_source(options.images, parts=("train",), progress=self._stage("rendering people"))
        photos = source.learning_split("--images")
        self._photos = CalibrationSet.from_split(photos, options.max_images, options.seed)
        self._data = self._evaluation_data()
        self._fit_on = fit_images(self._pair, self._photos.paths, options)
        self._folder = RetrainFolder(options, self._photos.sha256)
        self._aps: dict[int, float] = {}

    def go(self) -> RetrainResult:
        """Fit and fine-tune, as far as that has not been done."""
        self._folder.prepare()
        self._pair.to_(self._device)
        if self._folder.tuned is None:
            self._fit()
        else:
            self._aps = _measured(self._folder.tuned.facts)
        if self._options.steps:
            self._tune()
        return RetrainResult(
            model=self._folder.model,
            changes=self._pair.changes,
            ap=self._aps,
            photos=len(self._photos),
            seconds=time.monotonic() - self._begun,
            skipped=self._photos.skipped,
        )

    def _fit(self) -> None:
        """The fit, or the one that an earlier run made; and its AP."""
        pair, folder = self._pair, self._folder
        state = folder.fitted
        if state is None:
            report = fit_layers_(pair, self._fit_on, self._options, self._stage("fitting layers"))
            state = folder.save_fitted(pair.tensors(), {"fit": report.facts(), "ap": {}})
        pair.load_(state.tensors)
        self._aps = _measured(state.facts)
        pair.write(folder.model)
        before = dict(self._aps)
        self._measure(_ORIGINAL, self._options.model)
        self._measure(_FITTED, folder.model)
        if self._aps != before:
            aps = {str(seen): ap for seen, ap in self._aps.items()}
            folder.save_fitted(pair.tensors(), {"fit": state.facts.get("fit", {}), "ap": aps})
        folder.open_log(0)

    def _tune(self) -> None:
        pair, folder = self._pair, self._folder

        def measure(seen: int) -> float | None:
            pair.write(folder.model)
            return self._measure(seen, folder.model)

        options = self._options
        batches = PlainBatches(self._photos.paths, options.batch, options.seed, self._tuning_size_wh, self._device)
        tuning = FineTuning(pair, folder, options, batches, measure, self._aps, self._stage("fine-tuning"))
        tuning.run(lambda: pair.settle_statistics_(self._fit_on))
        # A finished run that is repeated: what it wrote may have been taken away, and --data may be new.
        measure(self._options.steps * self._options.batch)

    def _measure(self, seen: int, model: Path) -> float | None:
        """AP of ``model``, kept as that after ``seen`` images; None without data to measure it on."""
        if self._data is None:
            return None
        if seen not in self._aps:
            self._aps[seen] = evaluate_network(
                model,
                self._data,
                head=self._options.head,
                images=self._options.eval_images,
                input_size_wh=self._options.input_size_wh,
                threads=self._options.threads,
                progress=self._stage(f"evaluating after {seen} images" if seen >= 0 else "evaluating the original"),
            ).record.ap
        return self._aps[seen]

    def _evaluation_data(self) -> DataSource | None:
        if self._options.data is None:
            return None
        data = open_data_source(self._options.data, parts=("val",), progress=self._stage("rendering people"))
        if not data.has_labels:
            raise DataSetError(
                f"no AP can be measured on the data set {data.name}",
                expected="a part val with labels",
                found="photos without labels",
                do="leave --data out, or give a labelled data set",
            )
        check_disjoint(self._photos, data.evaluation_samples(self._options.eval_images))
        return data

    def _stage(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(name, done, total)


def _measured(facts: dict[str, dict[str, float]]) -> dict[int, float]:
    return {int(seen): ap for seen, ap in facts["ap"].items()}
