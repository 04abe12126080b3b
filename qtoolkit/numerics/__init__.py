"""The formulas, once, in pure numpy: affine quantization, clipping ranges, similarity of tensors."""

from __future__ import annotations

__all__: list[str] = []
