"""AMD Quark for ONNX, ``ModelQuantizer``. It leaves a file in the working folder, which is the job's own."""

from __future__ import annotations

from typing import Any

import onnx
from child import Job, Reader, main
from quark.onnx import BiasCorrectionConfig, CLEConfig, ModelQuantizer, QConfig, QLayerConfig
from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QuantGranularity

PHOTOS_OF_BIAS_CORRECTION = 64
"""It holds the inputs and outputs of all convolutions of all photos at once: some 170 MB a photo at 640 px."""


def quantize(job: Job, layer: Any, limit: int | None = None, **options: Any) -> dict[str, Any]:
    feeds = job.feeds(limit)
    ModelQuantizer(QConfig(global_config=layer, **options)).quantize_model(job.network, job.out, Reader(feeds))
    return {"photos": len(feeds), "outputs_removed": remove_probes(job)}


def remove_probes(job: Job) -> int:
    """Bias correction leaves every tensor it looked at among the network's outputs: back to those of the float one."""
    model = onnx.load(job.out)
    wanted = {output.name for output in onnx.load(job.network).graph.output}
    probes = [output for output in model.graph.output if output.name not in wanted]
    for output in probes:
        model.graph.output.remove(output)
    if probes:
        onnx.save(model, job.out)
    return len(probes)


def default(job: Job) -> dict[str, Any]:
    return quantize(job, QConfig.global_config)


def best(job: Job) -> dict[str, Any]:
    weight = Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel)
    layer = QLayerConfig(activation=Int8Spec(calibration_method=CalibMethod.Percentile), weight=weight)
    algorithms = [CLEConfig(), BiasCorrectionConfig()]
    excluded = job.tail_nodes(job.network)
    return quantize(job, layer, PHOTOS_OF_BIAS_CORRECTION, exclude=excluded, algo_config=algorithms)


if __name__ == "__main__":
    main("amd-quark", {"default": default, "best": best})
