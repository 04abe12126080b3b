"""Corrections that learn, whichever are asked for: the first blocks of PTQ's network
(``training.block_reconstruction``), then the rounding of all its weights (``training.unit_reconstruction``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.artifacts.files import sha256_bytes
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.corrections import Correction
from qtoolkit.data.calibration_set import CalibrationSet
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.graph.cuts import Block, find_blocks
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.load import network_input
from qtoolkit.numerics.affine import dequantize
from qtoolkit.quantization.ptq import ChosenGrids, Quantizer
from qtoolkit.quantization.qat import trained_grids
from qtoolkit.training.block_reconstruction import BlockOptions, reconstruct_blocks_
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.state_folder import StateFolder
from qtoolkit.training.threads import torch_threads
from qtoolkit.training.unit_learning import RoundingOptions
from qtoolkit.training.unit_reconstruction import learn_rounding_

__all__ = ["LearningOptions", "learn_network"]

_FEWEST_LAYERS = 4


@dataclass(frozen=True)
class LearningOptions:
    """Options of each correction that learns."""

    blocks: BlockOptions = field(default_factory=BlockOptions)
    rounding: RoundingOptions = field(default_factory=RoundingOptions)


def learn_network(
    quantizer: Quantizer,
    plan: PrecisionPlan,
    head: Head | None,
    photos: CalibrationSet,
    corrections: Collection[Correction],
    folder: Path,
    options: LearningOptions | None = None,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] = lambda correction, done, total: None,
) -> onnx.ModelProto:
    """The network of ``quantizer`` under ``plan`` with those of ``corrections`` that learn; Q/DQ as PTQ writes it,
    PTQ's own where the network does not take colour photos. Only int8 layers are learned.

    A run that was stopped goes on in ``folder`` behind the last finished block or unit. ``progress`` is called with
    (correction, done, total). Raises as ``Quantizer.quantize``, ``reconstruct_blocks_`` and ``learn_rounding_`` do,
    ModelFileError where torch cannot run the network.
    """
    options = options or LearningOptions()
    chosen = quantizer.quantize(plan).plan.layers
    grids, image = quantizer.grids(chosen), network_input(quantizer.model)
    if image.shape[1] != 3:
        return quantizer.write(chosen, grids)
    with torch_threads(threads):
        pair = QuantizedPair.of(quantizer.model, head, grids.placement, grids.activations, grids.weights)
        corrected = _corrected_biases(pair, grids) if quantizer.means or quantizer.biases else {}
        plain_biases = pair.exchange_(corrected)
        learned = grids

        def state(correction: Correction, fields: dict[str, object]) -> StateFolder:
            begun = quantizer.write(chosen, learned, pair.network()).SerializeToString(deterministic=True)
            return StateFolder(folder / correction, fields | {"network_sha256": sha256_bytes(begun)}, photos.sha256)

        def steps(correction: Correction) -> Callable[[int, int], None]:
            return lambda done, total: progress(correction, done, total)

        if "blocks" in corrections and (blocks := _blocks(quantizer, grids)):
            reconstruct_blocks_(
                pair, blocks, photos.paths, image.input_size_wh, options.blocks,
                state("blocks", asdict(options.blocks)), steps("blocks"),
            )  # fmt: skip
            learned = trained_grids(pair, grids)
            plain_biases = {name: each for name, each in plain_biases.items() if not _is_of(blocks, pair, name)}
        if "rounding" in corrections:
            rounded = learn_rounding_(
                pair, grids.placement, photos.paths, image.input_size_wh, options.rounding,
                state("rounding", asdict(options.rounding)), plain_biases, steps("rounding"),
            )  # fmt: skip
            learned = trained_grids(pair, grids, {name: weight.numpy() for name, weight in rounded.items()})
        return quantizer.write(chosen, learned, pair.network())


def _blocks(quantizer: Quantizer, grids: ChosenGrids) -> tuple[Block, ...]:
    ends = {tensor for tensor, bits in grids.placement.tensors if bits == 8}
    return find_blocks(Structure.of(quantizer.model), ends, _FEWEST_LAYERS)


def _is_of(blocks: Collection[Block], pair: QuantizedPair, bias: str) -> bool:
    return any(pair.layers[name].bias == bias for block in blocks for name in block.layers if name in pair.layers)


def _corrected_biases(pair: QuantizedPair, grids: ChosenGrids) -> dict[str, NDArray[np.float32]]:
    """The biases of ``grids``, by constant; without those that several layers share."""
    shared = Counter(layer.bias for layer in pair.layers.values())
    return {
        bias: dequantize(weights.bias, weights.bias_params)
        for name, weights in grids.weights.items()
        if (bias := pair.layers[name].bias) is not None and shared[bias] == 1
        if weights.bias is not None and weights.bias_params is not None
    }
