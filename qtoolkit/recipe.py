"""A recipe: everything that is needed to repeat a run, in one YAML file."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qtoolkit.corrections import NEEDS_TORCH, Correction, Effort, check_corrections, default_corrections
from qtoolkit.errors import RecipeError, UsageError

__all__ = [
    "DEFAULT_CALIBRATION_IMAGES",
    "DEFAULT_DATA",
    "Recipe",
    "invalid_recipe",
    "parse_yaml",
    "read_document",
    "read_recipe",
]

DEFAULT_DATA = Path("synthetic:300@1")
"""What the default network is measured on. It was trained on seed 0, so it has seen none of these people."""

DEFAULT_CALIBRATION_IMAGES = 100
"""How many of the images of ``DEFAULT_DATA`` it is calibrated on."""

_FEWEST_RUNS = 10
_PATHS = ("model", "data", "plan", "out", "unlabeled", "labelled")
_MAY_BE_RENDERED = ("data", "unlabeled", "labelled")


class Recipe(BaseModel):
    """Options of the quantize pipeline; paths in a recipe file are relative to that file.

    - ``model``: float ONNX network; ``input_size_wh`` where its own is not fixed; ``head`` where its outputs fit
      several.
    - ``data``: data set (folder, dataset.yaml or COCO layout); ``images`` and ``calibration_images`` limit its two
      parts.
    - ``target``: row of ``backends/targets.py``; ``wide``: its 16-bit precision (None: the target's own); ``device``:
      the Jetson, such as ``jetson-agx-orin-64gb@30W``, whose times are modelled (target tensorrt only).
    - ``mixed``: share (0–1) of ``mixed_by`` (None: layers) that may stay at 16 bit; None: no mixed network. Or
      ``min_ap_retention``: the cheapest plan that keeps this share of the float AP, counted in ``mixed_by`` (None: time
      where the target's runtime runs here, else MACs). Or ``plan``: a precision plan.
    - ``metric``: of the sensitivity analysis, on ``sensitivity_images`` calibration photos (ap: labelled ones of train
      or calib); ``ranges``: range estimator; ``effort``: how much is done to find good grids (``quantization.effort``);
      ``corrections``: the corrections by name (``corrections``) in place of those of the effort.
    - ``qat``: fine-tune the 8-bit and the mixed network, seeing ``qat_images`` images, at the highest learning rate
      ``qat_lr``: without labels on the photos of ``unlabeled`` (folder or data set; None: the part unlabeled of
      ``data``, or the photos calibrated on), or with them on the part train of the data set ``labelled``;
      ``qat_device``: where torch computes it, without labels.
    - ``runs``: inferences per variant in the latency measurement, 0 for none; ``threads``: None for every core.
    - ``seed``: of what is drawn (calibration photos).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    model: Path
    data: Path
    out: Path
    target: str = "ort-cpu"
    device: str | None = None
    wide: Literal["fp16", "int16", "int16w16"] | None = None
    mixed: float | None = None
    mixed_by: Literal["layers", "macs", "bops", "bytes", "latency"] | None = None
    min_ap_retention: float | None = Field(default=None, gt=0, le=1)
    plan: Path | None = None
    metric: Literal["oks", "sqnr", "fisher", "ap"] = "oks"
    ranges: Literal["min-max", "moving-average", "percentile", "mse", "entropy"] = "mse"
    effort: Effort = "balanced"
    corrections: tuple[Correction, ...] | None = None
    qat: bool = False
    qat_images: int = Field(default=2000, ge=1)
    qat_lr: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    qat_device: Literal["auto", "cpu", "cuda"] = "cpu"
    unlabeled: Path | None = None
    labelled: Path | None = None
    head: str | None = None
    input_size_wh: tuple[int, int] | None = None
    images: int | None = Field(default=None, ge=1)
    calibration_images: int | None = Field(default=None, ge=1)
    sensitivity_images: int = Field(default=16, ge=1)
    threads: int | None = Field(default=None, ge=1)
    runs: int = Field(default=100, ge=0)
    seed: int = 0

    @field_validator("runs")
    @classmethod
    def _enough_runs(cls, value: int) -> int:
        if 0 < value < _FEWEST_RUNS:
            raise UsageError(
                "the latency cannot be measured with so few inferences",
                expected=f"0 for no measurement, or at least {_FEWEST_RUNS}",
                found=str(value),
                do="give --runs 100",
            )
        return value

    @model_validator(mode="after")
    def _one_way_to_a_plan(self) -> Recipe:
        ways = {"plan": self.plan, "mixed": self.mixed, "min_ap_retention": self.min_ap_retention}
        given = [f"{name} {value}" for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise UsageError(
                "a plan, a budget and a retention contradict each other: each says which layers stay at 16 bit",
                expected="one of them",
                found=" and ".join(given),
                do="give --plan FILE to apply a plan, or --mixed or --min-ap-retention to make one",
            )
        return self

    @field_validator("corrections")
    @classmethod
    def _corrections_fit(cls, value: tuple[Correction, ...] | None) -> tuple[Correction, ...] | None:
        check_corrections(value or ())
        return value

    @property
    def makes_plan(self) -> bool:
        """Whether the run ranks layers and chooses a plan itself."""
        return self.mixed is not None or self.min_ap_retention is not None

    @property
    def learns_corrections(self) -> bool:
        """Whether a correction learns from photos, which needs torch."""
        chosen = default_corrections(self.effort) if self.corrections is None else self.corrections
        return not NEEDS_TORCH.isdisjoint(chosen)

    @model_validator(mode="after")
    def _photos_only_for_qat(self) -> Recipe:
        given = {name: getattr(self, name) for name in ("unlabeled", "labelled") if getattr(self, name) is not None}
        learned_from = {"unlabeled": self.qat or self.learns_corrections, "labelled": self.qat}
        idle = [name for name in given if not learned_from[name]]
        if idle:
            name, value = idle[0], given[idle[0]]
            raise UsageError(
                "photos to fine-tune on are given, and nothing is fine-tuned",
                expected=f"--{name} together with --qat" + (" or --effort best" if name == "unlabeled" else ""),
                found=f"{name} {value} without qat",
                do=f"add --qat, or leave --{name} out",
            )
        if len(given) > 1:
            raise UsageError(
                "photos to fine-tune on are given with labels and without",
                expected="one of --labelled and --unlabeled",
                found=" and ".join(f"{name} {value}" for name, value in given.items()),
                do="give --labelled: the float network teaches on its photos too",
            )
        if self.labelled is not None and self.qat_device == "cuda":
            raise UsageError(
                "labels are learned from on the CPU",
                expected="--qat-device cpu or auto with --labelled",
                found="--qat-device cuda",
                do="leave it out, or fine-tune without labels: --unlabeled DIR",
            )
        return self

    @field_validator("mixed")
    @classmethod
    def _share(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise UsageError(
                "the share of the network to keep at 16 bit cannot be used",
                expected="a number from 0 to 1, such as --mixed 0.3 for 30 %",
                found=str(value),
                do="give --mixed a share, not a percentage",
            )
        return value


def read_recipe(path: str | os.PathLike[str], **overrides: Any) -> Recipe:
    """Read a recipe; ``overrides`` (not None) replace its fields. ``out`` defaults to ``runs/NAME`` in the working
    folder.

    Raises RecipeError for a missing file, broken YAML, an unknown key or a value that cannot be used.
    """
    file = Path(path)
    document = read_document(file, "a recipe")
    if not isinstance(document, dict):
        raise RecipeError(
            f"the recipe {file} has no fields", expected="model: …, data: … at least", found=type(document).__name__
        )
    for name in _PATHS:
        # Rendered people (synthetic:N@seed) lie nowhere.
        rendered = name in _MAY_BE_RENDERED and str(document.get(name)).startswith("synthetic:")
        if isinstance(document.get(name), str) and not rendered:
            document[name] = str(_beside(file, document[name]))
    document |= {name: value for name, value in overrides.items() if value is not None}
    document.setdefault("out", str(Path("runs") / file.stem))
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise invalid_recipe(file, error, "a recipe", Recipe) from error


def read_document(file: Path, what: str) -> Any:
    """The YAML value in ``file``; ``what`` it should be a recipe of. Raises RecipeError where it cannot be read."""
    try:
        return parse_yaml(file.read_text(encoding="utf-8-sig"))
    # The last one: brackets nested without end.
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RecipeError(
            f"the recipe {file} cannot be read",
            expected=f"a YAML file with the fields of {what}",
            found=" ".join(str(error).split())[:200],
        ) from error


def invalid_recipe(file: Path, error: ValidationError, what: str, model: type[BaseModel]) -> RecipeError:
    """What to raise for fields of ``file`` that ``model``, the fields of ``what``, refused."""
    first = error.errors()[0]
    return RecipeError(
        f"the recipe {file} is not valid at {'.'.join(map(str, first['loc'])) or 'its top'}",
        expected=f"fields of {what}: {', '.join(model.model_fields)}",
        found=f"{first.get('input')!r}"[:120] + f" ({first['msg']})",
    )


def _beside(file: Path, text: str) -> Path:
    try:
        return file.parent / Path(text).expanduser()
    except RuntimeError as error:
        raise RecipeError(
            f"the recipe {file} names a home folder that is not known",
            expected="~ or ~NAME of a user of this machine",
            found=text,
            do="write the path out, or relative to the recipe",
        ) from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, by SafeLoader, which runs nothing. Raises yaml.YAMLError, for a repeated key too."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's own rules silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
