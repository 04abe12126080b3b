"""Networks at a batch of N, checked to give for N images what they give for each alone."""

from __future__ import annotations

import numpy as np
import onnx

from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.errors import ModelFileError
from qtoolkit.graph.batch import with_batch
from qtoolkit.graph.shapes import network_input

__all__ = ["checked_batch"]

# Other kernels may be taken at another batch, and an 8-bit value may then round the other way; but an image must not
# come near to being taken for another.
_TOLERANCE = 0.1


def checked_batch(model: onnx.ModelProto, batch: int, *, threads: int | None = None) -> onnx.ModelProto:
    """``with_batch``, and a run on ``batch`` different images of noise beside runs on each of them.

    Raises ModelFileError where the shapes do not fit at that batch, or an output differs by more than a tenth of what
    lies between one image and the next (RMS).
    """
    if batch == 1:
        return model
    widened = with_batch(model, batch)
    image = network_input(model)
    brightness = np.linspace(0.1, 1.0, batch, dtype=np.float32).reshape(-1, 1, 1, 1)
    images = brightness * np.random.default_rng(0).random((batch, *image.shape[1:]), dtype=np.float32)
    with OnnxRuntimeCpu(model, threads=threads) as runner:
        alone = [runner.infer({image.name: images[place : place + 1]}) for place in range(batch)]
    try:
        with OnnxRuntimeCpu(widened, threads=threads) as runner:
            together = runner.infer({image.name: images})
    except ModelFileError as error:
        raise _differs(batch, widened.graph.output[0].name, error.found or error.what) from error
    for name, found in together.items():
        if found.ndim == 0 or found.shape[0] != batch:
            raise _differs(batch, name, f"shape {found.shape}")
        expected = np.concatenate([outputs[name] for outputs in alone]).astype(np.float64)
        between = np.sqrt(np.mean((expected - np.roll(expected, 1, axis=0)) ** 2))
        off = np.sqrt(np.mean((found - expected) ** 2))
        if off > _TOLERANCE * between:
            raise _differs(batch, name, f"{off:.3g} off (RMS), while one image differs from the next by {between:.3g}")
    return widened


def _differs(batch: int, name: str, found: str) -> ModelFileError:
    return ModelFileError(
        f"the network cannot be run at batch {batch}",
        expected=f"output {name!r} of each image as it is alone",
        found=found,
        do="export it for that batch, or leave --batch out",
    )
