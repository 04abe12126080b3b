"""Do two networks compute the same? SQNR of every output, taken apart by what it means where the head is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.backends.runner import Runner
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.decode import output_blocks
from qtoolkit.evaluation.head_layouts import Head
from qtoolkit.numerics.similarity import sqnr_db

__all__ = ["ParityRow", "parity"]


@dataclass(frozen=True)
class ParityRow:
    """One tensor (or one block of the head's outputs) over all inputs.

    ``sqnr_db`` is 20·log10 of the norm of all reference values over the norm of all differences; infinite where nothing
    differs. ``worst_sqnr_db`` is that of the single input at index ``worst_input``.
    """

    tensor: str
    sqnr_db: float
    worst_sqnr_db: float
    worst_input: int


def parity(
    reference: Runner,
    candidate: Runner,
    inputs: Sequence[Mapping[str, NDArray[Any]]],
    head: Head | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ParityRow, ...]:
    """SQNR of ``candidate`` against ``reference`` on the same ``inputs``, one row per output of the reference.

    ``inputs`` are feeds (input name → array), converted to the types that each network takes. With ``head`` the rows
    are its blocks (``output_blocks``): over a whole YOLO output the pixels would drown scores and confidences.
    Memory does not grow with the number of inputs. Raises UsageError without inputs, where the candidate lacks an
    output, and where shapes differ (people behind an NMS are a list of their own per network: compare AP instead).
    """
    if not inputs:
        raise UsageError("there is nothing to compare two networks on", expected="at least one input", found="none")
    signals: dict[str, list[float]] = {}
    noises: dict[str, list[float]] = {}
    single: dict[str, list[float]] = {}
    for index, feeds in enumerate(inputs):
        expected, found = (_tensors(runner, feeds, head) for runner in (reference, candidate))
        for name, x in expected.items():
            y = _partner(name, x, found)
            signals.setdefault(name, []).append(_norm(x))
            noises.setdefault(name, []).append(_norm(x.astype(np.float64) - y))
            single.setdefault(name, []).append(sqnr_db(x, y))
        if progress is not None:
            progress(index + 1, len(inputs))
    return tuple(
        ParityRow(name, _pooled(signals[name], noises[name]), min(single[name]), int(np.argmin(single[name])))
        for name in signals
    )


def _tensors(runner: Runner, feeds: Mapping[str, NDArray[Any]], head: Head | None) -> Mapping[str, NDArray[Any]]:
    specs = runner.signature.inputs
    cast = {name: array.astype(specs[name].dtype) if name in specs else array for name, array in feeds.items()}
    outputs = runner.infer(cast)
    return outputs if head is None else output_blocks(outputs, head)


def _partner(name: str, x: NDArray[Any], found: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if name not in found or found[name].shape != x.shape or not x.size:
        raise UsageError(
            f"output {name!r} of the two networks cannot be compared",
            expected=f"shape {x.shape} with at least one value in both",
            found=f"shape {found[name].shape}" if name in found else ", ".join(found) or "no outputs",
            do="compare two versions of one network, without NMS inside",
        )
    return found[name]


def _norm(values: NDArray[Any]) -> float:
    flat = values.astype(np.float64).ravel()
    return float(np.sqrt(np.dot(flat, flat)))


def _pooled(signals: Sequence[float], noises: Sequence[float]) -> float:
    """SQNR of all inputs together, from the norms alone: noise stands beside the signal, so nothing cancels."""
    quiet = np.zeros(len(signals))
    return sqnr_db(np.concatenate([signals, quiet]), np.concatenate([signals, noises]))
