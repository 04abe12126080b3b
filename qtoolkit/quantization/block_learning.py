"""``--effort best``: PTQ's network, its first blocks learned (``training.block_reconstruction``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import onnx

from qtoolkit.artifacts.files import sha256_bytes
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.data.calibration_set import CalibrationSet
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.graph.cuts import find_blocks
from qtoolkit.graph.layers import Structure
from qtoolkit.graph.load import network_input
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.qat import trained_grids
from qtoolkit.training.block_reconstruction import BlockOptions, reconstruct_blocks_
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.state_folder import StateFolder
from qtoolkit.training.threads import torch_threads

__all__ = ["learn_blocks"]

_FEWEST_LAYERS = 4


def learn_blocks(
    quantizer: Quantizer,
    plan: PrecisionPlan,
    head: Head | None,
    photos: CalibrationSet,
    folder: Path,
    options: BlockOptions | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> onnx.ModelProto:
    """The network of ``quantizer`` under ``plan`` with learned blocks; Q/DQ as PTQ writes it, PTQ's own where the
    network has no such block or does not take colour photos.

    A run that was stopped goes on in ``folder`` behind the last finished block. Raises as ``Quantizer.quantize`` and
    ``reconstruct_blocks_`` do, ModelFileError where torch cannot run the network.
    """
    chosen = quantizer.quantize(plan).plan.layers
    grids, image = quantizer.grids(chosen), network_input(quantizer.model)
    plain = quantizer.write(chosen, grids)
    ends = {tensor for tensor, bits in grids.placement.tensors if bits == 8}
    blocks = find_blocks(Structure.of(quantizer.model), ends, _FEWEST_LAYERS)
    if not blocks or image.shape[1] != 3:
        return plain
    options = options or BlockOptions()
    recipe = asdict(options) | {"network_sha256": sha256_bytes(plain.SerializeToString(deterministic=True))}
    with torch_threads(threads):
        pair = QuantizedPair.of(
            quantizer.model, head, grids.placement, grids.activations, grids.weights, quantizer.corrected_biases(grids)
        )
        state = StateFolder(folder, recipe, photos.sha256)
        reconstruct_blocks_(pair, blocks, photos.paths, image.input_size_wh, options, state, progress)
        return quantizer.write(chosen, trained_grids(pair, grids), pair.network())
