"""A training recipe: everything that is needed to repeat a training, in one YAML file (``kind: train``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qtoolkit.errors import RecipeError, UsageError
from qtoolkit.recipe import read_document

__all__ = [
    "DEFAULT_FIELDS",
    "SIZE_STEP_PX",
    "Augmentation",
    "Gains",
    "TrainRecipe",
    "build_train_recipe",
    "read_train_recipe",
]

SIZE_STEP_PX = 64
"""Image sizes are multiples of the coarsest stride of the network."""

DEFAULT_FIELDS: dict[str, Any] = {"data": "synthetic:20000@0", "image_size": 320, "images": 100_000}
"""What a training without a recipe takes: the smallest network on rendered people."""

_RENDERED = "synthetic:"
_LR, _LR_LITE, _LR_ADAMW, _LR_MUON = 0.01, 0.0032, 0.002, 0.01
_FREE = ("out", "workers", "threads", "save_every_minutes", "cache_gib", "device")


class Augmentation(BaseModel):
    """How a training image is changed; the defaults are the published ones (edgeai-yolov5, YOLO-Pose).

    - ``mosaic``: probability of four images in one.
    - ``scale``: the picture is scaled by 1 − scale … 1 + scale; ``translate``: moved by up to this share of the input.
    - ``flip``: probability of a mirrored picture, left and right keypoints swapped.
    - ``hue``, ``saturation``, ``value``: largest relative change of each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mosaic: float = Field(default=1.0, ge=0, le=1)
    scale: float = Field(default=0.5, ge=0, lt=1)
    translate: float = Field(default=0.1, ge=0, le=0.5)
    flip: float = Field(default=0.5, ge=0, le=1)
    hue: float = Field(default=0.015, ge=0, le=0.5)
    saturation: float = Field(default=0.7, ge=0, le=1)
    value: float = Field(default=0.4, ge=0, le=1)


class Gains(BaseModel):
    """Weights of the parts of the loss; the defaults are the published ones (edgeai-yolov5, YOLO-Pose).

    ``keypoints`` is that of the loss oks; the others get theirs in proportion (``losses.keypoint_gain``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    box: float = Field(default=0.05, ge=0)
    objectness: float = Field(default=1.0, ge=0)
    keypoints: float = Field(default=0.10, ge=0)
    confidence: float = Field(default=0.5, ge=0)


class TrainRecipe(BaseModel):
    """Options of a training. Paths in a recipe file are relative to that file, but ``out`` to the working folder.

    - Network: ``size``, ``lite``, ``activation``; ``init``: a weights file to start from, of the same network whatever
      its activation.
    - ``data``: data set with a labelled part train, or ``synthetic:N@seed``. ``out``: folder of the run.
    - ``image_size``: pixels, a multiple of 64, of the evaluation and, without ``sizes``, of the whole training;
      ``sizes``: phases [share of the run, pixels], shares summing to 1.
    - Budget: ``images`` seen or ``epochs``, one of them. ``batch`` images per process, ``accumulate`` batches per step.
    - ``optimizer``: sgd, the published one; muon (with adamw for all that is no matrix, ``muon.MuonAdamW``), which gets
      furthest in a short run; or adamw. ``lr`` (None: sgd 0.01, lite 0.0032; muon 0.01; adamw 0.002) falls along a
      cosine to ``lr_final`` of itself; ``momentum`` (adamw: its first beta); ``weight_decay`` of convolution weights
      only; ``warmup_images`` (None: 3 epochs, at most a tenth of the run); ``clip_norm`` of the gradient, 0 for none.
    - ``widening`` of the sigmas of the OKS loss. A keypoint further away than a few sigmas gives no gradient at all:
      the published loss (1) needs millions of images to get there. ``widening_kind`` shrink: the sigmas start so many
      times as wide and shrink to the published ones, evenly on a logarithmic scale, over the first
      ``widening_share`` of the run; ladder: the mean of the losses at that width and at
      1, 2, 4 … below it, so that neither far nor near keypoints lack a gradient.
    - ``ema_decay`` of the averaged weights, reached over ``ema_warmup_steps``.
    - ``loss`` of the keypoints; ``gains`` of its parts; ``augmentation``; ``close_mosaic``: last share of the run
      without mosaics.
    - ``amp``: autocast; ``channels_last``; ``device``; ``threads`` of torch, ``workers`` that prepare batches (0: in
      line), ``cache_gib`` of decoded images kept.
    - ``eval_every`` so many images (0: at the end only) on ``eval_images`` of the part val (None: all);
      ``log_every`` so many images; ``save_every_minutes`` the state.
    - ``seed``: of weights, order and augmentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    kind: Literal["train"] = "train"
    size: Literal["n6", "s6", "m6", "l6"] = "n6"
    lite: bool = False
    activation: Literal["silu", "relu"] = "silu"
    init: Path | None = None
    data: str
    out: Path
    image_size: int = 640
    sizes: tuple[tuple[float, int], ...] = ()
    images: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    batch: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float | None = Field(default=None, gt=0)
    lr_final: float = Field(default=0.2, gt=0, le=1)
    momentum: float = Field(default=0.937, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup_images: int | None = Field(default=None, ge=0)
    clip_norm: float = Field(default=10.0, ge=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    ema_warmup_steps: int = Field(default=2000, ge=1)
    loss: Literal["oks", "l1", "l1-scaled"] = "oks"
    gains: Gains = Gains()
    widening: float = Field(default=1.0, ge=1)
    widening_kind: Literal["shrink", "ladder"] = "shrink"
    widening_share: float = Field(default=0.5, gt=0, le=1)
    augmentation: Augmentation = Augmentation()
    close_mosaic: float = Field(default=0.0, ge=0, le=1)
    amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    workers: int = Field(default=1, ge=0, le=64)
    cache_gib: float = Field(default=4.0, ge=0)
    eval_every: int = Field(default=0, ge=0)
    eval_images: int | None = Field(default=None, ge=1)
    log_every: int = Field(default=2000, ge=1)
    save_every_minutes: float = Field(default=5.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _one_budget(self) -> TrainRecipe:
        if (self.images is None) == (self.epochs is None):
            raise UsageError(
                "the length of the training is not said once",
                expected="images or epochs, one of them",
                found=f"images {self.images}, epochs {self.epochs}",
                do="give --images N or --epochs N",
            )
        return self

    @field_validator("image_size")
    @classmethod
    def _whole_cells(cls, value: int) -> int:
        return _checked_size(value)

    @field_validator("sizes")
    @classmethod
    def _whole_run(cls, value: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        if value and (abs(sum(share for share, _ in value) - 1) > 1e-6 or min(share for share, _ in value) <= 0):
            raise UsageError(
                "the phases of the training do not make up the whole run",
                expected="[share, pixels] with shares above 0 that sum to 1, such as [[0.7, 192], [0.3, 320]]",
                found=str([list(phase) for phase in value]),
                do="correct sizes in the recipe",
            )
        for _, pixels in value:
            _checked_size(pixels)
        return value

    @property
    def base_lr(self) -> float:
        """``lr``, or the published one of this kind of network."""
        if self.lr is not None:
            return self.lr
        if self.optimizer != "sgd":
            return _LR_ADAMW if self.optimizer == "adamw" else _LR_MUON
        return _LR_LITE if self.lite else _LR

    def size_at(self, progress: float) -> int:
        """Image size in pixels of the training when ``progress`` (0–1) of its steps are done."""
        end = 0.0
        for share, pixels in self.sizes:
            end += share
            # The shares are decimal fractions, whose sums may miss the step they mean by a last bit.
            if progress < end - 1e-9:
                return pixels
        return self.sizes[-1][1] if self.sizes else self.image_size

    @property
    def largest_size(self) -> int:
        """The largest image size of the training, pixels."""
        return max((pixels for _, pixels in self.sizes), default=self.image_size)

    def outcome_fields(self) -> dict[str, Any]:
        """The fields, as JSON values, that decide what weights come out: two runs that differ here are two trainings.

        Where the results lie, how many threads work and how often the state is saved do not.
        """
        fields = self.model_dump(mode="json")
        return {name: value for name, value in fields.items() if name not in _FREE}


def read_train_recipe(path: str | os.PathLike[str], **overrides: Any) -> TrainRecipe:
    """Read a training recipe; ``overrides`` (not None) replace its fields. ``out`` defaults to ``runs/NAME``.

    An override of ``images`` or ``epochs`` replaces the other one as well. Raises RecipeError for a missing file,
    broken YAML, an unknown key, a value that cannot be used.
    """
    file = Path(path)
    document = read_document(file, "a training recipe")
    if not isinstance(document, dict) or document.get("kind") != "train":
        kind = document.get("kind") if isinstance(document, dict) else type(document).__name__
        raise RecipeError(
            f"{file} is no training recipe",
            expected="kind: train, and data: … at least",
            found=f"kind: {kind}",
            do="`qtool run` takes the recipes without a kind",
        )
    for name in ("data", "init"):
        text = document.get(name)
        if isinstance(text, str) and not text.startswith(_RENDERED):
            document[name] = str(file.parent / text)
    return build_train_recipe(document, file, **overrides)


def build_train_recipe(document: dict[str, Any], source: Path | None = None, **overrides: Any) -> TrainRecipe:
    """A recipe from the fields of ``document`` with ``overrides`` (not None); ``source`` is the file they came from.

    Raises RecipeError naming the field, UsageError where two fields contradict each other.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    fields = dict(document)
    if given.keys() & {"images", "epochs"}:
        fields.pop("images", None)
        fields.pop("epochs", None)
    if "image_size" in given:
        # The phases of the recipe were meant for its own image size.
        fields.pop("sizes", None)
    fields |= given
    fields.setdefault("out", str(Path("runs") / (source.stem if source else "train")))
    try:
        return TrainRecipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"the training recipe{f' {source}' if source else ''} is not valid at "
            f"{'.'.join(map(str, first['loc'])) or 'its top'}",
            expected=f"fields of a training recipe: {', '.join(TrainRecipe.model_fields)}",
            found=f"{first.get('input')!r}"[:120] + f" ({first['msg']})",
        ) from error


def _checked_size(pixels: int) -> int:
    if pixels < SIZE_STEP_PX or pixels % SIZE_STEP_PX:
        raise UsageError(
            "the image size does not fit the network",
            expected=f"a multiple of {SIZE_STEP_PX} pixels, the coarsest stride",
            found=str(pixels),
            do=f"give --image-size {max(SIZE_STEP_PX, round(pixels / SIZE_STEP_PX) * SIZE_STEP_PX)}",
        )
    return pixels
