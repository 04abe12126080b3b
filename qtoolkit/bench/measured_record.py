"""What every measured figure depends on: the base of the records of latency, throughput and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from qtoolkit.artifacts.files import sha256_file
from qtoolkit.backends.runner import Condition
from qtoolkit.bench.environment import cpu_name

__all__ = ["MeasuredRecord", "record_conditions"]

_NAMED_CONDITIONS = ("runtime", "version", "provider", "threads")


class MeasuredRecord(BaseModel):
    """One network on one runtime of one device."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    variant: str
    measured: Literal[True] = True
    target: str
    """Name of the backend, such as ``ort-cpu``."""
    device: str
    """Name of the processor, of the GPU where the network runs on one, or of the board."""
    runtime: str
    version: str
    provider: str
    threads: int | None
    """Threads of the runtime; with several streams, of each."""
    batch: int
    input_shapes: dict[str, tuple[int, ...]]
    options: dict[str, Condition]
    """Further conditions of the runner, such as its level of graph optimization."""
    model_sha256: str


def record_conditions(
    variant: str,
    path: Path,
    *,
    target: str,
    conditions: Mapping[str, Any],
    input_shapes: Mapping[str, Sequence[int]],
    device: str | None = None,
) -> dict[str, Any]:
    """The fields of ``MeasuredRecord`` of the file ``path``, from ``Runner.conditions`` and the shapes it was fed.

    ``device``: by default the one the conditions name, else this machine's processor. Of its shapes the first one's
    first axis is the batch.
    """
    shapes = {name: tuple(shape) for name, shape in input_shapes.items()}
    first = next(iter(shapes.values()))
    return {
        "variant": variant,
        "target": target,
        "device": device or conditions.get("device") or cpu_name(),
        **{name: conditions[name] for name in _NAMED_CONDITIONS},
        "batch": first[0] if first else 1,
        "input_shapes": shapes,
        "options": {name: value for name, value in conditions.items() if name not in (*_NAMED_CONDITIONS, "device")},
        "model_sha256": sha256_file(path),
    }
