"""ONNX Runtime's own quantizer, ``quantize_static``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from child import Job, Reader, main
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


def quantize(job: Job, *, exclude: bool = False, last_layers: bool = False, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(job.network, prepared)
        excluded = job.tail_nodes(prepared, last_layers) if exclude else None
        quantize_static(prepared, job.out, Reader(job.feeds()), nodes_to_exclude=excluded, **options)


ASYMMETRIC = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}

if __name__ == "__main__":
    main(
        "onnxruntime",
        {
            "default": quantize,
            "best": lambda job: quantize(job, exclude=True, **ASYMMETRIC),
            "best-float-last": lambda job: quantize(job, exclude=True, last_layers=True, **ASYMMETRIC),
        },
    )
