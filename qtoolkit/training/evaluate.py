"""COCO AP of a network in training, by the same path as ``qtool eval`` takes for an ONNX file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qtoolkit.backends.runner import Condition, Runner, Signature, TensorSpec
from qtoolkit.data.samples import Samples
from qtoolkit.errors import DataSetError
from qtoolkit.evaluation.coco_ap import ApMetrics, coco_keypoint_ap
from qtoolkit.evaluation.pose_network import PoseNetwork, predict_set
from qtoolkit.models.yolopose import DeployedYoloPose, YoloPose

__all__ = ["TorchRunner", "evaluate_pose"]

_INPUT, _OUTPUT = "images", "output0"


class TorchRunner(Runner):
    """A network of ours as a runner: one image of ``size``² pixels in, decoded people out (head yolov5-pose)."""

    name = "torch"

    def __init__(self, model: YoloPose, size: int) -> None:
        super().__init__()
        self._model = model
        self._size = size
        self._deployed: DeployedYoloPose | None = None
        self._was_training = model.training

    def _open(self) -> Signature:
        self._was_training = self._model.training
        self._deployed = DeployedYoloPose(self._model.eval())
        cells = sum(3 * (self._size // stride) ** 2 for stride in self._model.strides)
        float32 = np.dtype(np.float32)
        shape = (1, 3, self._size, self._size)
        rows = (1, cells, 6 + 3 * self._model.config.keypoint_count)
        return Signature({_INPUT: TensorSpec(shape, float32)}, {_OUTPUT: TensorSpec(rows, float32)})

    @torch.inference_mode()
    def _infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Sequence[NDArray[Any]]:
        device = next(self._model.parameters()).device
        found = self._deployed(torch.from_numpy(feeds[_INPUT]).to(device)) if self._deployed is not None else None
        return [found.cpu().numpy()] if found is not None else []

    def _close(self) -> None:
        self._deployed = None
        self._model.train(self._was_training)

    def conditions(self) -> dict[str, Condition]:
        """Runtime, version, provider (the device) and threads."""
        device = next(self._model.parameters()).device
        return {
            "runtime": "torch",
            "version": str(torch.__version__),
            "provider": str(device),
            "threads": torch.get_num_threads(),
        }


def evaluate_pose(
    model: YoloPose, samples: Samples, size: int, progress: Callable[[int, int], None] | None = None
) -> ApMetrics:
    """The COCO keypoint metrics (0–100) of ``model`` on labelled photos, letterboxed to ``size``² pixels.

    Thresholds and NMS as in ``qtool eval``; float32 whatever the training computes in. A network at its start, whose
    boxes or scores are NaN, raises ModelFileError as any network does; photos that cannot be read are left out.
    """
    labels = samples.annotations
    if labels is None:
        raise DataSetError("the photos have no labels to evaluate with", expected="labels", found="photos only")
    with TorchRunner(model, size) as runner, _full_precision():
        network = PoseNetwork.from_runner(runner, "yolov5-pose")
        people, _ = predict_set(network, samples, progress)
    return coco_keypoint_ap(labels.ground_truth(people), people, people)


def _full_precision() -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", enabled=False)
