"""The networks that ``qtool bench`` measures: their names, and copies of a fixed size or batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qtoolkit.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from qtoolkit.bench.cost import Cost

__all__ = ["PHOTOS", "BenchNetwork", "at_batch", "network_names", "open_networks", "write_photos"]

PHOTOS = 8
"""Photos of a data set that are fed."""


@dataclass(frozen=True, eq=False)
class BenchNetwork:
    """A file to measure, which may be a copy with a fixed input, under the name the user knows it by.

    None: an engine whose record does not tell it.
    """

    path: Path
    gmacs: float | None
    input_shapes: Mapping[str, tuple[int, ...]] | None


def open_networks(
    models: Sequence[Path], input_size_wh: tuple[int, int] | None, folder: Path
) -> dict[str, BenchNetwork]:
    """Name → network or engine; copies of networks with a fixed input are written into ``folder``."""
    named = zip(network_names(models), models, strict=True)
    return {name: _opened(path, input_size_wh, folder / f"{place}.onnx") for place, (name, path) in enumerate(named)}


def at_batch(paths: Mapping[str, Path], batch: int, folder: Path, threads: int | None) -> dict[str, Path]:
    """Copies of the networks in ``folder`` that take ``batch`` images at once, checked against single images."""
    from qtoolkit.artifacts.files import write_bytes
    from qtoolkit.bench.batching import checked_batch
    from qtoolkit.graph.load import load_network

    copies: dict[str, Path] = {}
    for place, (name, path) in enumerate(paths.items()):
        model = checked_batch(load_network(path, allow_quantized=True), batch, threads=threads)
        copies[name] = folder / f"{place}.batch.onnx"
        write_bytes(copies[name], model.SerializeToString(deterministic=True))
    return copies


def network_names(paths: Sequence[Path]) -> list[str]:
    """File names, whole paths where two files share one, and a number where one file is given twice."""
    file_names = [path.name for path in paths]
    names = [path.name if file_names.count(path.name) == paths.count(path) else str(path) for path in paths]
    return [
        f"{name} #{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def _opened(path: Path, input_size_wh: tuple[int, int] | None, copy: Path) -> BenchNetwork:
    from qtoolkit.artifacts.files import write_bytes
    from qtoolkit.backends.engine_file import check_engine_size, is_engine, read_engine
    from qtoolkit.bench.cost import network_cost
    from qtoolkit.evaluation.evaluate import runnable_network
    from qtoolkit.graph.load import load_network
    from qtoolkit.graph.read import read_model

    if is_engine(path):
        check_engine_size(path, input_size_wh)
        record = read_engine(path)[1]
        return BenchNetwork(path, record.gmacs, record.input_shapes)
    network = runnable_network(path, input_size_wh)
    if not isinstance(network, Path):
        write_bytes(copy, network.SerializeToString(deterministic=True))
        return _counted(copy, network_cost(network))
    try:
        return _counted(path, network_cost(read_model(path)))
    except ModelFileError:
        # Shapes that only folding its constants tells.
        return _counted(path, network_cost(load_network(path, allow_quantized=True)))


def _counted(path: Path, cost: Cost) -> BenchNetwork:
    return BenchNetwork(path, cost.gmacs, cost.input_shapes)


def write_photos(data: Path, networks: Mapping[str, BenchNetwork], path: Path) -> tuple[list[Path], Path]:
    """The photos, and ``path`` written: letterboxed as one array (M, 3, H, W) float32, for networks of one size."""
    import numpy as np

    from qtoolkit.data.sources import open_data_source
    from qtoolkit.graph.load import NetworkInput
    from qtoolkit.quantization.feeds import image_feeds

    unknown = [name for name, network in networks.items() if network.input_shapes is None]
    if unknown:
        raise UsageError(
            "photos cannot be fed to an engine whose record does not tell its input",
            expected="engines of this release",
            found=", ".join(unknown),
            do="build it again with `qtool build`, or leave --data out",
        )
    shapes = {shape for network in networks.values() for shape in (network.input_shapes or {}).values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 4:
        raise UsageError(
            "the same photos cannot be fed to these networks",
            expected="networks with one image input (1, 3, H, W) each, all of one size",
            found=", ".join(sorted(str(each) for each in shapes)),
            do="measure them one at a time, give --input-size, or leave --data out",
        )
    samples = open_data_source(data).evaluation_samples(PHOTOS)
    network_input = NetworkInput("images", (shape[0], shape[1], shape[2], shape[3]))
    photos = [sample.path for sample in samples]
    tensors = [feed["images"] for feed in image_feeds(photos, network_input)]
    with path.open("wb") as stream:
        np.save(stream, np.concatenate(tensors))
    return photos, path
