"""The first stage of a retraining without labels: which photos the layers are fitted on, and the fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qtoolkit.training.network_pair import NetworkPair
from qtoolkit.training.photos import letterboxed
from qtoolkit.training.reconstruction import LayerFit, reconstruct_layers_, regression_bytes
from qtoolkit.training.retrain_options import RetrainOptions

__all__ = ["FitReport", "affordable_images", "fit_images", "fit_layers_"]

_SHARE = 0.75
_MOST_IMAGES = 64
_MEMORY_BYTES = 5 * 10**9 // 2


@dataclass(frozen=True)
class FitReport:
    """``layers`` that were fitted, ``images``: number of photos of ``size_wh`` pixels; ``new_statistics``: whether new
    batch-norm statistics helped."""

    layers: tuple[LayerFit, ...]
    images: int
    size_wh: tuple[int, int]
    new_statistics: bool

    def facts(self) -> dict[str, Any]:
        """As JSON values: ``error`` is the mean over the layers, ``layers`` each one's."""
        errors = {fit.layer: round(fit.error, 5) for fit in self.layers}
        return {
            "fit_images": self.images,
            "size_wh": list(self.size_wh),
            "new_statistics": self.new_statistics,
            "error": sum(errors.values()) / max(1, len(errors)),
            "layers": errors,
        }


def affordable_images(pair: NetworkPair, size_wh: tuple[int, int], rows: int) -> int:
    """How many photos of ``size_wh`` the fit can hold at once in about 2.5 GB, 1 to 64.

    Per photo it holds what is live in both networks, measured on one; the rest is the regression of the widest layer.
    """
    image = torch.zeros(1, 3, size_wh[1], size_wh[0])
    live = pair.teacher.live_bytes(image) + pair.student.live_bytes(image)
    left = _MEMORY_BYTES - regression_bytes(pair.student, pair.model, rows)
    return int(np.clip(left // live, 1, _MOST_IMAGES))


def fit_images(pair: NetworkPair, photos: Sequence[Path], options: RetrainOptions) -> Tensor:
    """The photos to fit on, (N, 3, H, W) float32, RGB 0–1, spread evenly over ``photos``.

    Raises UsageError for a ``fit_size`` that the network does not run at, DataSetError for a photo that cannot be read.
    """
    size_wh = pair.photo_size_wh(options.fit_size, _SHARE, "--fit-size")
    wanted = options.fit_images or affordable_images(pair, size_wh, options.rows)
    chosen = np.linspace(0, len(photos) - 1, min(wanted, len(photos))).round().astype(int)
    return torch.from_numpy(letterboxed([photos[index] for index in chosen], size_wh))


def fit_layers_(
    pair: NetworkPair, images: Tensor, options: RetrainOptions, progress: Callable[[int, int], None] | None = None
) -> FitReport:
    """Fit the student's convolutions to the teacher's, and then its batch-norm statistics; in place, on the pair's
    device."""
    images = images.to(pair.device)
    with _whole_floats(pair.device):
        fits = reconstruct_layers_(
            pair.teacher,
            pair.student,
            pair.model,
            pair.activations_behind(),
            images,
            rows=options.rows,
            seed=options.seed,
            progress=progress,
        )
        with torch.no_grad():
            pair.loss.measure_spread(pair.teacher(images[:1]))
        settled = pair.settle_statistics_(images)
    return FitReport(tuple(fits), len(images), (images.shape[3], images.shape[2]), settled)


@contextlib.contextmanager
def _whole_floats(device: torch.device) -> Iterator[None]:
    """Meanwhile CUDA multiplies whole float32, as the CPU does; in convolutions it keeps 10 of 23 bits by default."""
    if device.type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = products
