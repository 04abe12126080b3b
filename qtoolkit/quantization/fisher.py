"""Sensitivity of all layers at once, from one backward pass per photo through the float network.

With L a loss of the outputs, g its gradient by a tensor that quantization rounds and Δ the rounding error there, the
diagonal of the Fisher information gives what the error costs::

    loss of a layer = Σ g² · Δ²     over its weight, its input and, where the target rounds it, its output

Source: the Fisher diagonal of BRECQ (arXiv 2102.05426, equation 10), applied as the one-pass layer scores of NVIDIA's
ModelOpt are. Δ is not modelled: weights and activations are rounded to the very grids that PTQ uses.

A distance to the float network itself has no gradient there. So g is that of a random projection: the terms of
``pose_terms``, whose squares add up to 1 − OKS, each with a random sign. Over the signs, the mean of g² is the diagonal
of the Gauss-Newton matrix of that loss (Hutchinson's estimator), so the losses are in units of 1 − OKS per person.
Heads without rows of their own per place (heatmaps, NMS inside) take the outputs of the last layers instead, each
tensor over its norm: then a loss is noise over signal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.throughput import map_in_order, worker_count
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.graph.layers import Layer, Structure
from qtoolkit.graph.view import node_name
from qtoolkit.numerics.affine import QuantParams, dequantize
from qtoolkit.quantization.pose_terms import PoseTerms
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.training.distill import head_outputs
from qtoolkit.training.onnx_module import OnnxModule
from qtoolkit.training.threads import torch_threads

__all__ = ["FisherLosses", "fisher_losses"]


@dataclass(frozen=True)
class FisherLosses:
    """Layer → loss, over ``images`` photos with ``people`` confident people.

    ``takes_people``: False for a head that is not taken apart; then ``people`` is 0 and the loss is noise over signal.
    """

    losses: Mapping[str, float]
    images: int
    people: int
    takes_people: bool


def fisher_losses(
    quantizer: Quantizer,
    head: Head,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    layers: Sequence[Layer],
    precision: Precision = Precision.INT8,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> FisherLosses:
    """The loss of each of ``layers`` at an integer ``precision``, others in float; formula in the module's text.

    Mean over confident people, or over photos for a head that is not taken apart. ``threads`` photos are under way at
    a time (None: one per core); the result does not depend on it. ``progress`` is called with the number of photos
    done. Raises UsageError for a precision that is not on an integer grid, ModelFileError where torch cannot run the
    network.
    """
    if precision is Precision.FP16:
        raise UsageError(
            "the metric fisher knows rounding to integers only",
            expected="int8, int16 or int16w16",
            found=precision.value,
            do="rank with another metric",
        )
    network = _Network(quantizer, head, layers, precision)
    sums = np.zeros(len(layers))
    images = people = 0
    with torch_threads(1):
        numbered = enumerate(feeds)
        for energies, found in map_in_order(lambda pair: network.energies(*pair), numbered, worker_count(threads)):
            sums += energies
            images += 1
            people += found
            if progress is not None:
                progress(images)
    takes_people = PoseTerms.known_for(head)
    losses = (sums / max(people if takes_people else images, 1)).tolist()
    names = [layer.name for layer in layers]
    return FisherLosses(dict(zip(names, losses, strict=True)), images, people, takes_people)


class _Network:
    """The float network in torch, with a tap wherever the quantized one rounds; photos may run side by side."""

    def __init__(self, quantizer: Quantizer, head: Head, layers: Sequence[Layer], precision: Precision) -> None:
        self._head, self._layers = head, tuple(layers)
        self._takes_rows = PoseTerms.known_for(head)
        outputs = head.outputs if self._takes_rows else head_outputs(quantizer.model)
        self._cut = _tail_inputs(quantizer.model) if self._takes_rows else ()
        self._module = OnnxModule(quantizer.model, outputs=outputs, trainable=()).eval()
        self._rounded_weights: dict[str, Tensor] = {}
        self._input_grids: dict[str, QuantParams] = {}
        # By (layer, tensor): a tensor that everybody reads rounded.
        self._tensor_grids: dict[tuple[str, str], QuantParams] = {}
        self._taps = threading.local()
        for layer in layers:
            self._add(quantizer, layer, precision)

    def _add(self, quantizer: Quantizer, layer: Layer, precision: Precision) -> None:
        grids = quantizer.grids({layer.name: precision})
        for key, pair in grids.placement.tensors.items():
            # Of one layer alone, a pair is for its own input, or for all readers of a tensor: nothing else is in 8 bit.
            if pair.readers is None:
                self._tensor_grids[layer.name, pair.tensor] = grids.activations[key]
            else:
                self._input_grids[layer.name] = grids.activations[key]
        name = layer.name
        if (weights := grids.weights.get(name)) is not None:
            self._rounded_weights[name] = torch.from_numpy(dequantize(weights.weight, weights.params))
        self._module.set_weight_transform(name, lambda weight: self._tap("weight", name, weight.detach()))
        self._module.set_input_transform(name, lambda value: self._tap("input", name, value.view_as(value)))

    def _tap(self, kind: str, layer: str, value: Tensor) -> Tensor:
        tapped = value if value.requires_grad else value.requires_grad_()
        self._taps.values[kind, layer] = tapped
        return tapped

    def energies(self, index: int, feed: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float64], int]:
        """Σ g² · Δ² of each layer for photo ``index``, which seeds the signs, and the number of people on it."""
        torch.set_num_threads(1)
        taps: dict[tuple[str, str], Tensor] = {}
        self._taps.values = taps
        feeds = {name: torch.from_numpy(np.asarray(value, np.float32)).requires_grad_() for name, value in feed.items()}
        captured = tuple(dict.fromkeys(tensor for _, tensor in self._tensor_grids))
        values = self._module(feeds, capture=(*captured, *self._cut))
        outputs = {name: values[name] for name in self._module.outputs}
        slopes, people = self._projection(outputs, np.random.default_rng(index))
        if slopes is None:
            return np.zeros(len(self._layers)), people
        places = {key: tensor for key, tensor in taps.items() if key[0] == "weight" or key[1] in self._input_grids}
        places |= {("tensor", name): values[name] for name in captured}
        ends, slopes = self._behind_the_layers(list(outputs.values()), slopes, [values[name] for name in self._cut])
        found = torch.autograd.grad(ends, list(places.values()), slopes, allow_unused=True)
        by_place = dict(zip(places, found, strict=True))
        with torch.no_grad():
            return np.array([self._energy(layer.name, places, by_place) for layer in self._layers]), people

    def _projection(
        self, outputs: Mapping[str, Tensor], random: np.random.Generator
    ) -> tuple[list[Tensor] | None, int]:
        """Gradient of the randomly signed terms by each of ``outputs``, None where nobody is there; and the people."""
        if not self._takes_rows:
            return [_signed(output.detach(), len(outputs), random) for output in outputs.values()], 0
        (output,) = outputs.values()
        rows = output.detach()[0].numpy()
        terms = PoseTerms.of(rows.T if self._head.anchors_last else rows, self._head)
        if not terms.people:
            return None, 0
        gradient = terms.project(random.choice([-1.0, 1.0], terms.count))
        return [torch.from_numpy(gradient.T if self._head.anchors_last else gradient)[None]], terms.people

    @staticmethod
    def _behind_the_layers(
        outputs: list[Tensor], slopes: list[Tensor], cut: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of ``cut`` that the projection depends on, with its gradient there; else ``outputs``.

        Branches of boxes, and those of levels on which nobody is, need no backward pass then.
        """
        if not cut:
            return outputs, slopes
        found = torch.autograd.grad(outputs, cut, slopes, allow_unused=True)
        pairs = [(end, slope) for end, slope in zip(cut, found, strict=True) if slope is not None and bool(slope.any())]
        return [end for end, _ in pairs], [slope for _, slope in pairs]

    def _energy(
        self, layer: str, places: Mapping[tuple[str, str], Tensor], gradients: Mapping[tuple[str, str], Tensor | None]
    ) -> float:
        total = 0.0
        rounded_weight, slope = self._rounded_weights.get(layer), gradients.get(("weight", layer))
        if rounded_weight is not None and slope is not None:
            total += _squares((rounded_weight - places["weight", layer]).mul_(slope))
        rounded = [(("input", layer), self._input_grids.get(layer))]
        rounded += [(("tensor", name), grid) for (owner, name), grid in self._tensor_grids.items() if owner == layer]
        for place, grid in rounded:
            slope = gradients.get(place)
            if grid is not None and slope is not None:
                total += _squares(_rounding_error(places[place], grid).mul_(slope))
        return total


def _tail_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Outputs of the last layers; none where the decode tail reads other tensors of the network too."""
    structure, ends = Structure.of(model), head_outputs(model)
    view = structure.view
    read = {
        tensor
        for node in view.nodes
        if node_name(node) in structure.tail and node.op_type != "Shape"
        for tensor in node.input
        if tensor and not view.is_constant(tensor)
    }
    made = {tensor for node in view.nodes if node_name(node) in structure.tail for tensor in node.output}
    return ends if read - made <= set(ends) else ()


def _signed(output: Tensor, outputs: int, random: np.random.Generator) -> Tensor:
    signs = torch.from_numpy(random.choice(np.array([-1.0, 1.0], np.float32), tuple(output.shape)))
    return signs.div_(output.norm().clamp(min=1e-12) * outputs**0.5)


def _rounding_error(value: Tensor, grid: QuantParams) -> Tensor:
    """fake_quantize(value) − value, of the formula in ``numerics.affine``; torch's own operator takes twice as long."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    steps = value / scale
    rounded = steps.round().clamp_(grid.grid.qmin - zero_point, grid.grid.qmax - zero_point)
    return rounded.sub_(steps).mul_(scale)


def _squares(values: Tensor) -> float:
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))
