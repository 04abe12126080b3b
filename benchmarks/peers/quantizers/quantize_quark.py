"""AMD Quark for ONNX, ``ModelQuantizer``. It leaves a file in the working folder, which is the job's own."""

from __future__ import annotations

from typing import Any

from child import Job, Reader, main
from quark.onnx import BiasCorrectionConfig, CLEConfig, ModelQuantizer, QConfig, QLayerConfig
from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QuantGranularity


def quantize(job: Job, layer: Any, **options: Any) -> None:
    ModelQuantizer(QConfig(global_config=layer, **options)).quantize_model(job.network, job.out, Reader(job.feeds()))


def default(job: Job) -> None:
    quantize(job, QConfig.global_config)


def best(job: Job) -> None:
    weight = Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel)
    layer = QLayerConfig(activation=Int8Spec(calibration_method=CalibMethod.Percentile), weight=weight)
    quantize(job, layer, exclude=job.tail_nodes(job.network), algo_config=[CLEConfig(), BiasCorrectionConfig()])


if __name__ == "__main__":
    main("amd-quark", {"default": default, "best": best})
