"""What each unit of a network reads and makes on a fixed set of crops, in files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qtoolkit.training.onnx_module import OnnxModule
from qtoolkit.training.quantized_pair import QuantizedPair
from qtoolkit.training.tensor_rows import TensorRows
from qtoolkit.training.unit_traffic import UnitTraffic

if TYPE_CHECKING:
    # typing.Self needs Python 3.11.
    from typing_extensions import Self

__all__ = ["UnitInputs"]

_CHUNK = 4
_PREFIX = "units-"


class UnitInputs:
    """The tensors between units, of both networks of ``pair``, on ``images`` (N, 3, H, W): a context that deletes them.

    Units are run in order, ``run_teacher`` and ``run_student`` each once for every one of them. Kept are only tensors
    that a later unit reads, in files in ``folder``. Images are always run in the same groups, so that every run gives
    the same numbers.
    """

    def __init__(self, pair: QuantizedPair, traffic: Sequence[UnitTraffic], images: Tensor, folder: Path) -> None:
        self.count = len(images)
        self._pair, self._traffic = pair, tuple(traffic)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_PREFIX}*"):
            shutil.rmtree(left)  # of a run that was killed
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX)
        self._teacher: dict[str, TensorRows] = {}
        self._student: dict[str, TensorRows] = {}
        self._made = 0
        inputs = {
            name: tensor for each in traffic for name, tensor in each.inputs.items() if tensor in pair.teacher.inputs
        }
        self._fill(self._teacher, {name: name for name in pair.teacher.inputs}, pair.teacher, images)
        self._fill(self._student, inputs, pair.student, images)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rows in (*self._teacher.values(), *self._student.values()):
            rows.delete()
        self._folder.cleanup()

    def run_teacher(self, traffic: UnitTraffic) -> None:
        """Make what the float network has at the unit's end."""
        wanted = dict.fromkeys(traffic.outputs.values())
        self._run(self._teacher, {name: name for name in traffic.inputs.values()}, list(wanted), self._pair.teacher)

    def run_student(self, traffic: UnitTraffic) -> None:
        """Make what the quantized network has there now, and forget what no later unit reads."""
        self._run(self._student, traffic.inputs, list(traffic.outputs), self._pair.student)
        later = self._traffic[self._traffic.index(traffic) + 1 :]
        read = {name for each in later for pair in each.inputs.items() for name in pair}
        for group in (self._teacher, self._student):
            for name in [name for name in group if name not in read]:
                group.pop(name).delete()

    def teacher(self, names: Sequence[str], indices: Sequence[int]) -> dict[str, Tensor]:
        """Tensors of the float network, of the images at ``indices``."""
        return {name: self._teacher[name].read(indices) for name in names}

    def student(self, names: Sequence[str], indices: Sequence[int]) -> dict[str, Tensor]:
        """Tensors of the quantized network."""
        return {name: self._student[name].read(indices) for name in names}

    def _run(
        self, group: dict[str, TensorRows], read: Mapping[str, str], wanted: list[str], module: OnnxModule
    ) -> None:
        if not wanted:
            return
        rows = {name: self._new(group, name) for name in wanted}
        for start in range(0, self.count, _CHUNK):
            indices = range(start, min(start + _CHUNK, self.count))
            with torch.no_grad():
                found = module({name: group[name].read(indices) for name in read}, outputs=wanted)
            for name in wanted:
                rows[name].append(found[name], len(indices))

    def _fill(
        self, group: dict[str, TensorRows], wanted: Mapping[str, str], module: OnnxModule, images: Tensor
    ) -> None:
        rows = {name: self._new(group, name) for name in wanted}
        for start in range(0, self.count, _CHUNK):
            part = images[start : start + _CHUNK]
            with torch.no_grad():
                found = module(part, outputs=list(wanted)) if wanted else {}
            for name in wanted:
                rows[name].append(found[name], len(part))

    def _new(self, group: dict[str, TensorRows], name: str) -> TensorRows:
        self._made += 1
        group[name] = TensorRows(Path(self._folder.name) / f"{self._made}.f32")
        return group[name]
