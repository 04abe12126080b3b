"""The OKS ranking of all layers against running the whole network once per layer and photo.

usage: python benchmarks/sensitivity.py MODEL DATA [--photos N]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.targets import find_target
from qtoolkit.bench.environment import peak_rss_mb
from qtoolkit.data.calibration_set import calibration_set_of
from qtoolkit.data.sources import open_data_source
from qtoolkit.evaluation.decode import decode
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.evaluation.nms import non_maximum_suppression
from qtoolkit.graph.load import load_network, network_input
from qtoolkit.graph.view import GraphView
from qtoolkit.quantization.calibrate import calibrate, calibration_tensors
from qtoolkit.quantization.feeds import image_feeds
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.sensitivity import analyse_sensitivity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=16)
    options = parser.parse_args()
    model, target = load_network(options.model), find_target("ort-cpu")
    paths = calibration_set_of(open_data_source(options.data), 64).paths
    statistics = calibrate(model, calibration_tensors(model, target), image_feeds(paths, network_input(model)))
    quantizer = Quantizer(model, target, statistics)
    view = GraphView(model)
    head = detect_head({name: view.shape(name) or () for name in view.outputs}, network_input(model).input_size_wh)
    feeds = list(image_feeds(paths[: options.photos], network_input(model)))
    quantizer.quantize_only(
        {layer.name: Precision.INT8 for layer in quantizer.layers}
    )  # ranges are found once, for both

    started = time.perf_counter()
    ranking = analyse_sensitivity(quantizer, head, feeds, metric="oks")
    cut_s = time.perf_counter() - started

    started = time.perf_counter()
    for layer in quantizer.layers:
        with OnnxRuntimeCpu(quantizer.quantize_only({layer.name: Precision.INT8})) as runner:
            for feed in feeds:
                people = decode(runner.infer(feed), head, 0.1)
                non_maximum_suppression(people.boxes_xyxy, people.scores)
    whole_s = time.perf_counter() - started
    print(f"layers {len(quantizer.layers)}, photos {len(feeds)}, people {ranking.people}")
    print(
        f"cut behind each layer {cut_s:.1f} s, whole network per layer and photo {whole_s:.1f} s: "
        f"{whole_s / cut_s:.2f} x faster"
    )
    print(f"peak memory of both {peak_rss_mb():.0f} MB")


if __name__ == "__main__":
    main()
