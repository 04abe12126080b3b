"""Learn the weights and grids of a quantized network block by block, from photos without labels.

A block ends where the whole network hangs on one tensor (``graph.cuts``). Its layers are trained, everything before it
already quantized and fixed, until that tensor is what it is in the float network (BRECQ, arXiv 2102.05426, with the
gradients of ``fake_quantizer`` in place of a rounding sigmoid)::

    loss = Σ (ŷ − y)² / Σ y²           y the block's end in the float network, ŷ in the quantized one, on its grid

Crops of photos suffice, as everything up to there is local, and nothing is kept of a block's inputs: memory is that of
one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qtoolkit.errors import QtoolError
from qtoolkit.graph.cuts import Block
from qtoolkit.training.photo_crops import photo_crops
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.state_folder import StateFolder

__all__ = ["BlockOptions", "reconstruct_blocks_"]

_WARMUP, _FINAL = 0.1, 0.02


@dataclass(frozen=True)
class BlockOptions:
    """``steps`` of Adam for each block on ``batch`` crops of ``crop`` pixels, at the rate ``lr`` for weights and
    ``grid_lr`` for the logarithms of scales; ``seed`` of what is drawn."""

    steps: int = 150
    batch: int = 4
    crop: int = 320
    lr: float = 2e-4
    grid_lr: float = 1e-2
    seed: int = 0


def reconstruct_blocks_(
    pair: QuantizedPair,
    blocks: Sequence[Block],
    photos: Sequence[Path],
    size_wh: tuple[int, int],
    options: BlockOptions,
    state: StateFolder,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train the student of ``pair`` through ``blocks``, in order.

    ``state`` keeps what each finished block left, and a stopped run goes on behind it. ``progress`` is called with
    (steps taken, total). Raises QtoolError where a loss is no number, DataSetError for a photo that cannot be read.
    """
    first = 0
    if state.tuned is not None:
        pair.load_(state.tuned.tensors)
        first = int(state.tuned.facts["blocks"])
    parameters = pair.trained()
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for number in range(first, len(blocks)):
        weights, grids = _of_block(pair, blocks[number])
        random = np.random.default_rng([options.seed, number])
        optimizer = torch.optim.Adam([{"params": weights}, {"params": grids}])
        for step in range(options.steps):
            share = _rate_share(step, options.steps)
            for group, rate in zip(optimizer.param_groups, (options.lr, options.grid_lr), strict=True):
                group["lr"] = rate * share
            images = photo_crops(photos, size_wh, options.crop, options.batch, random)
            _take_step(pair, blocks[number].end, optimizer, images)
            progress(number * options.steps + step + 1, len(blocks) * options.steps)
        for parameter in (*weights, *grids):
            parameter.requires_grad_(False)
        state.save_tuned(dict(pair.tensors()), {"blocks": number + 1})


def _of_block(pair: QuantizedPair, block: Block) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Constants of the block's integer layers, and the scales of their weights and of the block's tensors."""
    layers = [pair.layers[name] for name in block.layers if name in pair.weights]
    constants = {name for layer in layers for name in (layer.weight, layer.bias) if name}
    quantizers = [pair.weights[layer.name] for layer in layers]
    quantizers += [each for (tensor, _), each in pair.activations.items() if tensor in block.tensors]
    weights = [each for name, each in pair.student.parameters_by_name().items() if name in constants]
    ratios = {id(each): each.log2_ratio for each in quantizers if isinstance(each.log2_ratio, nn.Parameter)}
    grids = [ratio for ratio in ratios.values() if isinstance(ratio, nn.Parameter)]
    for parameter in (*weights, *grids):
        parameter.requires_grad_(True)
    return weights, grids


def _take_step(pair: QuantizedPair, end: str, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    rounded = f"{end}/dequantized8"
    with torch.no_grad():
        wanted = pair.teacher(images, outputs=[end])[end]
    given = pair.student(images, outputs=[rounded])[rounded]
    loss = (given - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)
    if not math.isfinite(loss.item()):
        raise QtoolError(
            "the reconstruction of a block went astray",
            expected="a loss that is a number",
            found=f"{loss.item()} at {end}",
            do="quantize with --effort balanced",
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _rate_share(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(1.0, _WARMUP * steps))
    return warm * (_FINAL + (1 - _FINAL) * (1 + math.cos(math.pi * step / steps)) / 2)
