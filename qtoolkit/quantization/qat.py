"""Quantization-aware training: the quantized network learns to repeat the float one, and what labels say of it.

1. It starts from what PTQ chose under the plan: the same places, the same grids.
2. As a torch module, every Q/DQ pair and every weight of an integer layer is a fake quantizer whose scale is learned
   (``training.fake_quantizer``); weights and biases stay float masters (``training.quantized_pair``).
3. The fine-tuning of ``qtool retrain`` brings the outputs of its last layers to those of the float network. With
   labels, for a network of our own architecture, the loss it was trained by is added.
4. The trained weights are rounded to the trained grids and written as PTQ writes them: same nodes, same names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from qtoolkit.artifacts.files import sha256_bytes
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.data.calibration_set import CalibrationSet
from qtoolkit.errors import ModelFileError
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.graph.load import network_input
from qtoolkit.graph.qdq import LayerWeights
from qtoolkit.graph.view import GraphView
from qtoolkit.quantization.learning_photos import LearningSet
from qtoolkit.quantization.ptq import ChosenGrids, Quantizer
from qtoolkit.training.dataset import TrainingSet
from qtoolkit.training.distributed import pick_device
from qtoolkit.training.fine_tuning import FineTuning, WeightedLabels
from qtoolkit.training.image_cache import ImageCache
from qtoolkit.training.labelled_loss import LabelledLoss
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.recipe import Augmentation
from qtoolkit.training.state_folder import StateFolder
from qtoolkit.training.threads import torch_threads
from qtoolkit.training.tuning_batches import LabelledBatches, PlainBatches, TuningBatches

__all__ = ["QatOptions", "finetune_quantized", "trained_grids"]

_CACHE_GIB = 1.0
_FREE = ("threads", "device", "save_every_minutes")


class QatOptions(BaseModel):
    """Options of ``finetune_quantized``.

    - ``images`` seen, in whole batches of ``batch``; ``lr``: highest learning rate of weights (Adam, falls along a
      cosine to 2 %); ``seed`` of what is drawn.
    - ``labels_weight``: of the labels' loss beside the distance from the float network, where there are labels.
    - ``amp``: bf16 lets the convolutions compute in bfloat16, fake quantizers never; its 8 bits of significand are as
      coarse as the grids, so it is off unless asked for.
    - ``threads`` of torch (None: all); ``device``: auto, cpu or cuda, with labels always the CPU;
      ``save_every_minutes`` the state.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    images: int = Field(default=2000, ge=1)
    batch: int = Field(default=8, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    labels_weight: float = Field(default=0.3, ge=0)
    amp: str = Field(default="off", pattern="^(auto|off|bf16)$")
    seed: int = 0
    threads: int | None = Field(default=None, ge=1)
    device: str = Field(default="cpu", pattern="^(auto|cpu|cuda)$")
    save_every_minutes: float = Field(default=3.0, gt=0)

    @property
    def steps(self) -> int:
        """Batches of the training."""
        return -(-self.images // self.batch)

    @property
    def eval_every(self) -> int:
        """Nothing is measured meanwhile."""
        return 0

    @property
    def rate_option(self) -> str:
        """What the command calls ``lr``."""
        return "--qat-lr"

    def outcome_fields(self) -> dict[str, Any]:
        """The fields, as JSON values, that decide what weights come out."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in _FREE}


def finetune_quantized(
    quantizer: Quantizer,
    plan: PrecisionPlan,
    head: Head | None,
    photos: LearningSet,
    options: QatOptions,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> onnx.ModelProto:
    """The network of ``quantizer`` under ``plan``, fine-tuned on ``photos``; Q/DQ as PTQ writes it.

    State and log lie in ``folder``; a run that was stopped goes on there and gives, on the CPU to the last bit, the
    same network. ``progress`` is called with (images seen, total). Raises PlanFileError as ``Quantizer.quantize`` does,
    ModelFileError for a network that does not take colour photos or that torch cannot run, UsageError where the photos
    have labels and the network is none of ours, UsageError and CheckpointError where ``folder`` holds another training,
    UnavailableError where there is no such device, QtoolError where the loss is no number any more.
    """
    device = pick_device(options.device if isinstance(photos, CalibrationSet) else "cpu")
    chosen = quantizer.quantize(plan).plan.layers
    image = network_input(quantizer.model)
    if image.shape[1] != 3:
        raise ModelFileError(
            "the network does not take photos", expected="an input of 3 channels", found=f"{image.shape[1]} channels"
        )
    grids = quantizer.grids(chosen)
    network_sha256 = sha256_bytes(quantizer.write(chosen, grids).SerializeToString(deterministic=True))
    recipe = options.outcome_fields() | {"network_sha256": network_sha256}
    with torch_threads(options.threads):
        pair = QuantizedPair.of(quantizer.model, head, grids.placement, grids.activations, grids.weights)
        pair.to_(device)
        labels = _labels(quantizer.model, head, photos, options)
        state = StateFolder(folder, recipe, photos.sha256)
        with _batches(photos, options, image.input_size_wh, folder, pair) as batches:
            tuning = FineTuning(
                pair, state, options, batches, lambda seen: None, {}, progress or (lambda done, total: None), labels
            )
            tuning.run(lambda: None)
        network, trained = pair.network(), trained_grids(pair, grids)
    return quantizer.write(chosen, trained, network)


def _labels(
    model: onnx.ModelProto, head: Head | None, photos: LearningSet, options: QatOptions
) -> WeightedLabels | None:
    if isinstance(photos, CalibrationSet):
        return None
    return WeightedLabels(LabelledLoss.of(model, head), options.labels_weight)


@contextlib.contextmanager
def _batches(
    photos: LearningSet, options: QatOptions, size_wh: tuple[int, int], folder: Path, pair: QuantizedPair
) -> Iterator[TuningBatches]:
    """What is learned from. Labelled images are squares as large as the longer side of the input, none a mosaic."""
    if isinstance(photos, CalibrationSet):
        yield PlainBatches(photos.paths, options.batch, options.seed, size_wh, pair.student.device)
        return
    folder.mkdir(parents=True, exist_ok=True)
    size = max(size_wh)
    with ImageCache(photos.samples, size, folder, _CACHE_GIB) as cache:
        images = TrainingSet(cache, photos.labels, Augmentation(mosaic=0.0), size, options.seed)
        yield LabelledBatches(images, options.batch, size)


def trained_grids(
    pair: QuantizedPair, grids: ChosenGrids, rounded: Mapping[str, NDArray[np.float32]] | None = None
) -> ChosenGrids:
    """``grids`` with the scales and weights that ``pair`` has now; of layers that torch did not run, those of PTQ.

    ``rounded``: layer → weight that takes the place of the student's: float32 values of its grid.
    """
    rounded = rounded or {}
    activations = {**grids.activations, **pair.activation_params()}
    view, weights = GraphView(pair.network()), dict(grids.weights)
    for name, params in pair.weight_params().items():
        layer = pair.layers[name]
        weight = rounded.get(name, view.constant(layer.weight))
        bias = None if layer.bias is None else view.constant(layer.bias)
        if weight is None:
            continue
        in_integers = grids.weights[name].bias is not None
        key = (layer.input, grids.placement.layers[name].activation_bits)
        input_scale = float(activations[key].scale) if in_integers else None
        weights[name] = LayerWeights.quantized(weight, params, bias, input_scale)
    return replace(grids, activations=activations, weights=weights)
