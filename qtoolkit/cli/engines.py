"""Engines in ``qtool bench`` and ``qtool eval``: those that ``qtool build`` wrote, and those built on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from qtoolkit.cli.progress import StageProgress
from qtoolkit.errors import UsageError

if TYPE_CHECKING:
    from qtoolkit.backends.nvidia_driver import Gpu

__all__ = ["build_engines", "check_engine_call", "engine_runtime", "gpu_for"]

_FIRST_STRONG_ONLY = 11


def check_engine_call(models: Sequence[Path], context: click.Context, refused: Sequence[str] = ()) -> bool:
    """Whether there is an engine among ``models``. Raises UsageError where the command line asks for what it cannot do:
    another device than the GPU, networks beside it without ``--device cuda``, or the options ``refused``.
    """
    from qtoolkit.backends.engine_file import is_engine

    engines = [path for path in models if is_engine(path)]
    if not engines:
        return False
    names = {each.name: each.opts[0] for each in context.command.params}
    given = [name for name in refused if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    device = str(context.params["device"])
    is_default = context.get_parameter_source("device") is ParameterSource.DEFAULT
    if given or not (device == "cuda" or is_default):
        found = [f"--device {device}"] if device != "cuda" and not is_default else []
        raise UsageError(
            f"{engines[0].name} is an engine, which runs on this machine's GPU with its own library",
            expected="--device cuda, or none",
            found=" ".join([*found, *(names[name] for name in given)]),
            do="leave that out, or give the ONNX network in place of the engine",
        )
    if is_default and len(engines) < len(models):
        raise UsageError(
            "networks and engines are not measured on the same device by themselves",
            expected="engines alone, or --device cuda, which builds engines of the networks",
            found=", ".join(path.name for path in models),
            do="give --device cuda",
        )
    return True


def engine_runtime(models: Sequence[Path]) -> str:
    """The backend that measures ``models`` on the GPU: that of the engines among them, tensorrt where there is none.

    Raises ModelFileError for an engine without a fitting record, UsageError for engines of two libraries.
    """
    from qtoolkit.backends.engine_file import engine_backend, is_engine, read_engine

    backends = {path: engine_backend(read_engine(path)[1]) if is_engine(path) else "tensorrt" for path in models}
    if len(set(backends.values())) > 1:
        raise UsageError(
            "one run has one runtime",
            expected="engines of one library; networks count as tensorrt",
            found=", ".join(f"{path.name}: {name}" for path, name in backends.items()),
            do="measure them one after the other",
        )
    return next(iter(backends.values()))


def gpu_for(device: str) -> Gpu | None:
    """This machine's GPU for cuda, None for cpu.

    Raises UsageError for another device, UnavailableError without a GPU.
    """
    if device == "cuda":
        from qtoolkit.backends.nvidia_driver import find_gpu

        return find_gpu()
    if device != "cpu":
        raise UsageError(
            "the device is not known",
            expected="cpu, cuda, ssh://user@host, or jetson or jetson-NAME for a modelled latency",
            found=repr(device),
            do="choose a device with --device",
        )
    return None


def build_engines(paths: Mapping[str, Path], folder: Path, gpu: Gpu, progress: StageProgress) -> dict[str, Path]:
    """Name → engine of each file (name → path): an engine itself, of an ONNX network one in ``folder`` for ``gpu``, as
    ``qtool build`` makes it: weakly typed, or strongly where this TensorRT knows nothing else (from 11 on).

    Raises UnavailableError without the library, ModelFileError for a network that TensorRT cannot use.
    """
    from qtoolkit.backends.engine_file import is_engine
    from qtoolkit.backends.tensorrt_library import load_tensorrt
    from qtoolkit.engine_build import BuildOptions, build

    engines = dict(paths)
    networks = {name: path for name, path in paths.items() if not is_engine(path)}
    if not networks:
        return engines
    major = int(load_tensorrt("tensorrt").__version__.split(".")[0])
    target = "tensorrt-strong" if major >= _FIRST_STRONG_ONLY else "tensorrt"
    for place, (name, path) in enumerate(networks.items()):
        progress("building engines", place, len(networks))
        # Two networks may have one file name.
        options = BuildOptions(
            model=path, target=target, out=folder / f"engine{place}", timing_cache=folder / "timing.cache"
        )
        engines[name] = build(options, gpu=gpu).file
    progress("building engines", len(networks), len(networks))
    return engines
