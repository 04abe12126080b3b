"""How far a build is, from TensorRT's own progress monitor: minutes on a GPU, during which nothing else is told.

TensorRT has one from 10 on, TensorRT-RTX always; before, a build can neither be followed nor ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["BuildProgress", "progress_monitor"]

BuildProgress = Callable[[str, int, int], None]
"""Called with (phase, as TensorRT names it, done, total)."""

# Shorter phases are steps of longer ones, or over at once.
_FEWEST_STEPS = 10


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
