"""The quantization table: one network at every precision, beside the row that YOLO-Pose published for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qtoolkit.artifacts.files import write_text
from qtoolkit.artifacts.scorecard import DataFacts, ModelFacts, ScorecardRow
from qtoolkit.errors import InputFileError

__all__ = ["PUBLISHED", "PublishedRow", "QuantizationTable", "QuantizationTableRow"]


class PublishedRow(BaseModel):
    """AP and AP50 (0–100) and the share of the ReLU network's AP that is kept (0–1); None: not published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ap: float | None = None
    ap50: float | None = None
    retention: float | None = None


PUBLISHED: Mapping[str, PublishedRow] = MappingProxyType(
    {
        "float SiLU": PublishedRow(ap=63.8, ap50=87.6),
        "float ReLU": PublishedRow(ap=61.9, ap50=86.7, retention=1.0),
        "16bit": PublishedRow(ap=61.8, ap50=86.7, retention=0.998),
        "int8": PublishedRow(),
        "mixed": PublishedRow(ap=60.6, ap50=85.4, retention=0.979),
    }
)
"""Maji et al., "YOLO-Pose" (arXiv 2204.06806), table 5: YOLOv5s6-pose at 960 pixels, COCO val2017. Its 8-bit figure and
anything after quantization-aware training are not published."""


class QuantizationTableRow(BaseModel):
    """One row: ``name`` as in ``PUBLISHED``, with ``-qat`` where it was fine-tuned; ``target`` of the number format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    target: str
    figures: ScorecardRow
    published: PublishedRow


class QuantizationTable(BaseModel):
    """All rows with their conditions; ``silu`` and ``relu`` are the two float networks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    qtoolkit: str
    silu: ModelFacts
    relu: ModelFacts
    data: DataFacts
    rows: tuple[QuantizationTableRow, ...]
    notes: tuple[str, ...] = ()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> QuantizationTable:
        """Read a table. Raises InputFileError for a missing or damaged file."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise InputFileError(
                f"the quantization table {path} cannot be read",
                expected="a table.json that qtool run wrote",
                found=" ".join(str(error).split())[:200],
            ) from error
