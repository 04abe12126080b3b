"""The correction ``output-ranges``: ranges by the error they cause at the outputs, not in their own tensor.

Tensors are taken one group at a time: those that share a range, and the two around a SiLU. The network measured is the
float one with that group alone on its grids, not the whole 8-bit one: there every change of a scale throws the rounding
of all that follows anew, and the outputs move by more than one range is worth. Alone, the group's own error is seen;
errors of different groups hardly correlate, so they add up. It also holds under any plan. Whether it adds up is
then tried on the whole 8-bit network; where its outputs come no nearer, the ranges are left as they were.

Photos are split in three: ranges are chosen on one part, each must lower the error on the second too, and the whole
network is tried on the third. Scales and zero points are inputs of the measuring network, so one session serves
all ranges of a group, and only what lies behind the group is run, from tensors of the float network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.throughput import map_in_order, worker_count
from qtoolkit.errors import DataSetError
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.graph.layers import Structure, last_layers
from qtoolkit.graph.placement import Placement
from qtoolkit.graph.qdq import insert_qdq
from qtoolkit.graph.subgraph import downstream_cut, extract
from qtoolkit.numerics.affine import IntegerGrid, QuantParams
from qtoolkit.quantization.output_error import OutputError
from qtoolkit.quantization.ptq import ChosenGrids, Quantizer
from qtoolkit.quantization.range_groups import Range, RangeGroup, range_groups, stretched
from qtoolkit.quantization.trials import with_outputs

__all__ = ["PARTS", "output_ranges"]

PARTS = 3
"""Photos to choose on, to confirm on, and to try the whole network on; photo i belongs to part i modulo this."""

_FACTORS, _OCTAVE = (0.85, 1.0 / 0.85), (0.5, 2.0)
_MORE_STEPS = 8
# A gain on the first photos that is smaller than this is within what other photos would say.
_LEAST_GAIN = 0.02
# Share of the whole network's noise below which a group cannot win what would be seen.
_LEAST_SHARE = 0.003
_CACHE_BYTES = 256 << 20

Feeds = Mapping[str, NDArray[Any]]
Errors = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Photo:
    """One photo: its part, what it is compared with, and the float network's tensors that the groups start from."""

    part: int
    judge: OutputError
    tensors: dict[str, NDArray[Any]]


def output_ranges(
    quantizer: Quantizer,
    precisions: Mapping[str, Precision],
    head: Head | None,
    feeds: Iterable[Feeds],
    *,
    threads: int | None = None,
    integer_kernels: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[str, int], Range]:
    """(Tensor, 8) → range, of those that ``quantizer`` should take in place of its own; empty where that is no gain.

    ``precisions`` is the plan in question, as a rule all layers at int8. ``integer_kernels`` as in ``OnnxRuntimeCpu``.
    ``progress`` is called with groups done and their number. Raises DataSetError where there are fewer photos than
    parts.
    """
    photos = list(feeds)
    if len(photos) < PARTS:
        raise DataSetError(
            "there are too few photos to choose ranges on",
            expected=f"at least {PARTS}: to choose on, to confirm on, to try the whole network on",
            found=str(len(photos)),
            do="calibrate on more photos, or leave output-ranges out of --corrections",
        )
    grids = quantizer.grids(precisions)
    judge = _Judge(quantizer, head, photos, integer_kernels, worker_count(threads))
    noise = judge.of_network(quantizer.write(precisions, grids), 0)
    groups = range_groups(Structure.of(quantizer.model), grids.placement, quantizer.range_of)
    found: dict[tuple[str, int], Range] = {}
    done = 0
    for segment, cached in _segments(quantizer, grids, groups, len(photos)):
        loaded = judge.with_tensors(cached)
        search = partial(_searched, photos=loaded, noise=noise, quantizer=quantizer)
        for better in map_in_order(search, segment, worker_count(threads)):
            found |= better
            done += 1
            progress(done, len(groups))
    if not found:
        return {}
    changed = quantizer.with_ranges(found)
    after = judge.of_network(changed.write(precisions, changed.grids(precisions)), 2)
    before = judge.of_network(quantizer.write(precisions, grids), 2)
    return found if _relative(after, before) < 1.0 else {}


class _Judge:
    """The float network on every photo, and whole quantized networks against it."""

    def __init__(
        self, quantizer: Quantizer, head: Head | None, photos: Sequence[Feeds], integer_kernels: bool, workers: int
    ) -> None:
        self._model, self._head, self._photos = quantizer.model, head, photos
        self._integer_kernels, self._workers = integer_kernels, workers
        self.ends: tuple[str, ...] = ()
        if not OutputError.reads_rows(head):
            layers = Structure.of(quantizer.model).layers
            self.ends = tuple(layers[name].output for name in last_layers(quantizer.model))
        self._references = self._run(self._model, photos, self.ends, integer_kernels)
        self._judges = [OutputError(head, self._judged(values)) for values in self._references]

    def of_network(self, model: onnx.ModelProto, part: int) -> Errors:
        """Errors of a network's outputs by block, summed over the photos of one part."""
        chosen = [index for index in range(len(self._photos)) if index % PARTS == part]
        outputs = self._run(model, [self._photos[i] for i in chosen], self.ends, self._integer_kernels)
        pairs = zip(chosen, outputs, strict=True)
        errors = np.array([self._judges[i].errors(self._judged(found)) for i, found in pairs], np.float64)
        return np.asarray(errors.sum(axis=0), np.float64)

    def with_tensors(self, tensors: Sequence[str]) -> list[_Photo]:
        """The photos that ranges are chosen and confirmed on, with tensors of the float network."""
        chosen = [index for index in range(len(self._photos)) if index % PARTS < 2]
        found = self._run(self._model, [self._photos[i] for i in chosen], tensors, self._integer_kernels)
        return [
            _Photo(i % PARTS, self._judges[i], {**self._photos[i], **values})
            for i, values in zip(chosen, found, strict=True)
        ]

    def _judged(self, values: Feeds) -> dict[str, NDArray[Any]]:
        names = self.ends or tuple(output.name for output in self._model.graph.output)
        return {name: values[name] for name in names}

    def _run(
        self, model: onnx.ModelProto, photos: Sequence[Feeds], more: Sequence[str], integer_kernels: bool
    ) -> list[dict[str, NDArray[Any]]]:
        with OnnxRuntimeCpu(
            with_outputs(model, more), threads=1, arena=False, integer_kernels=integer_kernels
        ) as runner:
            return [dict(found) for found in map_in_order(runner.infer, photos, self._workers)]


@dataclass(frozen=True, eq=False)
class _Part:
    """What lies behind one group: a network whose scales and zero points are inputs."""

    group: RangeGroup
    network: onnx.ModelProto
    inputs: tuple[str, ...]


def _segments(
    quantizer: Quantizer, grids: ChosenGrids, groups: Sequence[RangeGroup], photos: int
) -> Iterator[tuple[list[_Part], list[str]]]:
    """Groups in graph order, as many at a time as have float tensors that fit the memory, and those tensors."""
    view = Structure.of(quantizer.model).view
    parts: list[_Part] = []
    tensors: dict[str, int] = {}
    for group in groups:
        part = _part(quantizer, grids, group)
        new = {n: 4 * prod(view.shape(n) or (1,)) for n in part.inputs if n not in view.inputs and n not in tensors}
        if parts and photos * (sum(tensors.values()) + sum(new.values())) > _CACHE_BYTES:
            yield parts, list(tensors)
            parts, tensors = [], {}
            new = {n: 4 * prod(view.shape(n) or (1,)) for n in part.inputs if n not in view.inputs}
        parts.append(part)
        tensors |= new
    if parts:
        yield parts, list(tensors)


def _part(quantizer: Quantizer, grids: ChosenGrids, group: RangeGroup) -> _Part:
    alone = Placement({key: grids.placement.tensors[key] for key in group.pairs}, {})
    changed = insert_qdq(quantizer.model, alone, grids.activations, {})
    cut = downstream_cut(changed, [f"{tensor}/QuantizeLinear{bits}" for tensor, bits in group.pairs])
    outputs = cut.outputs
    constants = [name for key in group.pairs for name in _grid_names(key)]
    return _Part(group, extract(changed, [*cut.inputs, *constants], outputs), cut.inputs)


def _grid_names(key: tuple[str, int]) -> tuple[str, str]:
    name = f"{key[0]}/quantized{key[1]}"
    return f"{name}/scale", f"{name}/zero_point"


def _searched(
    part: _Part, photos: Sequence[_Photo], noise: Errors, quantizer: Quantizer
) -> dict[tuple[str, int], Range]:
    """Better ranges of one group, or none."""
    with OnnxRuntimeCpu(part.network, threads=1) as runner:

        def loss(ranges: Mapping[str, Range], which: int) -> float:
            scales = _grid_feeds(part.group, ranges, quantizer)
            errors = np.zeros(noise.shape)
            for photo in photos:
                if photo.part == which:
                    values = {name: photo.tensors[name] for name in part.inputs}
                    errors += photo.judge.errors(runner.infer({**values, **scales}))
            return _relative(errors, noise)

        start = dict(part.group.ranges)
        grid = quantizer.activation_grid(part.group.sources[0], 8)
        before = loss(start, 0)
        if before < _LEAST_SHARE:
            return {}
        best, least = _line_search(start, before, partial(loss, which=0), grid)
        if least >= (1.0 - _LEAST_GAIN) * before or loss(best, 1) >= loss(start, 1):
            return {}
    return {(tensor, 8): chosen for tensor, chosen in best.items()}


def _line_search(
    start: dict[str, Range], error: float, loss: Callable[[Mapping[str, Range]], float], grid: IntegerGrid
) -> tuple[dict[str, Range], float]:
    """All ranges wider or narrower, then one at a time; and on in the best direction while that helps."""
    everything = tuple(start)
    moves = [everything] if len(everything) == 1 else [everything, *((each,) for each in everything)]
    factors = _OCTAVE if grid.power_of_two else _FACTORS
    best, least, moved, factor = start, error, everything, 1.0
    for each in moves:
        for step in factors:
            tried = _moved(start, each, step, grid)
            found = loss(tried)
            if found < least:
                best, least, moved, factor = tried, found, each, step
            if found < error:
                break
    for _ in range(_MORE_STEPS if factor != 1.0 else 0):
        tried = _moved(best, moved, factor, grid)
        if (found := loss(tried)) >= least:
            break
        best, least = tried, found
    return best, least


def _relative(errors: Errors, noise: Errors) -> float:
    """Mean over the blocks of error / noise."""
    return float(np.mean(errors / np.maximum(noise, 1e-30)))


def _moved(ranges: Mapping[str, Range], moved: Sequence[str], factor: float, grid: IntegerGrid) -> dict[str, Range]:
    return {**ranges, **{name: stretched(ranges[name], factor, grid) for name in moved}}


def _grid_feeds(group: RangeGroup, ranges: Mapping[str, Range], quantizer: Quantizer) -> dict[str, NDArray[Any]]:
    feeds: dict[str, NDArray[Any]] = {}
    changed = {(name, 8): value for name, value in ranges.items()}
    for key, source in zip(group.pairs, group.sources_of_pairs, strict=True):
        params: QuantParams = quantizer.activation_params(source, 8, changed)
        scale, zero_point = _grid_names(key)
        feeds |= {scale: params.scale, zero_point: params.zero_point}
    return feeds
