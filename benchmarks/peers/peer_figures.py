"""From networks to figures: all made by qtoolkit in this one environment, so that they can be compared."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import onnx
from peer_inputs import Inputs
from peer_processes import NotRun, run_process
from peer_settings import FLOAT, HERE, QTOOL, Setting, Tool, label_of

from qtoolkit.artifacts.files import sha256_file, write_text
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.throughput import worker_count
from qtoolkit.bench.environment import capture_environment
from qtoolkit.bench.latency import measure_latency
from qtoolkit.data.coco import CocoKeypoints
from qtoolkit.data.people import People
from qtoolkit.data.samples import Samples
from qtoolkit.evaluation.agreement import agreement, reference_as_ground_truth
from qtoolkit.evaluation.coco_ap import ApInterval, bootstrap_interval, coco_keypoint_ap, counted_people
from qtoolkit.evaluation.pose_network import PoseNetwork, predict_set
from qtoolkit.evaluation.predictions import read_predictions, write_predictions
from qtoolkit.quantization.assess import latency_figures

REFERENCES = (f"{QTOOL}-int8", f"{QTOOL}-mixed")
FEWEST_RUNS = 10
UNLABELLED = "-unlabelled"

PeopleOf = Mapping[int, People]


def network_path(inputs: Inputs, tool: Tool, setting: Setting) -> Path:
    """Where the network of a row lies."""
    return inputs.out / "networks" / f"{label_of(tool, setting)}{setting.suffix}"


def quantize(inputs: Inputs, tool: Tool, setting: Setting, python: Path, timeout_s: float) -> dict[str, Any]:
    """Run a tool at a setting unless that is done; seconds, peak memory, version and the counts of its network.

    Raises NotRun with the reason where the tool fails: nothing is kept of that, so the next run tries again.
    """
    label = label_of(tool, setting)
    network, record = network_path(inputs, tool, setting), inputs.out / "networks" / f"{label}.json"
    network.parent.mkdir(exist_ok=True)
    scripts = [tool.script, HERE / "quantizers" / "child.py"]
    key = [inputs.network_sha256, inputs.calibration.sha256, *map(sha256_file, scripts)]
    if tool.name == QTOOL:
        key += [capture_environment().packages, _package_sha256()]

    def make() -> None:
        network.unlink(missing_ok=True)
        work = _empty(inputs.out / "work" / label)
        shutil.copyfile(inputs.network, work / "network.onnx")
        write_text(work / "job.json", json.dumps(_job(inputs, setting, work, network)))
        command = [str(python), str(tool.script), str(work / "job.json")]
        log = inputs.out / "logs" / f"{label}.txt"
        log.parent.mkdir(exist_ok=True)
        done = run_process(command, work, log, timeout_s, own=tool.venv is None)
        if not network.exists():
            raise NotRun("it ended well and wrote no network")
        _check_photos(inputs, done.answer["notes"])
        shutil.rmtree(work)
        facts = {
            **done.answer, "seconds": round(done.seconds, 2), "cpu_seconds": done.cpu_seconds,
            "peak_rss_mb": None if done.peak_rss_mb is None else round(done.peak_rss_mb, 1), **_counts(network),
        }  # fmt: skip
        write_text(record, json.dumps(facts, indent=1) + "\n")

    inputs.store.run(f"quantize-{label}", key, [network, record], make)
    facts: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return facts


def people_of(inputs: Inputs, name: str, network: Path, head: str | None, samples: Samples) -> PeopleOf:
    """The people that an ONNX network finds on ``samples``, on this environment's ONNX Runtime, kept under ``name``."""
    path = inputs.store.path("people", f"{name}.npz")

    def make() -> None:
        with OnnxRuntimeCpu(network, threads=1) as runner:
            poses = PoseNetwork.from_runner(runner, head)
            people, _ = predict_set(poses, samples, progress(name), workers=worker_count(None))
        write_predictions(path, people)

    key = [sha256_file(network), samples.sha256, head, capture_environment().packages]
    inputs.store.run(f"evaluate-{name}", key, [path], make)
    return read_predictions(path)


def accuracy(inputs: Inputs, people: PeopleOf, reference: PeopleOf) -> dict[str, float | None]:
    """AP and AP50 against the labels (where there are any), agreement with the float network's poses."""
    image_ids = sorted(people.keys() & reference.keys())
    figures: dict[str, float | None] = {"ap": None, "ap50": None}
    if inputs.samples.annotations is not None:
        metrics = coco_keypoint_ap(inputs.samples.annotations.ground_truth(image_ids), people, image_ids)
        figures = {"ap": round(metrics.ap, 3), "ap50": round(metrics.ap50, 3)}
    return {**figures, "agreement": _agreement(people, reference, image_ids)}


def agreement_everywhere(people: PeopleOf, reference: PeopleOf) -> dict[str, Any]:
    """Agreement on the evaluation photos and the further ones together, and how many photos those are."""
    image_ids = sorted(people.keys() & reference.keys())
    return {"agreement_all": _agreement(people, reference, image_ids), "images_all": len(image_ids)}


def differences(
    inputs: Inputs, label: str, everybody: Mapping[str, PeopleOf], everywhere: Mapping[str, PeopleOf], resamples: int
) -> dict[str, dict[str, Any]]:
    """AP and agreement less those of qtool's networks, each with its bootstrap interval over the photos.

    ``everybody``: label → people on the evaluation photos; ``everywhere``: on those and the further ones, if any.
    """
    path = inputs.store.path("differences", f"{label}.json")
    others = [name for name in REFERENCES if name in everybody and name != label]

    def make() -> None:
        made: dict[str, dict[str, Any]] = {}
        for done, other in enumerate(others, start=1):
            pair = (everybody[label], everybody[other])
            made[other] = _intervals(inputs.samples.annotations, pair, everybody[FLOAT], resamples)
            if {label, other, FLOAT} <= everywhere.keys():
                wider = (everywhere[label], everywhere[other])
                made[other] |= _intervals(None, wider, everywhere[FLOAT], resamples, "agreement_all")
            progress(f"{label}, bootstrap")(done, len(others))
        write_text(path, json.dumps(made, indent=1) + "\n")

    names = [FLOAT, label, *others, *(f"{name}{UNLABELLED}" for name in (FLOAT, label, *others) if name in everywhere)]
    files = {name: sha256_file(inputs.store.path("people", f"{name}.npz")) for name in names}
    inputs.store.run(f"differences-{label}", [files, inputs.samples.sha256, resamples], [path], make)
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def latencies(inputs: Inputs, networks: Mapping[str, Path], runs: int, threads: int | None) -> dict[str, Any]:
    """Latency of all networks in one run, in turns (``measure_latency``), on calibration photos; float first."""
    if runs == 0 or FLOAT not in networks:
        return {}
    path = inputs.store.path("latency.json")
    machine = capture_environment()

    def make() -> None:
        results = measure_latency(
            networks, threads=threads, runs=runs, feeds_path=inputs.latency_feeds, progress=progress("latency")
        )
        figures = {label: latency_figures(result).model_dump(mode="json") for label, result in results.items()}
        write_text(path, json.dumps(figures, indent=1) + "\n")

    files = {label: sha256_file(network) for label, network in networks.items()}
    key = [files, runs, threads, sha256_file(inputs.latency_feeds), machine.cpu, machine.packages]
    inputs.store.run("bench", key, [path], make)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def progress(what: str) -> Callable[[int, int], None]:
    """Called with (done, total): a line on stderr that is written over."""

    def show(done: int, total: int) -> None:
        if done == total or done % 10 == 0:
            print(f"\r{what}: {done}/{total}   ", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _job(inputs: Inputs, setting: Setting, work: Path, network: Path) -> dict[str, Any]:
    return {
        "network": str(work / "network.onnx"), "input": inputs.input.name, "photos": str(inputs.photos),
        "out": str(network), "setting": setting.name, "tail_outputs": list(inputs.tail_outputs),
        "last_outputs": list(inputs.last_outputs), "calibration_folder": str(inputs.calibration_folder),
        "evaluation_folder": str(inputs.evaluation_folder),
    }  # fmt: skip


def _check_photos(inputs: Inputs, notes: Mapping[str, Any]) -> None:
    found = notes.get("calibration_sha256", inputs.calibration.sha256)
    if found != inputs.calibration.sha256:
        raise NotRun("it was calibrated on other photos than the rest")


def _counts(network: Path) -> dict[str, Any]:
    size_mb = sum(file.stat().st_size for file in network.parent.glob(f"{network.stem}.*") if file.suffix != ".json")
    facts: dict[str, Any] = {"size_mb": round(size_mb / 1e6, 2), "q": None, "dq": None, "nodes": None}
    if network.suffix == ".onnx":
        graph = onnx.load(network).graph
        counts = Counter(node.op_type for node in graph.node)
        facts |= {"q": counts["QuantizeLinear"], "dq": counts["DequantizeLinear"], "nodes": len(graph.node)}
    return facts


def _agreement(people: PeopleOf, reference: PeopleOf, image_ids: Collection[int]) -> float | None:
    agreed = agreement({i: reference[i] for i in image_ids}, people).ap
    return None if agreed is None else round(agreed, 3)


def _intervals(
    labels: CocoKeypoints | None,
    pair: tuple[PeopleOf, PeopleOf],
    reference: PeopleOf,
    resamples: int,
    agreement_name: str = "agreement",
) -> dict[str, dict[str, Any]]:
    image_ids = sorted(pair[0].keys() & pair[1].keys() & reference.keys())
    truths = {agreement_name: reference_as_ground_truth({i: reference[i] for i in image_ids})}
    if labels is not None:
        truths["ap"] = labels.ground_truth(image_ids)
    return {
        name: _record(bootstrap_interval(truth, pair[0], image_ids, baseline=pair[1], n=resamples))
        for name, truth in truths.items()
        if counted_people(truth)
    }


def _record(interval: ApInterval) -> dict[str, Any]:
    bounds = {name: round(getattr(interval, name), 3) for name in ("value", "lo", "hi")}
    return {**bounds, "level": interval.level, "resamples": interval.resamples, "images": interval.images}


def _package_sha256() -> list[str]:
    """Of qtool's own code: another commit of the same version is another tool."""
    root = Path(sys.modules["qtoolkit"].__file__ or "").resolve().parent
    return [sha256_file(file) for file in sorted(root.rglob("*.py"))]


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
