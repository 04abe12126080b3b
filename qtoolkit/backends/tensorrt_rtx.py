"""TensorRT-RTX: engines for GeForce and RTX cards, built ahead of time on any processor, run on such a card only."""

from __future__ import annotations

from typing import ClassVar

from qtoolkit.backends.tensorrt_gpu import TensorRtGpu
from qtoolkit.backends.tensorrt_library import TensorRtName, load_tensorrt

__all__ = ["TensorRtRtx", "rtx_capabilities"]


class TensorRtRtx(TensorRtGpu):
    """An engine of TensorRT-RTX on the first GPU; otherwise as ``TensorRtGpu``.

    What a build ahead of time leaves open, TensorRT-RTX compiles when the engine is opened.
    """

    name = "tensorrt-rtx"
    library: ClassVar[TensorRtName] = "tensorrt_rtx"


def rtx_capabilities() -> tuple[str, ...]:
    """The compute capabilities that the installed TensorRT-RTX can build for, such as ``8.6``."""
    kinds = load_tensorrt("tensorrt_rtx").ComputeCapability
    numbers = sorted(int(name[2:]) for name in dir(kinds) if name.startswith("SM") and name[2:].isdigit())
    return tuple(f"{number // 10}.{number % 10}" for number in numbers)
