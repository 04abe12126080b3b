"""NVIDIA ModelOpt, ``modelopt.onnx.quantization.quantize``. It rewrites the file it reads: the job's is a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from child import Job, Photos, main
from modelopt.onnx.quantization import quantize as modelopt_quantize


def quantize(job: Job, **options: Any) -> None:
    modelopt_quantize(
        onnx_path=job.network,
        output_path=job.out,
        quantize_mode="int8",
        calibration_data=np.concatenate(list(Photos(job.photos))),
        calibration_eps=["cpu"],
        log_level="WARNING",
        **options,
    )


def best(job: Job) -> None:
    quantize(
        job,
        calibration_method="entropy",
        high_precision_dtype="fp32",
        nodes_to_exclude=job.tail_nodes(job.network),
    )


if __name__ == "__main__":
    main("nvidia-modelopt", {"default": quantize, "best": best})
