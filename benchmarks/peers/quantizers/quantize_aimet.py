"""AIMET for ONNX: ``QuantizationSimModel``, and Lite-MP, which raises the most sensitive layers to int16."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from aimet_onnx import QuantizationSimModel, analyze_per_layer_sensitivity, int16
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.lite_mp import flip_layers_to_higher_precision
from child import Feeds, Job, main, with_opset

PHOTOS_OF_SENSITIVITY = 4
PERCENT = 30


def default(job: Job) -> None:
    model = onnx.load(job.network)
    fold_all_batch_norms_to_weight(model)
    sim = QuantizationSimModel(model)
    sim.compute_encodings(job.feeds())
    onnx.save(sim.to_onnx_qdq(), job.out)


def lite_mp(job: Job) -> dict[str, Any]:
    model = with_opset(onnx.load(job.network), 21)  # int16 Q/DQ came with opset 21
    fold_all_batch_norms_to_weight(model)
    content = model.SerializeToString()
    sim = QuantizationSimModel(model, config_file="htp_v73")
    for name in job.tail_outputs:
        if name in sim.qc_quantize_op_dict:
            sim.qc_quantize_op_dict[name].enabled = False
    feeds = job.feeds()
    sim.compute_encodings(feeds)
    score = SqnrScore(content, job.feeds(PHOTOS_OF_SENSITIVITY))
    sensitivity = analyze_per_layer_sensitivity(sim, score)
    flip_layers_to_higher_precision(sim, sensitivity, percent_to_flip=PERCENT, override_precision=int16)
    sim.compute_encodings(feeds)
    onnx.save(sim.to_onnx_qdq(), job.out)
    return {"evaluations": score.count, "photos_of_sensitivity": len(score.feeds)}


class SqnrScore:
    """Mean SQNR in dB of a session's first output against the float network's."""

    def __init__(self, model: bytes, feeds: Feeds) -> None:
        reference = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.feeds = list(feeds)
        self.count = 0
        self._expected = [reference.run(None, feed)[0] for feed in self.feeds]

    def __call__(self, session: Any) -> float:
        self.count += 1
        found = [session.run(None, feed)[0] for feed in self.feeds]
        pairs = zip(self._expected, found, strict=True)
        return float(np.mean([10 * np.log10((x**2).sum() / (((x - y) ** 2).sum() + 1e-12)) for x, y in pairs]))


if __name__ == "__main__":
    main("aimet-onnx", {"default": default, "best": lite_mp})
