"""Latency of several networks on a board, in one run and interleaved, as ``bench.latency`` measures on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.backends.board_address import BoardAddress
from qtoolkit.backends.board_job import BoardJob, BoardNetwork, choose_runtime, pack_feeds, unpack_outputs
from qtoolkit.backends.jetson_ssh import Board
from qtoolkit.bench.latency_result import LatencyResult, p50_ratio, percentiles_ms
from qtoolkit.bench.measured_record import record_conditions
from qtoolkit.bench.worker import load_feeds, seeded_feeds
from qtoolkit.errors import UsageError
from qtoolkit.graph.layer_precisions import float32_nodes

__all__ = ["BoardLatency", "measure_on_board"]

_FEWEST_CYCLES = 10
_TARGETS = {"onnxruntime": "ort-cpu", "tensorrt": "tensorrt"}


@dataclass(frozen=True, eq=False)
class BoardLatency:
    """What came back from a board.

    ``results``: label → record. ``board``: what the board says of itself, None where it does not: model, cpu, l4t,
    jetpack, power_mode, jetson_clocks, jtop, clocks_mhz, temperatures_c and power_w before the measurement, the same
    ``after`` it, and ``power_mean_w``, watts per rail while it ran. ``outputs``: label → one dict of arrays per input,
    where asked for.
    ``reconnects``: how often a lost connection was made again. ``resumed``: an earlier call began the measurement.
    """

    results: Mapping[str, LatencyResult]
    board: Mapping[str, Any]
    outputs: Mapping[str, list[dict[str, NDArray[Any]]]]
    reconnects: int
    resumed: bool


def measure_on_board(
    variants: Mapping[str, Path],
    address: BoardAddress,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    runs: int = 100,
    block: int = 10,
    warmup_s: float = 1.0,
    feeds_path: Path | None = None,
    seed: int = 0,
    outputs: bool = False,
    limits: Mapping[str, float] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> BoardLatency:
    """Latency of each network of ``variants`` (label → ONNX file) on the board at ``address``; ratios to the first.

    ``runtime``: tensorrt or onnxruntime, None takes TensorRT where it is. ``threads``: of ONNX Runtime. ``outputs``:
    bring the outputs for the inputs back too. ``limits``: ``limit_s`` of the whole measurement, ``heartbeat_s`` after
    which the board stops by itself when nobody asks, ``queue_s`` to wait for another measurement. ``progress`` is
    called with a stage, done and total. The rest: see ``measure_latency``. With TensorRT a time includes the copies
    of inputs and outputs. Where an earlier process asked for the very same and was killed, its measurement is taken
    over, running or finished.

    Raises UsageError for what cannot be measured so, and what ``backends.board_failures`` lists. No process is left
    on the board when this returns or raises; where it cannot be reached any more, its job ends by itself.
    """
    _check_counts(variants, runs, block, warmup_s)
    block = min(block, max(1, runs // _FEWEST_CYCLES))
    counts = {"cycles": -(-runs // block), "block": block, "warmup_s": warmup_s}
    networks = {label: BoardNetwork(path, float32_nodes) for label, path in variants.items()}
    feeds = _feeds(networks, feeds_path, seed)
    with Board(address) as board:
        chosen, _ = choose_runtime(board, runtime)
        models = _send(board, networks, feeds, _staged(progress, "sending"))
        request = {"kind": "bench", "runtime": chosen, "threads": threads, "outputs": outputs, "models": models}
        with BoardJob(board, {**request, **counts, **(limits or {})}, resume=True) as job:
            found = job.result(None if progress is None else lambda at: progress(at["stage"], at["done"], at["total"]))
            arrays = {
                label: unpack_outputs(job.fetch_arrays(each["file"]), [output["name"] for output in each["outputs"]])
                for label, each in (zip(variants, found["models"], strict=True) if outputs else ())
            }
        reconnects, resumed = board.reconnects, job.resumed
    inputs = f"seed {seed}" if feeds_path is None else "file"
    return BoardLatency(_results(variants, found, inputs), found["board"], arrays, reconnects, resumed)


def _check_counts(variants: Mapping[str, Path], runs: int, block: int, warmup_s: float) -> None:
    if not variants or runs < _FEWEST_CYCLES or block < 1 or not 0 <= warmup_s < float("inf"):
        raise UsageError(
            "the latency cannot be measured so",
            expected=f"variants, runs of {_FEWEST_CYCLES} or more, a block of 1 or more, a warm-up of 0 s or more",
            found=f"{len(variants)} variants, runs={runs}, block={block}, warmup_s={warmup_s}",
            do="give larger counts",
        )


def _feeds(networks: Mapping[str, BoardNetwork], path: Path | None, seed: int) -> list[bytes]:
    """The file of inputs of each network; networks that take the same share one."""
    made: dict[tuple[Any, ...], bytes] = {}
    used = []
    for network in networks.values():
        key = tuple((name, spec.shape, spec.dtype) for name, spec in network.inputs.items())
        if key not in made:
            feeds = seeded_feeds(network.inputs, seed) if path is None else load_feeds(network.inputs, path)
            made[key] = pack_feeds(feeds, list(network.inputs))
        used.append(made[key])
    return used


def _send(
    board: Board,
    networks: Mapping[str, BoardNetwork],
    feeds: list[bytes],
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    contents = list(dict.fromkeys([*(network.content for network in networks.values()), *feeds]))
    sent = dict(zip(contents, board.send(contents, progress=progress), strict=True))
    return [
        {"sha256": sent[network.content], "feeds": sent[file], "options": network.options}
        for network, file in zip(networks.values(), feeds, strict=True)
    ]


def _staged(progress: Callable[[str, int, int], None] | None, stage: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)


def _results(variants: Mapping[str, Path], found: Mapping[str, Any], inputs: str) -> dict[str, LatencyResult]:
    samples = [np.array(each["blocks_ns"], np.float64) / 1e6 for each in found["models"]]
    return {
        label: _result(label, path, about, of, samples[0], found["board"], inputs)
        for (label, path), about, of in zip(variants.items(), found["models"], samples, strict=True)
    }


def _result(
    label: str,
    path: Path,
    about: Mapping[str, Any],
    samples_ms: NDArray[np.float64],
    first_ms: NDArray[np.float64],
    board: Mapping[str, Any],
    inputs: str,
) -> LatencyResult:
    conditions = record_conditions(
        label,
        path,
        target=_TARGETS[about["conditions"]["runtime"]],
        conditions={**about["conditions"], **_board_conditions(board)},
        input_shapes={each["name"]: each["shape"] for each in about["inputs"]},
        device=board.get("model") or board.get("cpu") or board["machine"],
    )
    shape = next(iter(conditions["input_shapes"].values()))
    statistics: dict[str, Any] = {**percentiles_ms(samples_ms), **p50_ratio(samples_ms, first_ms).model_dump()}
    return LatencyResult(
        **conditions,
        input_size_wh=(shape[3], shape[2]) if len(shape) == 4 else None,
        inputs=inputs,
        warm_up_s=about["warmed"]["seconds"],
        warm_up_count=about["warmed"]["count"],
        warm_up_stable=about["warmed"]["stable"],
        count=samples_ms.size,
        block=samples_ms.shape[1],
        **statistics,
        idle_cpu_pct=about["idle_cpu_pct"],
        block_medians_ms=tuple(np.median(samples_ms, axis=1).tolist()),
        samples_ms=tuple(samples_ms.ravel().tolist()),
    )


def _board_conditions(board: Mapping[str, Any]) -> dict[str, str | int | float | bool | None]:
    """The board's state as flat conditions; what it does not tell is left out."""
    after = board.get("after") or {}
    hottest = max((after.get("temperatures_c") or {}).values(), default=None)
    power = board.get("power_mean_w") or {}
    # The first rail of every Jetson is the board's input.
    total = next((watts for name, watts in power.items() if name.upper().startswith(("VDD_IN", "POM_5V_IN"))), None)
    found = {
        "jetpack": board.get("jetpack") or board.get("l4t"),
        "power_mode": board.get("power_mode"),
        "jetson_clocks": board.get("jetson_clocks"),
        "temperature_c": hottest,
        "power_w": total,
    }
    return {name: value for name, value in found.items() if value is not None}
