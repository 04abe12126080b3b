"""Try each layer at another precision alone, without running again what stands before it.

For every layer the network is quantized in that one place and cut in front of the first node that changes. The part
behind the cut starts from tensors of the float network, which runs once per photo. Photos are taken in groups whose
tensors fit a memory budget; within a group the layers follow one another, one small session each. The parts wait on
disk: in memory they would hold the weights many times over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.throughput import map_in_order, worker_count
from qtoolkit.graph.subgraph import downstream_cut, extract
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.quantization.ptq import Quantizer

__all__ = ["LayerTrial", "prepare_trials", "run_trials", "with_outputs"]

Feeds = Mapping[str, NDArray[Any]]
Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class LayerTrial:
    """The part of the network that quantizing ``layer`` changes, an ONNX file; None where it changes nothing.

    ``inputs`` are tensors of the float network.
    """

    layer: str
    part: Path | None
    inputs: tuple[str, ...] = ()


def prepare_trials(
    quantizer: Quantizer, layers: Sequence[str], precision: Precision, folder: Path, threads: int | None = None
) -> tuple[LayerTrial, ...]:
    """One trial for each of ``layers``: that layer at ``precision``, the others in float. Writes into ``folder``."""
    original = {node_name(node): _wiring(node) for node in quantizer.model.graph.node}

    def prepare(numbered: tuple[int, str]) -> LayerTrial:
        index, layer = numbered
        changed = quantizer.quantize_only({layer: precision})
        nodes = changed.graph.node
        new = [name for node in nodes if original.get(name := node_name(node)) != _wiring(node)]
        if not new:
            return LayerTrial(layer, None)
        part = extract(changed, *downstream_cut(changed, new))
        path = folder / f"{index}.onnx"
        onnx.save(part, path)
        return LayerTrial(layer, path, tuple(value.name for value in part.graph.input))

    return tuple(map_in_order(prepare, enumerate(layers), worker_count(threads)))


def _wiring(node: onnx.NodeProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What tells a node that quantization changed: it reads or makes other tensors than before."""
    return tuple(node.input), tuple(node.output)


def run_trials(
    model: onnx.ModelProto,
    trials: Sequence[LayerTrial],
    feeds: Iterable[Feeds],
    judge: Callable[[int, str | None, Outputs], None],
    *,
    cache_bytes: int = 256 << 20,
    threads: int | None = None,
    integer_kernels: bool = True,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Run the float network once and every trial once on each photo; returns the number of photos.

    ``judge(photo, layer, outputs)`` receives the network's outputs: first with ``layer`` None, the float network's own,
    then one call per trial (outputs that a trial does not reach are the float ones); calls of different layers may come
    at the same time, from ``threads`` threads (None: one per core). ``progress`` is called with the
    number of trials run. ``integer_kernels``: see ``OnnxRuntimeCpu``. At most ``cache_bytes`` of float tensors are held
    at a time, and always those of one photo.
    """
    view = GraphView(model)
    cached = list(dict.fromkeys(name for trial in trials for name in trial.inputs if name not in view.inputs))
    held = dict.fromkeys((*view.inputs, *view.outputs, *cached))
    bytes_each = 4 * sum(prod(view.shape(name) or (1,)) for name in held)
    group_size = max(1, cache_bytes // max(bytes_each, 1))
    photos = 0
    workers = worker_count(threads)
    with OnnxRuntimeCpu(with_outputs(model, cached), threads=1, arena=False) as float_runner:
        for first, group in _groups(feeds, group_size):
            results = map_in_order(float_runner.infer, group, workers)
            tensors = [{**feed, **result} for feed, result in zip(group, results, strict=True)]
            for index, values in enumerate(tensors):
                judge(first + index, None, {name: values[name] for name in view.outputs})
            # A worker opens, runs and judges one trial after the other, so that nothing waits for the slowest step.
            trying = partial(
                _run_trial, tensors=tensors, outputs=view.outputs, first=first, judge=judge, integer=integer_kernels
            )
            for done, _ in enumerate(map_in_order(trying, trials, workers), start=1):
                if progress is not None:
                    progress(photos * len(trials) + done * len(tensors))
            photos += len(tensors)
    return photos


def _run_trial(
    trial: LayerTrial,
    tensors: Sequence[Feeds],
    outputs: Sequence[str],
    first: int,
    judge: Callable[[int, str | None, Outputs], None],
    integer: bool,
) -> None:
    """Run one trial on each photo's float ``tensors``, and have it judged with float outputs where it reaches none."""
    with contextlib.ExitStack() as opened:
        runner = (
            None
            if trial.part is None
            else opened.enter_context(OnnxRuntimeCpu(trial.part, threads=1, integer_kernels=integer))
        )
        for index, values in enumerate(tensors):
            reached = {} if runner is None else runner.infer({name: values[name] for name in trial.inputs})
            judge(first + index, trial.layer, {name: reached.get(name, values[name]) for name in outputs})


def _groups(feeds: Iterable[Feeds], size: int) -> Iterator[tuple[int, list[Feeds]]]:
    group: list[Feeds] = []
    first = 0
    for feed in feeds:
        group.append(feed)
        if len(group) == size:
            yield first, group
            first, group = first + size, []
    if group:
        yield first, group


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of ``model`` that returns ``tensors`` too."""
    view = GraphView(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in tensors:
        if name not in view.outputs:
            copy.graph.output.append(helper.make_tensor_value_info(name, view.elem_type(name), view.shape(name)))
    return copy
