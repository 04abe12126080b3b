"""How much an error in each channel of an inner tensor counts for the network's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from qtoolkit.training.quantized_pair import QuantizedPair

__all__ = ["channel_weights"]


def channel_weights(pair: QuantizedPair, images: Tensor, tensors: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Tensor of the float network → E[g²], one weight for each channel, in a shape that broadcasts against it.

    g is the gradient of the outputs of the last layers, each place with a random sign, √ of its weight in
    ``Distillation.place_weights``, and over the output's root mean square: the diagonal of the Fisher information of
    BRECQ (arXiv 2102.05426, equation 10), averaged over places and ``images`` (N, 3, H, W). Tensors of other
    than four axes get one weight.
    """
    random = np.random.default_rng([seed, 1])
    sums: dict[str, Tensor] = {}
    for number in range(len(images)):
        found = pair.teacher(images[number : number + 1].clone().requires_grad_(), capture=tensors)
        outputs = {name: found[name] for name in pair.teacher.outputs}
        slopes = _signed(pair, outputs, random)
        kept = [name for name in tensors if found[name].requires_grad]
        gradients = torch.autograd.grad(
            list(outputs.values()), [found[name] for name in kept], slopes, allow_unused=True
        )
        for name, gradient in zip(kept, gradients, strict=True):
            # None where no output depends on the tensor, whatever the stub says.
            if cast("Tensor | None", gradient) is None:
                continue
            axes = (0, 2, 3) if gradient.dim() == 4 else tuple(range(gradient.dim()))
            sums[name] = sums.get(name, torch.zeros(())) + gradient.square().mean(axes, keepdim=True)
    return {name: total / len(images) for name, total in sums.items()}


def _signed(pair: QuantizedPair, outputs: dict[str, Tensor], random: np.random.Generator) -> list[Tensor]:
    values = {name: output.detach() for name, output in outputs.items()}
    weights = pair.loss.place_weights(values)
    slopes = []
    for output in values.values():
        weight = weights.get(tuple(output.shape[2:]), torch.full((), 1.0 / max(1, output[0, 0].numel())))
        signs = torch.from_numpy(random.choice(np.array([-1.0, 1.0], np.float32), tuple(output.shape)))
        spread = (weight * output.square()).sum().clamp(min=1e-12).sqrt()
        slopes.append(signs * weight.sqrt() / spread)
    return slopes
