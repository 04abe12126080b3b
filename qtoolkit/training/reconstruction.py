"""Fit the convolutions of a network whose activation functions were replaced, layer by layer, in closed form.

The new network is walked beside the original on the same images. At each convolution the weights and bias are solved
for by ridge regression from what the layer reads *now* to what it gave *then*, so that errors of the layers before are
corrected as far as they can be, and no gradient is needed. Two things fit the targets to ReLU:

1. An activation function f is nearly an affine function of ReLU, channel by channel: f(t) ≈ a · relu(t + d) + c over
   the values t that the channel takes. So the layer is asked for a · (t + d) instead of t; the constant c is left to
   the regression of the layers that read it.
2. Where the target is negative, ReLU gives 0 for every negative value. The regression is repeated with the target set
   to min(prediction, 0) there, as in non-negative reconstruction of ReLU layers (arXiv 1505.06798, section 3.2:
   asymmetric reconstruction of nonlinear layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.graph.view import GraphView, attribute, node_name
from qtoolkit.training.onnx_module import OnnxModule

__all__ = ["LayerFit", "Patches", "fit_activation", "reconstruct_layers_", "regression_bytes"]

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "mish": F.mish,
    "hard_swish": F.hardswish,
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "elu": F.elu,
    "selu": F.selu,
}
_SHIFTS = torch.arange(-0.5, 2.01, 0.125)
_SMALLEST_SLOPE, _SLOPES = 0.05, (0.3, 3.0)
_ROUNDS = 5
_RIDGE = 1e-3


@dataclass(frozen=True)
class LayerFit:
    """How well one layer was fitted: ``error`` is the variance of the output (behind ReLU) that is left, as a share."""

    layer: str
    rows: int
    error: float


@dataclass(frozen=True)
class Patches:
    """What a 2-D convolution reads at sampled places: geometry of one Conv node, padding as ONNX has it."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    group: int

    @classmethod
    def of(cls, node: onnx.NodeProto, kernel: tuple[int, int]) -> Patches | None:
        """The geometry of a Conv with a ``kernel`` (h, w); None where its padding is left to the runtime."""
        if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET", b"VALID", "VALID"):
            return None
        top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
        stride_h, stride_w = attribute(node, "strides", [1, 1])
        dilation_h, dilation_w = attribute(node, "dilations", [1, 1])
        pads, group = (top, left, bottom, right), attribute(node, "group", 1)
        return cls(kernel, (stride_h, stride_w), (dilation_h, dilation_w), pads, group)

    def rows(self, image: Tensor, places: Tensor, width: int) -> Tensor:
        """Patches at ``places`` (P,), indices into the output map of ``width`` columns, of ``image`` (C, H, W).

        Returns (G, P, C / G · kh · kw), in the order of a weight's entries.
        """
        top, left, bottom, right = self.pads
        padded = F.pad(image, (left, right, top, bottom))
        columns = padded.shape[2]
        corner = places // width * self.strides[0] * columns + places % width * self.strides[1]
        offsets = (
            torch.arange(self.kernel[0], device=places.device)[:, None] * self.dilations[0] * columns
            + torch.arange(self.kernel[1], device=places.device) * self.dilations[1]
        ).flatten()
        index = (corner[:, None] + offsets).flatten()
        taken = padded.flatten(1)[:, index].view(self.group, -1, len(places), len(offsets))
        return taken.transpose(1, 2).flatten(2)


def fit_activation(kind: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """Slope a and shift d, each (C,), for which a · relu(t + d) + c is nearest to the activation ``kind``.

    ``values`` t: (P, C), samples of the input. Nearest in squared error; d is searched on a grid, a and c are the
    regression. A channel that is never far from a constant keeps slope 1 and shift 0; so does an unknown ``kind``.
    """
    channels = values.shape[1]
    slope, shift = torch.ones(channels, device=values.device), torch.zeros(channels, device=values.device)
    if kind not in _ACTIVATIONS:
        return slope, shift
    wanted = _ACTIVATIONS[kind](values)
    wanted = wanted - wanted.mean(0)
    best = torch.full_like(slope, torch.inf)
    for candidate in _SHIFTS.tolist():
        rectified = F.relu(values + candidate)
        rectified = rectified - rectified.mean(0)
        covariance = (rectified * wanted).mean(0)
        found = covariance / (rectified.square().mean(0) + 1e-9)
        error = wanted.square().mean(0) - found * covariance
        better = (error < best) & (found > _SMALLEST_SLOPE)
        best = torch.where(better, error, best)
        slope = torch.where(better, found, slope)
        shift = torch.where(better, torch.full_like(shift, candidate), shift)
    return slope.clamp(*_SLOPES), shift


@torch.no_grad()
def reconstruct_layers_(
    teacher: OnnxModule,
    student: OnnxModule,
    model: onnx.ModelProto,
    kinds: Mapping[str, str],
    images: Tensor,
    *,
    rows: int = 60_000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[LayerFit]:
    """Fit the trained convolutions of ``student`` in graph order, in place; returns how well, layer by layer.

    ``teacher`` and ``student`` run the same layers; ``model`` is the student's graph, and ``kinds`` names the replaced
    activation function behind each layer that has one. ``images`` (N, C, H, W) are all run at once: memory is what the
    network's live tensors need for N images, twice, and ``regression_bytes``. ``rows`` places are drawn over all images
    per layer, by ``seed``; ``progress`` is called with (done, total) layers.

    A grouped convolution is fitted group by group. Layers that are no 2-D convolutions, that share weight or bias with
    another node, or whose padding is left to the runtime, keep their weights.
    """
    generator = torch.Generator().manual_seed(seed)
    fitted = _convolutions(student, model)
    total, fits = len(student.layer_names), []
    walks = zip(teacher.visit_layers(images), student.visit_layers(images), strict=True)
    for done, ((name, reads_teacher), (_, reads)) in enumerate(walks, start=1):
        if (convolution := fitted.get(name)) is not None:
            wanted = _teacher_layer(teacher, convolution, reads_teacher)
            x, y = _sample(reads, convolution.patches, max(1, -(-rows // len(images))), generator, wanted)
            error = _fit_layer_(x, y, convolution.weight, convolution.bias, kinds.get(name))
            fits.append(LayerFit(name, len(y), error))
        if progress:
            progress(done, total)
    return fits


def regression_bytes(student: OnnxModule, model: onnx.ModelProto, rows: int) -> int:
    """What the regression of the largest layer that ``reconstruct_layers_`` fits needs beside the live tensors."""
    # Patches and ones; targets, goal, prediction, and what is made in between.
    fitted = _convolutions(student, model).values()
    widths = [(each.weight[0].numel() + 1) * each.patches.group + 6 * len(each.weight) for each in fitted]
    return 4 * rows * max(widths, default=0)


@dataclass(frozen=True, eq=False)
class _Convolution:
    """A layer that is fitted: ``weight`` (C_out, C_in / G, kh, kw), ``bias`` (C_out,), their names, where it reads."""

    weight: Tensor
    bias: Tensor
    names: tuple[str, str]
    patches: Patches


def _convolutions(student: OnnxModule, model: onnx.ModelProto) -> dict[str, _Convolution]:
    """The layers that can be fitted, by name."""
    view, parameters, found = GraphView(model), student.parameters_by_name(), {}
    for node in view.nodes:
        names = (*node.input[1:3], "", "")[:2]
        weight, bias = (parameters.get(tensor) for tensor in names)
        if node.op_type != "Conv" or weight is None or bias is None or weight.dim() != 4:
            continue
        patches = Patches.of(node, (weight.shape[2], weight.shape[3]))
        if patches is not None and all(len(view.consumers(tensor)) == 1 for tensor in names):
            found[node_name(node)] = _Convolution(weight, bias, (names[0], names[1]), patches)
    return found


def _sample(
    reads: Tensor, patches: Patches, per_image: int, generator: torch.Generator, target: Callable[[int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Rows of the regression of one layer: patches with a one behind each (G, P, D+1) and targets (P, C_out).

    Over all images of ``reads`` (N, C, H, W), at places drawn once for both; ``target`` gives (C_out, H', W') of an
    image. Filled in place: a list of parts and their concatenation would hold the largest tensor of all twice.
    """
    x = y = torch.empty(0)
    for index in range(len(reads)):
        wanted = target(index)
        count, width = wanted.shape[1] * wanted.shape[2], wanted.shape[2]
        # Drawn by the processor: the same places whatever the device.
        places = torch.randperm(count, generator=generator)[:per_image].to(reads.device)
        found = patches.rows(reads[index], places, width)
        if index == 0:
            total = len(reads) * len(places)
            x = found.new_ones(found.shape[0], total, found.shape[2] + 1)
            y = found.new_empty(total, wanted.shape[0])
        chosen = slice(index * len(places), (index + 1) * len(places))
        x[:, chosen, :-1] = found
        y[chosen] = wanted.flatten(1)[:, places].T
    return x, y


def _teacher_layer(teacher: OnnxModule, convolution: _Convolution, reads: Tensor) -> Callable[[int], Tensor]:
    """What the original layer gives for one image: computed from what it reads, so that nothing is kept."""
    parameters, patches = teacher.parameters_by_name(), convolution.patches
    weight, bias = (parameters[name] for name in convolution.names)
    top, left, bottom, right = patches.pads

    def output(index: int) -> Tensor:
        padded = F.pad(reads[index : index + 1], (left, right, top, bottom))
        return F.conv2d(padded, weight, bias, patches.strides, 0, patches.dilations, patches.group)[0]

    return output


def _fit_layer_(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, kind: str | None) -> float:
    """Solve for ``weight`` and ``bias`` from ``x`` (G, P, D+1) and ``y`` (P, C_out); ``kind`` of activation behind it.

    Returns the share of the variance behind the activation that is left.
    """
    start = torch.cat((weight.flatten(1), bias[:, None]), 1)
    if kind is not None:
        slope, shift = fit_activation(kind, y)
        y, start = slope * (y + shift), start * slope[:, None]
    groups, count = x.shape[0], x.shape[1]
    wanted = y.view(count, groups, -1).transpose(0, 1)
    solution = _solve(x, wanted, start.view(groups, -1, start.shape[1]), rounds=_ROUNDS if kind is not None else 1)
    predicted = x @ solution.transpose(1, 2)
    if kind is not None:
        predicted, wanted = F.relu(predicted), F.relu(wanted)
    error = (predicted - wanted).square().mean() / wanted.var().clamp(min=1e-12)
    flat = solution.reshape(weight.shape[0], -1)
    weight.copy_(flat[:, :-1].view_as(weight))
    bias.copy_(flat[:, -1])
    return float(error)


def _solve(x: Tensor, y: Tensor, start: Tensor, rounds: int) -> Tensor:
    """Rows of weights and bias (G, C, D+1) that give ``y`` (G, P, C) from ``x`` (G, P, D+1), near ``start``.

    Ridge regression towards ``start`` in float64: (XᵀX + Λ)⁻¹ (XᵀY + Λ W₀ᵀ). From the second round on, targets that
    are not positive become min(prediction, 0).
    """
    gram = (x.transpose(1, 2) @ x).double()
    scale = gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    ridge = (_RIDGE * scale + 1e-6).expand(-1, gram.shape[1]).clone()
    ridge[:, -1] = 1e-6
    factor = torch.linalg.cholesky(gram + torch.diag_embed(ridge))
    pull = ridge[:, :, None] * start.double().transpose(1, 2)
    goal, solution = y, start
    for remaining in range(rounds - 1, -1, -1):
        moment = (x.transpose(1, 2) @ goal).double()
        solution = torch.cholesky_solve(moment + pull, factor).transpose(1, 2).float()
        if remaining:
            predicted = x @ solution.transpose(1, 2)
            goal = torch.where(y <= 0, predicted.clamp(max=0), y)
    return solution
