"""The scorecard: accuracy, cost and latency of every variant of one network, with the conditions they hold under."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qtoolkit.artifacts.files import write_text
from qtoolkit.errors import InputFileError

__all__ = ["DataFacts", "LatencyFigures", "ModelFacts", "Scorecard", "ScorecardRow"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFacts(_Record):
    """The float network: ``name`` of its file, hash of the file as given, input (W, H), 10⁹ MACs, 10⁶ parameters."""

    name: str
    sha256: str
    input_size_wh: tuple[int, int]
    gmacs: float
    params_m: float


class DataFacts(_Record):
    """What AP was measured on and what ranges were calibrated on: names, numbers of images, content hashes."""

    name: str
    images: int
    sha256: str
    skipped: int = 0
    calibration_images: int = 0
    calibration_sha256: str = ""


class LatencyFigures(_Record):
    """Latency of one variant on one target.

    ``ratio`` is p50 over the float network's in the same run, ``ratio_lo`` to ``ratio_hi`` its interval.
    ``measured`` False means it comes from a model of the device, with ``error_band_pct``, None where no band holds; a
    model tells one time, so ``p90_ms`` and ``p99_ms`` are None. ``conditions`` holds threads, batch, warm-up, counts
    and runtime options.
    """

    target: str
    measured: bool
    device: str
    runtime: str
    version: str
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    images_per_second: float
    ratio: float | None = None
    ratio_lo: float | None = None
    ratio_hi: float | None = None
    error_band_pct: float | None = None
    conditions: dict[str, Any] = {}


class ScorecardRow(_Record):
    """One variant: ``float``, ``16bit``, ``int8``, ``mixed`` (``-qat`` behind the name where it was finetuned).

    ``weights_bits`` and ``activation_bits`` are the lowest in use. AP values are 0–100, ``retention`` is ap / ap of
    float, ``agreement`` the AP with the float network's own confident poses as ground truth. ``accuracy_on`` names the
    runtime that computed them. None: not measured, or not to be had (no labels).
    """

    variant: str
    file: str
    sha256: str
    precisions: dict[str, int]
    weights_bits: int
    activation_bits: int
    layers_16bit: int
    layers_total: int
    macs_16bit_share: float
    gmacs: float
    bops_g: float
    size_mb: float
    accuracy_on: str = ""
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    ap_m: float | None = None
    ap_l: float | None = None
    ar: float | None = None
    retention: float | None = None
    agreement: float | None = None
    latency: LatencyFigures | None = None


class Scorecard(_Record):
    """All variants of one network on one data set; ``notes`` are sentences a reader of the table must know."""

    schema_version: Literal[1] = 1
    qtoolkit: str
    target: str
    model: ModelFacts
    data: DataFacts
    environment: dict[str, Any]
    settings: dict[str, Any]
    rows: tuple[ScorecardRow, ...]
    notes: tuple[str, ...] = ()

    def row(self, variant: str) -> ScorecardRow | None:
        """The row of that variant, or None."""
        return next((row for row in self.rows if row.variant == variant), None)

    def to_json(self) -> str:
        """JSON text, key ``schema`` first."""
        document = self.model_dump(mode="json")
        document = {"schema": document.pop("schema_version"), **document}
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_json`` to a file."""
        write_text(path, self.to_json())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Scorecard:
        """Read a scorecard. Raises InputFileError for a missing or damaged file."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if isinstance(document, dict) and "schema" in document:
                document["schema_version"] = document.pop("schema")
            return cls.model_validate(document)
        except (OSError, ValueError, ValidationError) as error:
            raise InputFileError(
                f"the scorecard {path} cannot be read",
                expected="a scorecard.json that qtool wrote",
                found=" ".join(str(error).split())[:200],
            ) from error
