"""Intel Neural Compressor 2.6, the last line with ONNX: ``quantization.fit`` without a tuning loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from child import Job, Photos, main
from neural_compressor import PostTrainingQuantConfig, quantization

FLOAT = {"activation": {"dtype": ["fp32"]}, "weight": {"dtype": ["fp32"]}}


class Batches:
    """Pairs of a photo and an unused label, as the tool's calibration wants them."""

    batch_size = 1

    def __init__(self, photos: Photos) -> None:
        self._photos = photos

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return ((photo, 0) for photo in self._photos)

    def __len__(self) -> int:
        return len(self._photos)


def quantize(job: Job, **options: Any) -> None:
    made = quantization.fit(
        job.network, PostTrainingQuantConfig(**options), calib_dataloader=Batches(Photos(job.photos))
    )
    if made is None:
        raise RuntimeError("neural_compressor returned no network")
    made.save(job.out)


def best(job: Job) -> None:
    names = job.tail_nodes(job.network)
    quantize(
        job,
        quant_format="QDQ",
        calibration_sampling_size=[len(Photos(job.photos))],
        op_name_dict=dict.fromkeys(names, FLOAT),
    )


if __name__ == "__main__":
    main("neural-compressor", {"default": quantize, "best": best})
