"""``qtool bench --device cuda``: networks become TensorRT engines of this machine's GPU before they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qtoolkit.cli.progress import StageProgress

__all__ = ["build_engines"]

_FIRST_STRONG_ONLY = 11


def build_engines(paths: Mapping[str, Path], folder: Path, progress: StageProgress) -> dict[str, Path]:
    """Name → engine in ``folder`` of each network (name → ONNX file), as ``qtool build`` makes them: weakly typed, or
    strongly where this TensorRT knows nothing else (from 11 on).

    Raises UnavailableError without a GPU or a library, ModelFileError for a network that TensorRT cannot use.
    """
    from qtoolkit.backends.nvidia_driver import find_gpu
    from qtoolkit.backends.tensorrt_library import load_tensorrt
    from qtoolkit.engine_build import BuildOptions, build

    # The driver first: the library may end the process without one.
    find_gpu()
    major = int(load_tensorrt("tensorrt").__version__.split(".")[0])
    target = "tensorrt-strong" if major >= _FIRST_STRONG_ONLY else "tensorrt"
    engines: dict[str, Path] = {}
    for place, (name, path) in enumerate(paths.items()):
        progress("building engines", place, len(paths))
        # Two networks may have one file name.
        options = BuildOptions(
            model=path, target=target, out=folder / f"engine{place}", timing_cache=folder / "timing.cache"
        )
        engines[name] = build(options).file
    progress("building engines", len(paths), len(paths))
    return engines
