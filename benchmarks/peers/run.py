"""qtool beside its peers: one command that quantizes one network with each tool and measures all of them alike.

usage: python benchmarks/peers/run.py MODEL --data FOLDER --out DIR [--only nncf,ort] [--images N] [--default-only]

README.md beside this file says what each setting is and how to read the table. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_figures import (
    FEWEST_RUNS,
    REFERENCES,
    UNLABELLED,
    PeopleOf,
    accuracy,
    agreement_everywhere,
    differences,
    latencies,
    network_path,
    people_of,
    quantize,
)
from peer_inputs import Inputs, open_inputs
from peer_openvino import openvino_latencies, openvino_people
from peer_processes import NotRun, find_python, prepare_venv
from peer_settings import FLOAT, OPENVINO_TOOL, TOOL_NAMES, Setting, Tool, chosen, label_of
from peer_table import results_text

from qtoolkit.artifacts.files import prepare_out_dir, write_text
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.bench.environment import capture_environment
from qtoolkit.errors import QtoolError
from qtoolkit.evaluation.heads import Head
from qtoolkit.evaluation.pose_network import PoseNetwork

RESULTS = "results.json"


@dataclass
class Comparison:
    """One run: its options, its inputs, and what has been found of each row so far."""

    options: argparse.Namespace
    inputs: Inputs
    head: Head
    rows: list[dict[str, Any]]
    networks: dict[str, Path] = field(default_factory=dict)
    people: dict[str, PeopleOf] = field(default_factory=dict)
    everywhere: dict[str, PeopleOf] = field(default_factory=dict)
    pythons: dict[str, Path | str] = field(default_factory=dict)

    def python_of(self, tool: Tool) -> Path:
        """The interpreter of the tool's environment. Raises NotRun, once for all its settings, where there is none."""
        if tool.venv is None:
            return Path(sys.executable)
        if tool.venv not in self.pythons:
            say(f"{tool.title}: its environment")
            folder = self.options.venvs or self.inputs.out / "venvs"
            folder.mkdir(parents=True, exist_ok=True)
            log = self.inputs.out / f"venv-{tool.venv}.txt"
            try:
                python = find_python(self.options.python)
                self.pythons[tool.venv] = prepare_venv(folder / tool.venv, tool.requirements, python, log)
            except NotRun as error:
                self.pythons[tool.venv] = str(error)
        found = self.pythons[tool.venv]
        if isinstance(found, str):
            raise NotRun(found)
        return found

    def row(self, tool: Tool, setting: Setting) -> dict[str, Any]:
        """Quantize and evaluate one row; a failure of either is the row's reason, and the rest go on."""
        label = label_of(tool, setting)
        row: dict[str, Any] = {"label": label, "title": tool.title, "setting": setting.name, "text": setting.text}
        try:
            say(f"{label}: quantizing")
            python, timeout_s = self.python_of(tool), self.options.timeout
            row |= quantize(self.inputs, tool, setting, python, timeout_s)
            network = self.networks[label] = network_path(self.inputs, tool, setting)
            if not setting.on_openvino:
                row |= {"ran_on": "ort-cpu", **self.evaluate(label, network)}
            else:
                # One release of OpenVINO for all: that of NNCF's environment.
                python = self.python_of(OPENVINO_TOOL)
                found = openvino_people(self.inputs, label, network, self.head, python, timeout_s)
                self.people[label] = found
                row |= {"ran_on": "openvino-cpu", "openvino": self.accuracy_of(found)}
        except (NotRun, QtoolError) as error:
            row["reason"] = " ".join(str(error).split())
            say(f"{label}: not run: {row['reason']}")
        return row

    def evaluate(self, label: str, network: Path) -> dict[str, Any]:
        """AP, AP50 and agreement of an ONNX network on ONNX Runtime; agreement on the further photos too."""
        inputs, head = self.inputs, self.options.head
        self.people[label] = people_of(inputs, label, network, head, inputs.samples)
        figures: dict[str, Any] = dict(self.accuracy_of(self.people[label]))
        if inputs.unlabelled is not None:
            further = people_of(inputs, f"{label}{UNLABELLED}", network, head, inputs.unlabelled)
            self.everywhere[label] = {**self.people[label], **further}
            figures |= agreement_everywhere(self.everywhere[label], self.everywhere[FLOAT])
        return figures

    def accuracy_of(self, people: PeopleOf) -> dict[str, float | None]:
        """AP, AP50 and agreement of what one network found."""
        return accuracy(self.inputs, people, self.people[FLOAT])

    def add_openvino(self, tool: Tool) -> None:
        """AP of qtool's networks and latency of all networks on OpenVINO. Raises NotRun where it is not to be had."""
        python, timeout_s = self.python_of(tool), self.options.timeout
        rows = {row["label"]: row for row in self.rows}
        for label in (FLOAT, *REFERENCES):
            if label in self.networks:
                found = openvino_people(
                    self.inputs, label, self.networks[label], self.head, python, timeout_s, "-openvino"
                )
                rows[label]["openvino"] = self.accuracy_of(found)
        times = openvino_latencies(
            self.inputs, self.networks, self.options.runs, self.options.threads, python, timeout_s
        )
        for label, figures in times.items():
            rows[label]["openvino"] = rows[label].get("openvino", {}) | figures


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        results = compare(options)
    except QtoolError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(results, indent=1) if options.json else results_text(results))
    return 0


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison; results.json is written after every row, so that a stopped run shows what it has."""
    out = prepare_out_dir(options.out).resolve()
    inputs = open_inputs(
        options.model, options.data, out, options.images, options.calibration_images, options.unlabelled_images,
        options.more_photos,
    )  # fmt: skip
    with OnnxRuntimeCpu(inputs.network, threads=1) as runner:
        head = PoseNetwork.from_runner(runner, options.head).head
    run = Comparison(options, inputs, head, [])
    run.networks[FLOAT] = inputs.network
    figures = run.evaluate(FLOAT, inputs.network)
    text = "the network as it was given, on ONNX Runtime"
    float_row = {"label": FLOAT, "title": FLOAT, "setting": "", "text": text, "ran_on": "ort-cpu"}
    size_mb = round(inputs.network.stat().st_size / 1e6, 2)
    run.rows.append({**float_row, "size_mb": size_mb, **figures})
    wanted = chosen(options.only, options.default_only)
    for tool, setting in wanted:
        run.rows.append(run.row(tool, setting))
        save(run)
    add_comparisons(run)
    if options.openvino and any(tool.venv == OPENVINO_TOOL.venv for tool, _ in wanted):
        guarded(run, "openvino", lambda: run.add_openvino(OPENVINO_TOOL))
    return save(run)


def add_comparisons(run: Comparison) -> None:
    """Differences to qtool's rows and the latency of all networks that were evaluated, in the rows."""
    for row in run.rows:
        if row["label"] in run.people and row["label"] != FLOAT:
            row["differences"] = differences(
                run.inputs, row["label"], run.people, run.everywhere, run.options.resamples
            )
    on_openvino = {row["label"] for row in run.rows if row.get("ran_on") == "openvino-cpu"}
    networks = {label: path for label, path in run.networks.items() if label in run.people.keys() - on_openvino}
    guarded(run, "latency", lambda: add_latencies(run, networks))


def add_latencies(run: Comparison, networks: dict[str, Path]) -> None:
    """Latency of ``networks``, in one run, in the rows."""
    say("latency of all networks, in turns")
    times = latencies(run.inputs, networks, run.options.runs, run.options.threads)
    for row in run.rows:
        if row["label"] in times:
            row["latency"] = times[row["label"]]


def guarded(run: Comparison, what: str, step: Callable[[], None]) -> None:
    """Do a step that may fail without taking what is there with it."""
    save(run)
    try:
        step()
    except (NotRun, QtoolError) as error:
        say(f"{what}: not measured: {' '.join(str(error).split())}")


def save(run: Comparison) -> dict[str, Any]:
    """Write results.json and results.md."""
    inputs, options, environment = run.inputs, run.options, capture_environment().model_dump(mode="json")
    results = {
        "schema": 1,
        "network": {"name": inputs.network_name, "sha256": inputs.network_sha256},
        "data": {
            "name": inputs.data_name, "images": len(run.people[FLOAT]), "sha256": inputs.samples.sha256,
            "calibration_images": len(inputs.calibration), "calibration_sha256": inputs.calibration.sha256,
            "unlabelled_images": 0 if inputs.unlabelled is None else len(inputs.unlabelled),
            "unlabelled_sha256": None if inputs.unlabelled is None else inputs.unlabelled.sha256,
        },
        "environment": environment,
        "settings": {name: getattr(options, name) for name in ("runs", "threads", "resamples", "head")},
        "rows": run.rows,
        "conditions": conditions(run, environment),
    }  # fmt: skip
    write_text(inputs.out / RESULTS, json.dumps(results, indent=1) + "\n")
    write_text(inputs.out / "results.md", results_text(results))
    return results


def conditions(run: Comparison, environment: dict[str, Any]) -> list[str]:
    """What the figures hold under, in lines of a table's foot."""
    inputs, packages = run.inputs, environment["packages"]
    w, h = inputs.input.input_size_wh
    return [
        f"{inputs.network_name}, {w} × {h}; {inputs.data_name}: {len(run.people[FLOAT])} photos evaluated, "
        f"{len(inputs.calibration)} to calibrate on"
        + (f", {len(inputs.unlabelled)} more for agreement." if inputs.unlabelled else "."),
        f"{environment['cpu']}, {environment['cores_physical']} cores, load {environment['load_average_1m']}; "
        f"ONNX Runtime {packages['onnxruntime']}, batch 1, {run.options.threads or environment['cores_physical']} "
        f"threads, {run.options.runs} inferences each, in turns.",
        f"Intervals of differences: 95 %, {run.options.resamples} bootstrap draws of the photos.",
        "s, CPU s (of all cores) and peak MB: the whole process of the tool, imports included; qtool's makes 16-bit "
        "and int8 networks, evaluates them on one photo and writes its report in that time.",
    ]


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", type=Path, help="float ONNX pose network with fixed shapes")
    made.add_argument("--data", type=Path, required=True, help="data set, as for qtool quantize")
    made.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    made.add_argument("--only", type=_tools, default=TOOL_NAMES, help=f"some of {','.join(TOOL_NAMES)}")
    made.add_argument("--default-only", action="store_true", help="every tool at its defaults only")
    made.add_argument("--images", type=_count, default=None, help="evaluate on the first N photos only")
    made.add_argument("--calibration-images", type=_count, default=None, help="calibrate on N photos only")
    made.add_argument(
        "--unlabelled-images", type=_limit, default=None,
        help="photos of the part unlabeled that agreement is measured on too, 0 for none [default: all]",
    )  # fmt: skip
    made.add_argument(
        "--more-photos", type=_folder, action="append", default=[], metavar="DIR",
        help="a folder of further photos that agreement is measured on too; may be repeated",
    )  # fmt: skip
    made.add_argument("--venvs", type=_folder, default=None, help="folder of the environments [default: OUT/venvs]")
    made.add_argument("--python", default=None, help="builds the environments [default: python3.11]")
    made.add_argument("--runs", type=_runs, default=100, help="inferences per network, 0 for no latency [default: 100]")
    made.add_argument("--threads", type=_count, default=None, help="of the latency [default: one per core]")
    made.add_argument("--resamples", type=_count, default=200, help="bootstrap draws [default: 200]")
    made.add_argument("--head", default=None, help="pose head, where the outputs fit several")
    made.add_argument("--timeout", type=float, default=7200, help="seconds one setting may take [default: 7200]")
    made.add_argument("--no-openvino", dest="openvino", action="store_false", help="leave OpenVINO's latencies out")
    made.add_argument("--json", action="store_true", help="print results.json instead of the tables")
    return made


def _tools(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in TOOL_NAMES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'}: choose from {', '.join(TOOL_NAMES)}")
    return names


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _limit(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _runs(text: str) -> int:
    if not text.isdigit() or 0 < int(text) < FEWEST_RUNS:
        raise argparse.ArgumentTypeError(f"{text!r}: 0 for no latency, or at least {FEWEST_RUNS}")
    return int(text)


def _folder(text: str) -> Path:
    return Path(text).resolve()


if __name__ == "__main__":
    sys.exit(main())
