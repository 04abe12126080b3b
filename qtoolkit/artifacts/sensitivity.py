"""The sensitivity ranking: what quantizing each layer alone costs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qtoolkit.artifacts.files import write_text
from qtoolkit.artifacts.plan import Precision
from qtoolkit.errors import InputFileError

__all__ = ["LayerSensitivity", "Sensitivity"]


class LayerSensitivity(BaseModel):
    """One layer: its loss when it alone is quantized, and what it costs to keep it at 16 bit.

    ``loss`` is in the unit of the metric; more is worse. oks: mean of 1 − OKS over people, 0–1. fisher: the same to
    second order, from 0 up (for a head without rows per place: NMSE at the last layers). sqnr: NMSE, noise over signal.
    ap: COCO AP lost, in points of 0–100, negative where AP rose.
    ``sqnr_db`` is the same noise in decibels, None where it was not measured. ``macs_share`` is of all layers' MACs,
    0–1; ``weights`` is their number, ``added_ms`` the time that 16 bit adds; ``narrowing_ms`` comes on top where the
    layer is at 16 bit and read at 8, ``widening_ms`` where it is at 8 and read at 16. None where they are not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    loss: float
    sqnr_db: float | None = None
    macs: int
    macs_share: float
    weights: int | None = None
    added_ms: float | None = None
    narrowing_ms: float | None = None
    widening_ms: float | None = None


class Sensitivity(BaseModel):
    """Sensitivity of every layer, in network order; ``ranking`` gives them by loss.

    ``images`` photos of ``part`` of the data set were used (calib: those of the calibration set), ``people`` poses on
    them (0 where the metric counts none), ``float_ap`` the float network's AP on them (metric ap alone). ``seconds`` is
    the wall time it took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    metric: Literal["oks", "sqnr", "fisher", "ap"]
    precision: Precision
    target: str
    model_sha256: str
    calibration_sha256: str
    part: Literal["calib", "train"] = "calib"
    images: int
    people: int
    float_ap: float | None = None
    seconds: float
    layers: tuple[LayerSensitivity, ...]

    @property
    def ranking(self) -> tuple[LayerSensitivity, ...]:
        """The layers, most sensitive first."""
        return tuple(sorted(self.layers, key=lambda each: -each.loss))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Read a ranking. Raises InputFileError for a missing or damaged file."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise InputFileError(
                f"the sensitivity ranking {path} cannot be read",
                expected="a sensitivity.json that qtool wrote",
                found=" ".join(str(error).split())[:200],
                do="delete it and run qtool sensitivity again",
            ) from error
