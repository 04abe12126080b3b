"""Every variant of a finished run as a TensorRT engine on this machine's GPU: AP, latency, and plain calls beside it.

The yardstick is TensorRT called as its own samples do, with an engine built from the same ONNX by the same library and
no code of qtoolkit in between: one context, one stream, copies in and out. Both builds read and write one cache of
timings, so that they choose among the same kernels. The result is the run's scorecard with the engines' own AP and
latency; the ratio to the yardstick stands in the conditions of each latency, and so does the time of the GPU's work
alone, without copies. Stopped and given again it goes on behind the last variant. Needs a GPU.

usage: python benchmarks/tensorrt_plain.py RUN --data DATA [--target tensorrt-strong] [--out FILE.json]
       RUN is the folder of `qtool quantize MODEL --data DATA --mixed 0.3 --target tensorrt-strong`
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qtoolkit.artifacts.scorecard import LatencyFigures, Scorecard, ScorecardRow
from qtoolkit.backends.cuda_memory import Cuda, open_cuda
from qtoolkit.backends.nvidia_driver import find_gpu
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.backends.tensorrt_gpu import TensorRtGpu
from qtoolkit.backends.tensorrt_library import load_tensorrt
from qtoolkit.backends.tensorrt_messages import message_recorder
from qtoolkit.data.samples import Samples
from qtoolkit.data.sources import open_data_source
from qtoolkit.engine_build import BuildOptions, BuildResult, build
from qtoolkit.evaluation.coco_ap import coco_keypoint_ap
from qtoolkit.evaluation.pose_network import PoseNetwork, predict_set
from qtoolkit.graph.load import network_input
from qtoolkit.graph.strongly_typed import strongly_typed
from qtoolkit.numerics.similarity import sqnr_db
from qtoolkit.quantization.feeds import image_feeds

WARM_UP = 50
LARGEST_DB = 200.0
"""Of equal outputs, whose ratio to their noise is infinite: JSON has no such number."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", default="tensorrt-strong", choices=["tensorrt", "tensorrt-strong"])
    parser.add_argument("--out", type=Path, default=Path("reports/baselines/tensorrt.json"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--runs", type=int, default=500)
    options = parser.parse_args()
    gpu = find_gpu()
    samples = open_data_source(options.data).evaluation_samples(options.images)
    measure(options.run, samples, options.target, options.runs, options.out, gpu.name)
    print(f"wrote {options.out}")


def measure(run: Path, samples: Samples, target: str, runs: int, out: Path, gpu: str) -> Scorecard:
    """The scorecard of ``run`` with AP and latency of the engines, which are kept in ``run/engines``.

    It is written to ``out`` after every variant; what stands there of the same networks, library, GPU (its name) and
    counts is taken over.
    """
    card = Scorecard.read(run / "scorecard.json")
    notes = (*card.notes, f"AP and latency of engines built for {target}; the ranking and the plan are the run's own")
    wanted = {"version": load_tensorrt("tensorrt").__version__, "device": gpu, "target": target}
    counts = {"count": runs, "images": len(samples)}
    before = Scorecard.read(out).rows if out.exists() else ()
    cache, rows = run / "engines" / "timing.cache", list[ScorecardRow]()
    for row in card.rows:
        measured = next((each for each in before if _is_of(each, row, wanted, counts)), None)
        if measured is None:
            path = run / row.file
            built = build(BuildOptions(model=path, target=target, out=cache.parent, timing_cache=cache))
            reference = rows[0].latency.p50_ms if rows and rows[0].latency else None
            measured = measured_row(row, path, built, samples, runs, reference, cache)
        rows.append(measured)
        latency = measured.latency
        print(row.variant, "AP", measured.ap, "simulated", row.ap, latency and (latency.p50_ms, latency.conditions))
        card = card.model_copy(update={"target": target, "rows": tuple(rows), "notes": notes})
        card.write(out)
    return card


def _is_of(measured: ScorecardRow, row: ScorecardRow, wanted: Mapping[str, str], counts: Mapping[str, int]) -> bool:
    latency = measured.latency
    return (
        (measured.variant, measured.sha256) == (row.variant, row.sha256)
        and latency is not None
        and all(getattr(latency, name) == value for name, value in wanted.items())
        and all(latency.conditions.get(name) == value for name, value in counts.items())
    )


def measured_row(
    row: ScorecardRow, path: Path, built: BuildResult, samples: Samples, runs: int, reference_ms: float | None,
    cache: Path | None = None,
) -> ScorecardRow:  # fmt: skip
    """One variant: AP of its engine, its latency in turns with the yardstick's, its nearness to ONNX Runtime."""
    with TensorRtGpu(built.file) as runner:
        poses = PoseNetwork.from_runner(runner)
        people, _ = predict_set(poses, samples)
        feeds = next(iter(image_feeds([next(iter(samples)).path], network_input(onnx.load(path)))))
        conditions = dict(runner.conditions())
        conditions |= {"parity_db": round(min(nearness(path, runner, feeds), LARGEST_DB), 1)}
        plain = PlainEngine(plan_of_plain_build(path, built.target, cache), feeds)
        bare = PlainEngine(built.file.read_bytes(), feeds)
        bare.infer()
        ours, theirs, compute, plain_compute = in_turns(
            [lambda: runner.infer(feeds), plain.infer, bare.compute, plain.compute], runs
        )
        bare.close()
        plain.close()
    percentiles = np.percentile(ours, [50, 90, 99])
    plain_ms = float(np.median(theirs))
    conditions |= {
        "batch": 1, "warm_up_count": WARM_UP, "count": runs, "images": len(samples), "copies": "in and out",
        "plain_p50_ms": plain_ms,
        "compute_p50_ms": float(np.median(compute)), "plain_compute_p50_ms": float(np.median(plain_compute)),
        "over_plain": round(float(percentiles[0]) / plain_ms, 4), "int8_layers": built.int8_layers,
        "not_int8": dict(built.not_int8),
    }  # fmt: skip
    latency = LatencyFigures(
        target=built.target, measured=True, device=str(conditions["provider"]), runtime="tensorrt",
        version=built.version, p50_ms=percentiles[0], p90_ms=percentiles[1], p99_ms=percentiles[2],
        images_per_second=1e3 / float(ours.mean()),
        ratio=1.0 if reference_ms is None else float(percentiles[0]) / reference_ms, conditions=conditions,
    )  # fmt: skip
    update: dict[str, Any] = {"latency": latency, "accuracy_on": f"tensorrt {built.version}", "retention": None}
    if samples.annotations is not None:
        metrics = coco_keypoint_ap(samples.annotations.ground_truth(people), people, people)
        update |= {name: getattr(metrics, name) for name in ("ap", "ap50", "ap75", "ap_m", "ap_l", "ar")}
    return row.model_copy(update=update)


def nearness(path: Path, runner: TensorRtGpu, feeds: Mapping[str, Any]) -> float:
    """SQNR in dB of the engine against ONNX Runtime on the same ONNX, lowest of the outputs."""
    with OnnxRuntimeCpu(path, integer_kernels=False) as other:
        expected, found = other.infer(feeds), runner.infer(feeds)
    return min(sqnr_db(expected[name], found[name]) for name in expected)


def in_turns(calls: Sequence[Callable[[], Any]], runs: int, block: int = 10) -> list[np.ndarray[Any, Any]]:
    """Milliseconds of each call, ``runs`` each, in turns of ``block``, after a warm-up of each."""
    for call in calls:
        for _ in range(WARM_UP):
            call()
    times: list[list[float]] = [[] for _ in calls]
    while len(times[-1]) < runs:
        for position, call in enumerate(calls):
            for _ in range(block):
                started = time.perf_counter_ns()
                call()
                times[position].append((time.perf_counter_ns() - started) / 1e6)
    return [np.array(each[:runs]) for each in times]


def plan_of_plain_build(path: Path, target: str, cache: Path | None = None) -> bytes:
    """An engine by the fewest calls: parse, flags, build; with the timings in ``cache``, where there are some."""
    trt = load_tensorrt("tensorrt")
    row = find_target(target)
    builder = trt.Builder(message_recorder(trt))
    kinds, flags = trt.NetworkDefinitionCreationFlag, 0
    if hasattr(kinds, "EXPLICIT_BATCH"):
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    if row.strongly_typed:
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, message_recorder(trt))
    model = onnx.load(path)
    if row.strongly_typed and row.opsets:
        model = strongly_typed(model, opset=row.opsets[0])
    if not parser.parse(model.SerializeToString()):
        raise SystemExit(f"the yardstick cannot parse {path}: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    operators = {node.op_type for node in model.graph.node}
    if not row.strongly_typed and operators & {"DequantizeLinear", "Cast"}:
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.INT8)
    if cache is not None:
        config.set_timing_cache(config.create_timing_cache(cache.read_bytes()), ignore_mismatch=False)
    return bytes(builder.build_serialized_network(network, config))


class PlainEngine:
    """One context, one stream, fixed buffers: what NVIDIA's samples do."""

    def __init__(self, plan: bytes, feeds: Mapping[str, np.ndarray[Any, Any]]) -> None:
        trt = load_tensorrt("tensorrt")
        self._cuda: Cuda = open_cuda()
        with self._cuda.current():
            self._engine = trt.Runtime(message_recorder(trt)).deserialize_cuda_engine(plan)
            self._context = self._engine.create_execution_context()
            self._stream = self._cuda.stream()
            names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
            self._inputs = {name: np.ascontiguousarray(feeds[name]) for name in names if name in feeds}
            shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in names if name not in feeds}
            self._outputs = {name: self._cuda.pinned(shape, np.float32) for name, shape in shapes.items()}
            arrays = {**self._inputs, **self._outputs}
            self._device = {name: self._cuda.allocate(array.nbytes) for name, array in arrays.items()}
            for name, buffer in self._device.items():
                self._context.set_tensor_address(name, buffer.address)

    def infer(self) -> dict[str, np.ndarray[Any, Any]]:
        with self._cuda.current():
            for name, array in self._inputs.items():
                self._cuda.to_device(self._device[name], array, self._stream)
            self._context.execute_async_v3(self._stream.handle)
            for name, array in self._outputs.items():
                self._cuda.to_host(array, self._device[name], self._stream)
            self._cuda.wait(self._stream)
        return self._outputs

    def compute(self) -> None:
        """What is on the GPU already, once more: without copies."""
        with self._cuda.current():
            self._context.execute_async_v3(self._stream.handle)
            self._cuda.wait(self._stream)

    def close(self) -> None:
        with self._cuda.current():
            for buffer in self._device.values():
                self._cuda.free(buffer)


if __name__ == "__main__":
    main()
