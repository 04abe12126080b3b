"""The original network and the one that is to repeat it: the same layers, other activation functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from qtoolkit.artifacts.files import write_bytes
from qtoolkit.errors import HeadError, ModelFileError, UsageError
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.graph.layers import last_layers
from qtoolkit.graph.load import load_network, network_input
from qtoolkit.graph.swap_activations import ActivationSwap, swap_activations
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.training.distill import Distillation, head_outputs, score_channels
from qtoolkit.training.onnx_module import OnnxModule
from qtoolkit.training.retrain_options import RetrainOptions

__all__ = ["NetworkPair"]

_CELL = 64
_CHUNK = 8


@dataclass(frozen=True, eq=False)
class NetworkPair:
    """``teacher``, the original, and ``student``, which is retrained; both give the outputs of the last layers.

    ``model`` is the student's graph with the weights it began with, ``changes`` what was replaced in it, ``loss`` the
    distance between the two. ``input_size_wh`` in pixels.
    """

    model: onnx.ModelProto
    changes: tuple[ActivationSwap, ...]
    input_size_wh: tuple[int, int]
    teacher: OnnxModule
    student: OnnxModule
    loss: Distillation

    @classmethod
    def of(cls, options: RetrainOptions) -> NetworkPair:
        """Read ``options.model`` and replace its activation functions.

        Raises ModelFileError for a network that cannot be used, that has nothing to replace or does not take colour
        photos, HeadError where its outputs do not fit ``options.head``.
        """
        original = load_network(options.model, input_size_wh=options.input_size_wh)
        image = network_input(original)
        if image.shape[1] != 3:
            raise ModelFileError(
                f"{options.model} does not take photos",
                expected="an input of 3 channels",
                found=f"{image.shape[1]} channels",
            )
        _add_biases_(original)
        swapped, changes = swap_activations(original, options.activation)
        outputs = head_outputs(original)
        loss = Distillation(outputs, score_channels(original, _head_of(original, options.head)))
        teacher, student = (
            OnnxModule(each, outputs=outputs, channels_last=True).eval() for each in (original, swapped)
        )
        return cls(swapped, changes, image.input_size_wh, teacher.requires_grad_(False), student, loss)

    @property
    def device(self) -> torch.device:
        """Where both networks compute."""
        return self.student.device

    def to_(self, device: torch.device) -> None:
        """Move both networks; the loss goes where their outputs are. What was taken from them before is no longer
        theirs."""
        self.teacher.to(device)
        self.student.to(device)

    def activations_behind(self) -> dict[str, str]:
        """Layer → kind of the activation function that was replaced behind it, where nothing else reads the layer.

        Without the last layers: no layer comes behind them that could make up for a constant.
        """
        view, last = GraphView(self.model), set(last_layers(self.model))
        kinds: dict[str, str] = {}
        for change in self.changes:
            producer = view.producer(change.input)
            if producer is None or len(view.consumers(change.input)) != 1 or change.input in view.outputs:
                continue
            if node_name(producer) not in last:
                kinds[node_name(producer)] = change.kind
        return kinds

    def photo_size_wh(self, given: int | None, share: float, option: str) -> tuple[int, int]:
        """Size in pixels at which photos are run: ``given`` (a square), else about ``share`` of the input.

        A network that runs at no other size than its own gets that. Raises UsageError, naming ``option``, where it does
        not run at the given size.
        """
        side = max(_CELL, round(max(self.input_size_wh) * share / _CELL) * _CELL) if given is None else given
        if self._runs_at((side, side)):
            return side, side
        if given is None:
            return self.input_size_wh
        w, h = self.input_size_wh
        raise UsageError(
            f"the network cannot be run on photos of {given} pixels",
            expected=f"a size that its strides divide, such as a multiple of {_CELL}; its own is {w}×{h}",
            found=str(given),
            do=f"give another {option}, or leave it out",
        )

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained: the student's parameters, by name."""
        return self.student.parameters_by_name()

    def rate_share(self, name: str) -> float:
        """Learning rate of a trained parameter, as a multiple of the run's: the same for all."""
        return 1.0

    def tensors(self) -> dict[str, Tensor]:
        """What was trained and estimated: ``model.NAME`` for parameters, ``statistics.NAME`` for batch norms'."""
        groups = (("model", self.student.parameters_by_name()), ("statistics", self.student.statistics_by_name()))
        return {f"{kind}.{name}": tensor for kind, tensors in groups for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the student to what ``tensors`` gave."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def write(self, path: Path) -> None:
        """Write the student as ONNX: inputs, outputs and layers are called as in the original."""
        write_bytes(path, self.student.to_onnx().SerializeToString(deterministic=True))

    @torch.no_grad()
    def settle_statistics_(self, images: Tensor) -> bool:
        """Estimate the student's batch-norm statistics anew on ``images`` (N, 3, H, W), float32, RGB 0–1.

        For batch norms that could not be folded into a convolution. The new ones stay only if the loss on these images
        is lower with them, which is what is returned: a network that was trained with fixed statistics fits those.
        """
        statistics = self.student.statistics_by_name()
        if not statistics:
            return False
        before, old = self._mean_loss(images), {name: tensor.clone() for name, tensor in statistics.items()}
        self.student.estimate_statistics(self._chunks(images))
        if self._mean_loss(images) < before:
            return True
        for name, tensor in statistics.items():
            tensor.copy_(old[name])
        return False

    @torch.no_grad()
    def _mean_loss(self, images: Tensor) -> float:
        losses = [float(self.loss(self.teacher(part), self.student(part)).total) for part in self._chunks(images)]
        return sum(losses) / len(losses)

    @torch.no_grad()
    def _runs_at(self, size_wh: tuple[int, int]) -> bool:
        try:
            self.teacher(torch.zeros(1, 3, size_wh[1], size_wh[0], device=self.device))
        # What torch raises where shapes do not fit each other, and what the graph's own constants do not allow.
        except (RuntimeError, ModelFileError):
            return False
        return True

    def _chunks(self, images: Tensor) -> Iterator[Tensor]:
        return (images[start : start + _CHUNK].to(self.device) for start in range(0, len(images), _CHUNK))


def _head_of(model: onnx.ModelProto, wanted: str | None) -> Head | None:
    """The pose head, for the weights of the loss; None for a network that has none that is known."""
    view = GraphView(model)
    shapes = {name: view.shape(name) or () for name in view.outputs}
    try:
        return detect_head(shapes, network_input(model).input_size_wh, wanted)
    except HeadError:
        if wanted is not None:
            raise
        return None


def _add_biases_(model: onnx.ModelProto) -> None:
    """Give every Conv without a bias one of zeros: the fit needs a place for the constants that move."""
    view = GraphView(model)
    names = {name for node in view.nodes for name in (*node.input, *node.output)}
    for node in view.nodes:
        shape = view.shape(node.input[1]) if node.op_type == "Conv" else None
        if not shape or not view.is_constant(node.input[1]) or (len(node.input) > 2 and node.input[2]):
            continue
        bias = f"{node_name(node)}.bias"
        while bias in names:
            bias += "_"
        names.add(bias)
        del node.input[2:]
        node.input.append(bias)
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape[0], np.float32), bias))
