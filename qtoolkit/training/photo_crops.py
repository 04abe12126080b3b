"""Parts of photos, as large as a block or a unit of a network needs to be learned on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qtoolkit.training.photos import letterboxed

__all__ = ["photo_crops"]


def photo_crops(
    photos: Sequence[Path], size_wh: tuple[int, int], crop: int, count: int, random: np.random.Generator
) -> Tensor:
    """(count, 3, h, w) float32, RGB 0–1: parts of at most ``crop`` pixels each way of photos letterboxed to
    ``size_wh``, every second one mirrored. Raises DataSetError for a photo that cannot be read."""
    w, h = (min(crop, side) for side in size_wh)
    parts: list[NDArray[np.float32]] = []
    for _ in range(count):
        image = letterboxed([photos[int(random.integers(len(photos)))]], size_wh)
        top, left = int(random.integers(size_wh[1] - h + 1)), int(random.integers(size_wh[0] - w + 1))
        part = image[:, :, top : top + h, left : left + w]
        parts.append(part[..., ::-1] if random.random() < 0.5 else part)
    return torch.from_numpy(np.concatenate(parts))
