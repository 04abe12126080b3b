"""What a fine-tuning without labels works on: the pair of networks, the options, the folder it goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from qtoolkit.training.checkpoint import TrainingState
from qtoolkit.training.distill import Distillation
from qtoolkit.training.journal import Journal
from qtoolkit.training.onnx_module import OnnxModule

__all__ = ["TunedPair", "TuningFolder", "TuningOptions"]


class TunedPair(Protocol):
    """``student`` learns to repeat ``teacher``, as ``loss`` measures it."""

    @property
    def teacher(self) -> OnnxModule:
        """The network that is repeated; nothing of it is trained."""

    @property
    def student(self) -> OnnxModule:
        """The network that is trained."""

    @property
    def loss(self) -> Distillation:
        """The distance between their outputs."""

    def trained(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name."""

    def rate_share(self, name: str) -> float:
        """Learning rate of that parameter, as a multiple of the run's."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All that a state must hold, by name."""

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the student to what ``tensors`` gave."""


class TuningOptions(Protocol):
    """Number of ``steps`` of ``batch`` images, drawn by ``seed``; highest rate ``lr``; ``amp`` auto, off or bf16.

    ``rate_option`` is what the user calls the learning rate; evaluation is due every ``eval_every`` images (0: at the
    end), a state is saved every ``save_every_minutes``.
    """

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def amp(self) -> str: ...
    @property
    def eval_every(self) -> int: ...
    @property
    def save_every_minutes(self) -> float: ...
    @property
    def rate_option(self) -> str: ...


class TuningFolder(Protocol):
    """Where the state of a fine-tuning and its log lie."""

    @property
    def tuned(self) -> TrainingState | None:
        """The state to go on from, if there is one."""

    def save_tuned(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state; ``facts`` are JSON values."""

    def open_log(self, step: int) -> Journal:
        """The log, for a run that goes on behind ``step``."""
