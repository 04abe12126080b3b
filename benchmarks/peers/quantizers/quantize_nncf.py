"""NNCF, ``nncf.quantize``: on the ONNX graph, or on OpenVINO's (an IR: an .xml with a .bin beside it)."""

from __future__ import annotations

from typing import Any

import nncf
import onnx
from child import Job, Photos, main


def quantize_onnx(job: Job, **options: Any) -> None:
    photos = Photos(job.photos)
    dataset = nncf.Dataset(photos, lambda photo: {job.input: photo})
    onnx.save(nncf.quantize(onnx.load(job.network), dataset, **options), job.out)


def quantize_openvino(job: Job, **options: Any) -> None:
    import openvino

    model = openvino.Core().read_model(job.network)
    openvino.save_model(nncf.quantize(model, nncf.Dataset(Photos(job.photos)), **options), job.out)


def best(job: Job) -> dict[str, Any]:
    scope = nncf.IgnoredScope(names=job.tail_nodes(job.network), validate=False)
    options: dict[str, Any] = {"preset": nncf.QuantizationPreset.MIXED, "ignored_scope": scope}
    return {**options, "fast_bias_correction": False, "subset_size": len(Photos(job.photos))}


if __name__ == "__main__":
    main(
        "nncf",
        {
            "default": quantize_onnx,
            "best": lambda job: quantize_onnx(job, **best(job)),
            "openvino-default": quantize_openvino,
            "openvino-best": lambda job: quantize_openvino(job, **best(job)),
        },
    )
