"""What is chosen for a retraining without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtoolkit.errors import UsageError

__all__ = ["RetrainOptions", "build_retrain_options"]

_FREE = ("out", "threads", "save_every_minutes", "data", "eval_every", "eval_images", "device")


class RetrainOptions(BaseModel):
    """Options of ``retrain_network``.

    - ``model``: float ONNX network; ``input_size_wh`` where its own is not fixed; ``head`` where its outputs fit
      several.
    - ``activation`` to change to. ``images``: photos (folder or data set), at most ``max_images`` of them, drawn by
      ``seed``. ``out``: folder of the run.
    - ``fit_images`` photos (None: as many as fit into about 2.5 GB, at most 64) of ``fit_size`` pixels (None: three
      quarters of the input) for the layer-by-layer fit; ``rows``: places sampled per layer.
    - ``steps_images``: images seen in the fine-tuning that follows, in whole batches, 0 for none; ``train_size``: their
      size in pixels (None: about 0.7 of the input); ``batch``, ``lr`` (Adam, falls along a cosine to 2 %).
    - ``device`` of torch: cpu or cuda; auto: cuda where there is one. A run may go on on another one.
    - ``amp``: both networks in bfloat16 in the fine-tuning; auto: where the device multiplies in it.
    - ``data``: labelled data set for the AP after the fit, every ``eval_every`` images and at the end, on
      ``eval_images`` photos (None: all).
    - ``threads`` of torch; ``save_every_minutes`` the state.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    model: Path
    activation: Literal["relu"] = "relu"
    images: str
    out: Path
    input_size_wh: tuple[int, int] | None = None
    head: str | None = None
    max_images: int | None = Field(default=None, ge=1)
    fit_images: int | None = Field(default=None, ge=1)
    fit_size: int | None = Field(default=None, ge=32)
    rows: int = Field(default=60_000, ge=1000)
    steps_images: int = Field(default=16000, ge=0)
    train_size: int | None = Field(default=None, ge=32)
    batch: int = Field(default=8, ge=1)
    lr: float = Field(default=7e-5, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "off", "bf16"] = "auto"
    data: str | None = None
    eval_every: int = Field(default=0, ge=0)
    eval_images: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    save_every_minutes: float = Field(default=3.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @property
    def rate_option(self) -> str:
        """What the command calls ``lr``."""
        return "--lr"

    @property
    def steps(self) -> int:
        """Batches of the fine-tuning."""
        return -(-self.steps_images // self.batch)

    def outcome_fields(self) -> dict[str, Any]:
        """The fields, as JSON values, that decide what weights come out."""
        fields = self.model_dump(mode="json")
        return {name: value for name, value in fields.items() if name not in _FREE}


def build_retrain_options(**given: Any) -> RetrainOptions:
    """Options from values of which those that are None are left to the defaults.

    Raises UsageError naming the option whose value cannot be used.
    """
    try:
        return RetrainOptions.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"the option {'.'.join(map(str, first['loc']))} of the retraining cannot be used",
            expected=first["msg"],
            found=f"{first.get('input')!r}"[:120],
        ) from error
