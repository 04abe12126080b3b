"""Tensors of many images in files, read a few images at a time: what is kept costs no memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qtoolkit.errors import ModelFileError

__all__ = ["TensorRows"]


class TensorRows:
    """One float32 tensor (N, …) in the file ``path``, which is made anew; ``images`` are appended in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb+", buffering=0)
        self._row: tuple[int, ...] = ()

    def append(self, rows: Tensor, images: int) -> None:
        """Write ``rows`` (images, …). Raises ModelFileError where the first axis does not hold the images."""
        if rows.dim() == 0 or len(rows) != images:
            raise ModelFileError(
                "a unit of the network ends at a tensor whose first axis does not hold the images",
                expected=f"{images} images",
                found=f"shape {tuple(rows.shape)}",
                do="leave the correction rounding out",
            )
        self._row = tuple(rows.shape[1:])
        self._file.write(np.ascontiguousarray(rows.detach().numpy(), np.float32).tobytes())

    def read(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices``: (len, …) float32."""
        rows = np.empty((len(indices), *self._row), np.float32)
        size = rows.nbytes // max(1, len(indices))
        for place, index in enumerate(indices):
            self._file.seek(index * size)
            rows[place] = np.frombuffer(self._file.read(size), np.float32).reshape(self._row)
        return torch.from_numpy(rows)

    def delete(self) -> None:
        """Close the file and delete it."""
        self._file.close()
        self._path.unlink(missing_ok=True)
