"""Photos as a network takes them, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtoolkit.data.images import read_image
from qtoolkit.data.letterbox import Letterbox
from qtoolkit.errors import DataSetError
from qtoolkit.graph.load import NetworkInput

__all__ = ["image_feeds"]


def image_feeds(paths: Iterable[Path], network_input: NetworkInput) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Feeds ``{input: (1, 3, H, W) float32, RGB from 0 to 1}`` of letterboxed photos; unreadable ones are left out."""
    size_wh = network_input.input_size_wh
    for path in paths:
        try:
            image_bgr = read_image(path)
        except DataSetError:
            continue
        h, w = image_bgr.shape[:2]
        yield {network_input.name: Letterbox.to_tensor(Letterbox.fit((w, h), size_wh).apply(image_bgr))}
