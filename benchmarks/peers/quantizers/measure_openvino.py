"""Networks on OpenVINO's CPU plugin, in the environment of NNCF: outputs on the photos, or latency in turns.

In float32 (OpenVINO would take bfloat16 by itself where the processor has it), so that only Q/DQ makes a difference.
Decoding and AP are the parent's; so are the percentiles.
"""

from __future__ import annotations

import json
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino

LEAD_IN = 2
REST_S = 0.02
WARM_UP = 10


def compiled(path: str, threads: int | None) -> Any:
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    return core.compile_model(core.read_model(path), "CPU", config)


def outputs(job: Mapping[str, Any]) -> dict[str, Any]:
    """An npz with an array ``ID/NAME`` for each output of each photo."""
    network = compiled(job["network"], job["threads"])
    names = [output.get_any_name() for output in network.outputs]
    with np.load(job["photos"]) as photos, zipfile.ZipFile(job["out"], "w", zipfile.ZIP_STORED) as archive:
        for photo in sorted(photos.files):
            found = network(photos[photo][None].astype(np.float32) / np.float32(255))
            for index, name in enumerate(names):
                with archive.open(f"{photo}/{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.ascontiguousarray(found[index]), allow_pickle=False)
    return {}


def latency(job: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds of each network, (cycles, block), taken in turns; networks that OpenVINO refuses are named."""
    feeds = np.load(job["feeds"])
    networks, refused = {}, {}
    for label, path in job["networks"].items():
        try:
            networks[label] = compiled(path, job["threads"])
            for index in range(WARM_UP):
                networks[label](feeds[index % len(feeds)][None])
        except Exception as error:  # noqa: BLE001 - one network that is refused must not spoil the others' figures
            networks.pop(label, None)
            refused[label] = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    samples: dict[str, list[list[float]]] = {label: [] for label in networks}
    order = list(networks)
    for cycle in range(job["cycles"]):
        start = cycle % max(1, len(order))
        for label in order[start:] + order[:start]:
            time.sleep(REST_S)
            samples[label].append(_block(networks[label], feeds, cycle * job["block"], job["block"]))
    return {"samples_ms": samples, "refused": refused}


def _block(network: Any, feeds: Any, first: int, count: int) -> list[float]:
    times_ms = []
    for index in range(-LEAD_IN, count):
        feed = feeds[(first + index) % len(feeds)][None]
        started = time.perf_counter_ns()
        network(feed)
        if index >= 0:
            times_ms.append((time.perf_counter_ns() - started) / 1e6)
    return times_ms


if __name__ == "__main__":
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = {"outputs": outputs, "latency": latency}[document["do"]](document)
    print("\n" + json.dumps({"version": openvino.__version__, **result}))
