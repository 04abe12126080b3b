"""The frontier of a network: plans from all-8-bit to all-16-bit, each with what it costs and what it keeps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qtoolkit.artifacts.files import write_text
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.errors import InputFileError

__all__ = ["Frontier", "FrontierPoint"]


class FrontierPoint(BaseModel):
    """One plan, measured.

    ``share``: the budget it was chosen for, 0–1; ``cost``: the share of the unit that its 16-bit layers really take.
    ``kept``: what it keeps of the float network on the frontier's photos, 1 is all: AP over AP where they have labels,
    else agreement / 100. ``predicted_loss``: sum of the losses of its 8-bit layers in the ranking. ``on_front``: no
    other plan costs as little and keeps more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float
    cost: float
    layers_16bit: int
    macs_16bit_share: float
    predicted_loss: float
    kept: float
    on_front: bool = False
    plan: PrecisionPlan


class Frontier(BaseModel):
    """Points by rising cost, and their conditions: ``unit`` of the budget, ``photos`` measured on and of which part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    unit: str
    metric: str
    target: str
    model_sha256: str
    photos: int
    photos_part: str
    photos_sha256: str
    measured: Literal["ap", "agreement"]
    points: tuple[FrontierPoint, ...]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Frontier:
        """Read a frontier. Raises InputFileError for a missing or damaged file."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise InputFileError(
                f"the frontier {path} cannot be read",
                expected="a frontier.json that qtool wrote",
                found=" ".join(str(error).split())[:200],
                do="delete it and run qtool sensitivity --frontier again",
            ) from error
