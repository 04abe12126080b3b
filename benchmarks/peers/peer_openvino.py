"""AP and latency on OpenVINO's CPU plugin, measured in NNCF's environment, decoded and judged here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from peer_figures import FEWEST_RUNS, PeopleOf, progress
from peer_inputs import Inputs, letterboxed, write_photos
from peer_processes import run_process
from peer_settings import HERE

from qtoolkit.artifacts.files import sha256_file, write_text
from qtoolkit.bench.environment import capture_environment
from qtoolkit.bench.latency_result import p50_ratio, percentiles_ms
from qtoolkit.data.letterbox import Letterbox
from qtoolkit.evaluation.heads import Head
from qtoolkit.evaluation.pose_network import people_in_image
from qtoolkit.evaluation.predictions import read_predictions, write_predictions

SCRIPT = HERE / "quantizers" / "measure_openvino.py"
BLOCK = 10


def evaluation_photos(inputs: Inputs) -> Path:
    """The evaluation photos letterboxed by qtoolkit, (3, H, W) uint8 each, by image id."""
    path = inputs.store.path("evaluation_photos.npz")
    key = [inputs.samples.sha256, list(inputs.input.input_size_wh)]
    photos = letterboxed(inputs.samples, inputs.input.input_size_wh)
    inputs.store.run("evaluation-photos", key, [path], lambda: write_photos(path, photos))
    return path


def openvino_people(
    inputs: Inputs, label: str, network: Path, head: Head, python: Path, timeout_s: float, suffix: str = ""
) -> PeopleOf:
    """The people a network (.onnx or .xml) finds on OpenVINO. Raises NotRun where OpenVINO refuses it."""
    path = inputs.store.path("people", f"{label}{suffix}.npz")

    def make() -> None:
        outputs = inputs.store.path("work", "outputs.npz")
        job = {"do": "outputs", "network": str(network), "photos": str(evaluation_photos(inputs)), "out": str(outputs)}
        _ask(inputs, f"openvino-{label}", {**job, "threads": None}, python, timeout_s)
        write_predictions(path, _decoded(inputs, outputs, head))
        outputs.unlink()

    weights = network.with_suffix(".bin") if network.suffix == ".xml" else network
    key = [sha256_file(network), sha256_file(weights), inputs.samples.sha256, sha256_file(SCRIPT), _packages()]
    inputs.store.run(f"evaluate-openvino-{label}", key, [path], make)
    return read_predictions(path)


def openvino_latencies(
    inputs: Inputs, networks: Mapping[str, Path], runs: int, threads: int | None, python: Path, timeout_s: float
) -> dict[str, dict[str, Any]]:
    """p50 and p99 of all networks in turns on OpenVINO, and the ratio to the first of them."""
    if runs == 0:
        return {}
    path = inputs.store.path("latency-openvino.json")
    block = min(BLOCK, max(1, runs // FEWEST_RUNS))

    def make() -> None:
        paths = {label: str(network) for label, network in networks.items()}
        job = {"do": "latency", "networks": paths, "feeds": str(inputs.latency_feeds), "threads": threads}
        answer = _ask(
            inputs, "openvino-latency", {**job, "block": block, "cycles": -(-runs // block)}, python, timeout_s
        )
        write_text(path, json.dumps(_figures(answer), indent=1) + "\n")

    files = {label: sha256_file(network) for label, network in networks.items()}
    key = [files, runs, threads, sha256_file(SCRIPT), sha256_file(inputs.latency_feeds), _packages()]
    inputs.store.run("bench-openvino", key, [path], make)
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _figures(answer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    samples = {label: np.array(values, np.float64) for label, values in answer["samples_ms"].items()}
    figures: dict[str, dict[str, Any]] = {}
    for label, values in samples.items():
        numbers = {**percentiles_ms(values), **p50_ratio(values, next(iter(samples.values()))).model_dump()}
        figures[label] = {name: round(value, 4) for name, value in numbers.items()}
        figures[label] |= {"count": values.size, "version": answer["version"]}
    return figures | {label: {"refused": reason} for label, reason in answer["refused"].items()}


def _ask(inputs: Inputs, name: str, job: Mapping[str, Any], python: Path, timeout_s: float) -> dict[str, Any]:
    work = inputs.store.path("work", f"{name}.json")
    write_text(work, json.dumps(job))
    log = inputs.out / "logs" / f"{name}.txt"
    log.parent.mkdir(exist_ok=True)
    return run_process([str(python), str(SCRIPT), str(work)], work.parent, log, timeout_s).answer


def _decoded(inputs: Inputs, outputs: Path, head: Head) -> PeopleOf:
    people = {}
    with np.load(outputs) as arrays:
        ids = sorted({name.split("/", 1)[0] for name in arrays.files})
        sizes = {sample.image_id: sample.size_wh for sample in inputs.samples}
        for done, image in enumerate(ids, start=1):
            found = {name.split("/", 1)[1]: arrays[name] for name in arrays.files if name.startswith(f"{image}/")}
            letterbox = Letterbox.fit(sizes[int(image)], head.input_size_wh)
            people[int(image)] = people_in_image(found, head, letterbox)
            progress("decoding")(done, len(ids))
    return people


def _packages() -> dict[str, str]:
    return dict(capture_environment().packages)
