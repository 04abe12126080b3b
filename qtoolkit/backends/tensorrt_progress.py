"""How far a build is: minutes on a GPU, during which nothing else is told.

TensorRT has a progress monitor from 10 on, TensorRT-RTX always, through which a build can be ended too. Before, it says
which layer it times kernels of, in messages such as ``--------------- Timing Runner: Conv_1 + Relu_2
(CaskConvolution)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["BuildProgress", "heard_of_layers", "progress_monitor"]

BuildProgress = Callable[[str, int, int], None]
"""Called with (phase, as TensorRT names it, done, total)."""

# Shorter phases are steps of longer ones, or over at once.
_FEWEST_STEPS = 10
_TIMED = re.compile(r"Timing Runner: (.+) \([^()]*\)$")
_FUSED = re.compile(r" \+ | \|\| ")


def heard_of_layers(report: BuildProgress, layers: int) -> Callable[[str], None]:
    """What tells ``report`` of the layers, of so many, that are named in the verbose messages it is called with."""
    timed: set[str] = set()

    def hear(text: str) -> None:
        found = _TIMED.search(text)
        new = set(_FUSED.split(found[1])) - timed if found else None
        if new:
            timed.update(new)
            report("timing kernels of layers", min(len(timed), layers), layers)

    return hear


def progress_monitor(trt: Any, report: BuildProgress) -> Any:
    """An ``IProgressMonitor`` for ``trt`` that calls ``report``; None where this version has none.

    What ``report`` raises, a KeyboardInterrupt above all, must not run through TensorRT: it ends the build, and
    ``raise_again``, called behind that, raises it.
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._raised: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = int(num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self._steps.get(phase_name, 0)
            if self._raised is None and total >= _FEWEST_STEPS:
                try:
                    report(phase_name, min(int(step) + 1, total), total)
                except BaseException as error:  # noqa: BLE001 - raised again behind the build
                    self._raised = error
            return self._raised is None

        def raise_again(self) -> None:
            error, self._raised = self._raised, None
            try:
                if error is not None:
                    raise error
            finally:
                # Its traceback holds this frame and the builder, which is to go with it.
                del error

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
