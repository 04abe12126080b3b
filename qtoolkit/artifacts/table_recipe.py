"""A recipe of the quantization table (``kind: quantization-table``): one ReLU network on several targets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtoolkit.errors import RecipeError
from qtoolkit.recipe import invalid_recipe, read_document

__all__ = ["TABLE_KIND", "TableRecipe", "read_table_recipe", "recipe_kind"]

TABLE_KIND = "quantization-table"
_PATHS = ("silu", "relu", "data", "unlabeled", "out")


class TableRecipe(BaseModel):
    """Options of the table; paths in a recipe file are relative to that file.

    - ``silu``, ``relu``: the float ONNX networks, the second retrained from the first; None: those that come with
      qtool.
    - ``targets``: each gives its 16-bit, 8-bit and mixed row; ``mixed``: share of the layers at 16 bit; ``qat``: the
      8-bit and the mixed row a second time, fine-tuned without labels on ``qat_images`` images.
    - ``data``, ``images``, ``calibration_images``, ``metric``, ``sensitivity_images``, ``input_size_wh``, ``head``,
      ``runs`` (of the latency, where the target runs here), ``threads``, ``seed``, ``unlabeled``: as for ``Recipe``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    kind: Literal["quantization-table"] = "quantization-table"
    silu: Path | None = None
    relu: Path | None = None
    data: Path
    out: Path
    targets: tuple[str, ...] = Field(default=("tidl", "tensorrt"), min_length=1)
    mixed: float = Field(default=0.3, ge=0, le=1)
    metric: Literal["oks", "sqnr", "fisher", "ap"] = "oks"
    qat: bool = False
    qat_images: int = Field(default=2000, ge=1)
    unlabeled: Path | None = None
    images: int | None = Field(default=None, ge=1)
    calibration_images: int | None = Field(default=None, ge=1)
    sensitivity_images: int = Field(default=16, ge=1)
    input_size_wh: tuple[int, int] | None = None
    head: str | None = None
    runs: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    seed: int = 0


def recipe_kind(path: str | os.PathLike[str]) -> str | None:
    """What the recipe says of its kind; None where it says nothing or cannot be read: its own reader tells why."""
    try:
        document = read_document(Path(path), "a recipe")
    except RecipeError:
        return None
    return str(document["kind"]) if isinstance(document, dict) and "kind" in document else None


def read_table_recipe(path: str | os.PathLike[str], **overrides: Any) -> TableRecipe:
    """Read a recipe of the table; ``overrides`` (not None) replace its fields. ``out`` defaults to ``runs/NAME``.

    Raises RecipeError for broken YAML, an unknown key or a value that cannot be used.
    """
    file = Path(path)
    document = read_document(file, "a quantization table")
    for name in _PATHS:
        # Rendered people (synthetic:N@seed) lie nowhere.
        if isinstance(document.get(name), str) and not document[name].startswith("synthetic:"):
            document[name] = str(file.parent / document[name])
    document |= {name: value for name, value in overrides.items() if value is not None}
    document.setdefault("out", str(Path("runs") / file.stem))
    try:
        return TableRecipe.model_validate(document)
    except ValidationError as error:
        raise invalid_recipe(file, error, "a quantization table", TableRecipe) from error
