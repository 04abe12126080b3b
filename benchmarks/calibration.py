"""Calibration against plain inference on the same photos: time in turns, and peak memory in processes of their own.

usage: python benchmarks/calibration.py MODEL DATA [--photos N] [--turns N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.bench.environment import peak_rss_mb
from qtoolkit.data.calibration_set import calibration_set_of
from qtoolkit.data.sources import open_data_source
from qtoolkit.graph.load import load_network, network_input
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.feeds import image_feeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--only-memory", action="store_true", help="calibrate once and print the peak memory (used by itself)"
    )
    options = parser.parse_args()
    model = load_network(options.model)
    paths = calibration_set_of(open_data_source(options.data), options.photos).paths
    tensors = calibration_tensors(model, find_target("ort-cpu"))
    if options.only_memory:
        calibrate(model, tensors, image_feeds(paths, network_input(model)))
        print(json.dumps({"photos": len(paths), "peak_rss_mb": peak_rss_mb()}))
        return
    plain_s, calibration_s = [], []
    for _ in range(options.turns):
        started = time.perf_counter()
        with OnnxRuntimeCpu(model) as runner:
            for feed in image_feeds(paths, network_input(model)):
                runner.infer(feed)
        plain_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        calibrate(model, tensors, image_feeds(paths, network_input(model)))
        calibration_s.append(time.perf_counter() - started)
    ratios = np.array(calibration_s) / np.array(plain_s)
    print(f"photos {len(paths)}, tensors {len(tensors)}, turns {options.turns}")
    print(f"plain inference {np.median(plain_s):.2f} s, calibration {np.median(calibration_s):.2f} s (medians)")
    print(f"calibration / plain inference: median {np.median(ratios):.2f}, {ratios.min():.2f} to {ratios.max():.2f}")
    peaks = [_peak(options, photos) for photos in (16, len(paths))]
    print(
        f"peak memory: {peaks[0]:.0f} MB for 16 photos, {peaks[1]:.0f} MB for {len(paths)}: {peaks[1] / peaks[0]:.3f} x"
    )


def _peak(options: argparse.Namespace, photos: int) -> float:
    command = [
        sys.executable,
        __file__,
        str(options.model),
        str(options.data),
        "--photos",
        str(photos),
        "--only-memory",
    ]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(answer)["peak_rss_mb"])


if __name__ == "__main__":
    main()
