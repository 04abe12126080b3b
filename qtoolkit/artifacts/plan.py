"""The precision plan: layer → precision, the one thing that selection makes, PTQ applies and reports draw."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtoolkit.artifacts.files import write_text
from qtoolkit.errors import PlanFileError
from qtoolkit.recipe import parse_yaml

__all__ = ["Precision", "PrecisionPlan", "uniform_plan"]

_HEADER = """\
# Precision plan of qtoolkit: one line a layer, first to last.
# Edit it by hand and apply it with: qtool quantize MODEL --plan {name}
# Precisions: {precisions}
"""


class Precision(str, Enum):
    """Arithmetic of one layer.

    ========== ============== ===================
    precision  weight bits    activation bits
    ========== ============== ===================
    fp32       32             32
    fp16       16             16
    int16      8              16     (A16W8)
    int16w16   16             16     (A16W16)
    int8       8              8      (A8W8)
    ========== ============== ===================
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT16 = "int16"
    INT16W16 = "int16w16"
    INT8 = "int8"

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        return {"fp32": 32, "fp16": 16, "int16": 8, "int16w16": 16, "int8": 8}[self.value]

    @property
    def activation_bits(self) -> int:
        """Bits of an activation at the layer's input."""
        return {"fp32": 32, "fp16": 16, "int16": 16, "int16w16": 16, "int8": 8}[self.value]

    @property
    def is_16bit(self) -> bool:
        """Whether activations have 16 bits."""
        return self.activation_bits == 16

    @property
    def is_integer(self) -> bool:
        """Whether the layer's input and weight lie on integer grids (written as Q/DQ pairs)."""
        return self in (Precision.INT8, Precision.INT16, Precision.INT16W16)


class PrecisionPlan(BaseModel):
    """Precision of every layer of one network; a small YAML file that people edit and diff.

    ``model_sha256`` is the hash of the prepared float network the layer names belong to, ``target`` the row of
    ``backends/targets.py`` the plan was made for, ``made_by`` one line on how.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    model_sha256: str = ""
    target: str = ""
    made_by: str = ""
    layers: dict[str, Precision] = Field(min_length=1)

    def layers_at(self, *precisions: Precision) -> tuple[str, ...]:
        """Names of the layers at one of ``precisions``, in the plan's order."""
        return tuple(name for name, precision in self.layers.items() if precision in precisions)

    @property
    def layers_16bit(self) -> tuple[str, ...]:
        """Names of the layers at 16 bit of any kind."""
        return tuple(name for name, precision in self.layers.items() if precision.is_16bit)

    def with_layers(self, changes: Mapping[str, Precision], made_by: str | None = None) -> PrecisionPlan:
        """A copy with the precisions in ``changes``."""
        layers = {name: changes.get(name, precision) for name, precision in self.layers.items()}
        return self.model_copy(update={"layers": layers, "made_by": self.made_by if made_by is None else made_by})

    def check_layers(self, layer_names: Iterable[str]) -> None:
        """Raise PlanFileError unless the plan names exactly the layers of the network."""
        known = list(layer_names)
        unknown = [name for name in self.layers if name not in set(known)]
        missing = [name for name in known if name not in self.layers]
        if unknown or missing:
            faults = [f"not in the network: {', '.join(unknown[:5])}"] if unknown else []
            faults += [f"not in the plan: {', '.join(missing[:5])}"] if missing else []
            raise PlanFileError(
                "the plan does not fit the network",
                expected=f"one precision for each of its {len(known)} layers",
                found=f"{len(unknown)} unknown and {len(missing)} missing layers; " + "; ".join(faults),
                do="make the plan anew with: qtool sensitivity MODEL --mixed 0.3 --out DIR",
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as YAML with a short explanation at its head."""
        document = self.model_dump(mode="json")
        header = _HEADER.format(name=Path(path).name, precisions=", ".join(p.value for p in Precision))
        write_text(path, header + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PrecisionPlan:
        """Read a plan. Raises PlanFileError for a missing file, broken YAML, an unknown key or precision."""
        try:
            document = parse_yaml(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise PlanFileError(
                f"the plan {path} cannot be read",
                expected="a YAML file as qtool quantize writes it (plan.yaml)",
                found=" ".join(str(error).split())[:200],
            ) from error
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise PlanFileError(
                f"the plan {path} is not valid at {place}",
                expected=f"layers: {{layer: one of {', '.join(p.value for p in Precision)}}}, and no unknown key",
                found=f"{first.get('input')!r}"[:120] + f" ({first['msg']})",
                do="mend the line, or make the plan anew with: qtool sensitivity MODEL --mixed 0.3 --out DIR",
            ) from error


def uniform_plan(layer_names: Iterable[str], precision: Precision, **facts: str) -> PrecisionPlan:
    """A plan with every layer at ``precision``; ``facts`` are the plan's other fields."""
    return PrecisionPlan(layers=dict.fromkeys(layer_names, precision), **facts)  # type: ignore[arg-type]
