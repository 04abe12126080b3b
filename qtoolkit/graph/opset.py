"""Raising a network's opset with ONNX's own converter, and what it may say."""

from __future__ import annotations

import onnx
from onnx import version_converter

__all__ = ["OpsetError", "raised_to"]

# Which of them it is where an operator has no way up depends on the version of onnx.
_ERRORS = (
    version_converter.ConvertError, RuntimeError, ValueError, TypeError, IndexError, onnx.checker.ValidationError,
)  # fmt: skip


class OpsetError(ValueError):
    """The converter knows no way; its text is the first line of what it says."""


def raised_to(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """``model`` at ``opset``. Raises OpsetError."""
    try:
        return version_converter.convert_version(model, opset)
    except _ERRORS as error:
        raise OpsetError((str(error).strip().splitlines() or ["no reason given"])[0][:200]) from error
