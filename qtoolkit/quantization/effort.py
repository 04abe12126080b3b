"""What ``--effort`` adds to post-training quantization.

- ``fast``: each range by its own squared error.
- ``balanced``: the two ranges of a SiLU on integers together (``numerics.silu_ranges``), and images count fully whose
  values are up to four times as energetic as usual. Costs no time that could be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qtoolkit.numerics.ranges import RangeEstimator
from qtoolkit.quantization.calibrate import CalibrationStatistics
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.run import Run

__all__ = ["quantizer_of"]

# Beyond fourfold energy, twofold values, an image is odd; rendered ones were found with a hundredfold.
_TOLERANCE = 4.0


def quantizer_of(run: Run, statistics: CalibrationStatistics, means: Mapping[str, NDArray[np.float64]]) -> Quantizer:
    """The quantizer of ``run`` at its effort. Its key names the effort, so that later stages tell efforts apart."""
    estimator, effort = RangeEstimator.from_name(run.recipe.ranges), run.recipe.effort
    if effort == "fast":
        return Quantizer(run.model, run.target, statistics, estimator, means)
    keyed = replace(statistics, key=f"{statistics.key}-balanced")
    return Quantizer(run.model, run.target, keyed, estimator, means, pairs_silu=True, tolerance=_TOLERANCE)
