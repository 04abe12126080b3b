"""One quantized network in torch and in ONNX Runtime: the AP of each on the same photos.

usage: python benchmarks/torch_parity.py MODEL.int8-qat.onnx DATA [--images N] [--threads N]

MODEL is any ONNX network with Q/DQ. Torch runs it pair by pair as it is written, as the fine-tuning of ``--qat`` does,
ONNX Runtime with its integer kernels (``ort-cpu``) and pair by pair (how ``tensorrt`` and ``tidl`` are simulated). Each
difference to ONNX Runtime's integer kernels has the interval that holds 95 % of 200 bootstrap draws of the photos.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray

from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.runner import Condition, Runner, Signature
from qtoolkit.data.sources import open_data_source
from qtoolkit.evaluation.coco_ap import bootstrap_interval
from qtoolkit.evaluation.evaluate import evaluate_network
from qtoolkit.training.onnx_module import OnnxModule


class TorchRunner(Runner):
    """``OnnxModule`` as a backend; what goes in and comes out is what ONNX Runtime says."""

    name = "torch"

    def __init__(self, model: Path | onnx.ModelProto, threads: int | None = None) -> None:
        super().__init__()
        self._model = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
        self._threads = threads

    def _open(self) -> Signature:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._module = OnnxModule(self._model, channels_last=True).eval()
        with OnnxRuntimeCpu(self._model) as runner:
            return runner.signature

    def _infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Sequence[NDArray[Any]]:
        with torch.inference_mode():
            found = self._module({name: torch.from_numpy(array) for name, array in feeds.items()})
        return [found[name].numpy() for name in outputs]

    def _close(self) -> None:
        self._module = None

    def conditions(self) -> dict[str, Condition]:
        return {"runtime": "torch", "version": torch.__version__, "provider": "cpu", "threads": torch.get_num_threads()}


WAYS: dict[str, Callable[..., Runner]] = {
    "ONNX Runtime, integer kernels": OnnxRuntimeCpu,
    "ONNX Runtime, pair by pair": partial(OnnxRuntimeCpu, integer_kernels=False),
    "torch": TorchRunner,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, help="evaluation photos; all by default")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    source = open_data_source(options.data)
    results = {
        way: evaluate_network(
            options.model, source, images=options.images, threads=options.threads, backend=backend
        )
        for way, backend in WAYS.items()
    }  # fmt: skip
    labels = source.evaluation_samples(options.images).annotations
    first = next(iter(results.values())).people
    print(f"{options.model.name}, {len(first)} images of {source.name}")
    for way, result in results.items():
        interval = bootstrap_interval(labels.ground_truth(first), result.people, first, baseline=first)
        print(f"{way:32} AP {result.record.ap:.2f}  {interval.value:+.2f} ({interval.lo:+.2f} to {interval.hi:+.2f})")


if __name__ == "__main__":
    main()
