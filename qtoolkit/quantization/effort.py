"""What ``--effort`` adds to post-training quantization.

- ``fast``: each range by its own squared error.
- ``balanced``: the two ranges of a SiLU on integers together (``numerics.silu_ranges``), and images count fully whose
  values are up to four times as energetic as usual. Costs no time that could be measured.
- ``best``: then the first blocks of the network are learned (``learned_network``), which needs torch, on the photos
  that QAT without labels would learn from. Where PTQ's network keeps more on the judge's photos, it stays.

Which corrections those are says ``qtoolkit.corrections``; a recipe can name others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

import qtoolkit
from qtoolkit.artifacts.files import sha256_json, write_text
from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.corrections import NEEDS_TORCH
from qtoolkit.data.calibration_set import CalibrationSet
from qtoolkit.data.sources import open_data_source
from qtoolkit.numerics.ranges import RangeEstimator
from qtoolkit.quantization.bias_correction import read_means, write_means
from qtoolkit.quantization.calibrate import CalibrationStatistics
from qtoolkit.quantization.empirical_bias import empirical_biases
from qtoolkit.quantization.learning_photos import plain_photos
from qtoolkit.quantization.output_ranges import output_ranges
from qtoolkit.quantization.plan_judge import better_network, is_no_worse
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.run import Run

__all__ = ["quantized_network", "quantizer_of", "with_plan_biases", "with_searched_ranges", "without_biases"]

_BIAS_IMAGES = 32
# Beyond fourfold energy, twofold values, an image is odd; rendered ones were found with a hundredfold.
_TOLERANCE = 4.0
# A third to choose ranges on, a third to confirm them, a third to try all of them together.
_SEARCH_PHOTOS = 18


def quantizer_of(run: Run, statistics: CalibrationStatistics, means: Mapping[str, NDArray[np.float64]]) -> Quantizer:
    """The quantizer of ``run``. Its key names effort and corrections, so that later stages tell them apart."""
    estimator, effort, chosen = RangeEstimator.from_name(run.recipe.ranges), run.recipe.effort, run.corrections
    learned_on = [_photos(run).sha256[:16]] if NEEDS_TORCH & chosen else []
    keyed = replace(statistics, key="-".join([statistics.key, effort, *sorted(chosen), *learned_on]))
    tolerance = 1.0 if effort == "fast" else _TOLERANCE
    return Quantizer(run.model, run.target, keyed, estimator, means, "silu-pairs" in chosen, tolerance,
                     "split-scales" in chosen)  # fmt: skip


def with_searched_ranges(run: Run, quantizer: Quantizer) -> Quantizer:
    """``quantizer`` with the ranges of the correction ``output-ranges``, where it is chosen, and a key that names them.

    They are kept in the output folder. Raises as ``output_ranges`` does.
    """
    if "output-ranges" not in run.corrections:
        return quantizer
    plan, photos = run.uniform_plan(Precision.INT8), min(_SEARCH_PHOTOS, len(run.calibration))
    inputs = [
        run.model_sha256, quantizer.statistics.key, run.recipe.ranges, run.recipe.head, photos,
        plan.model_dump(mode="json"), qtoolkit.__version__,
    ]  # fmt: skip
    path = run.store.path("output-ranges", f"{sha256_json(inputs)[:16]}.json")

    def search() -> None:
        found = output_ranges(
            quantizer, plan.layers, run.head, run.calibration_feeds(photos), threads=run.recipe.threads,
            integer_kernels=run.runs_here,
            progress=lambda done, total: run.progress("searching ranges by the outputs", done, total),
        )  # fmt: skip
        write_text(path, json.dumps([[*key, *bounds] for key, bounds in found.items()], indent=1) + "\n")

    run.store.run("output-ranges", inputs, [path], search)
    ranges = {(tensor, bits): (lo, hi) for tensor, bits, lo, hi in json.loads(path.read_text(encoding="utf-8"))}
    key = "-".join([quantizer.statistics.key, sha256_json(sorted([*k, *v] for k, v in ranges.items()))[:16]])
    return replace(quantizer.with_ranges(ranges), statistics=replace(quantizer.statistics, key=key))


def with_plan_biases(run: Run, quantizer: Quantizer, plan: PrecisionPlan) -> Quantizer:
    """``quantizer`` with the biases measured under ``plan``, where ``run`` corrects them so; else as it is.

    They are kept in ``OUT/.stages/biases/``. None are where the judge's photos show the network to be worse with them:
    a mean that a few clipped places make moves all the others too.
    """
    if "bias-empirical" not in run.corrections:
        return quantizer
    inputs = [run.model_sha256, quantizer.statistics.key, run.recipe.ranges, plan.model_dump(mode="json")]
    key = sha256_json([*inputs, qtoolkit.__version__])
    path = run.store.path("biases", f"{key[:16]}.npz")
    biases = read_means(path)
    if biases is None:
        biases = empirical_biases(
            quantizer, plan, lambda: run.calibration_feeds(_BIAS_IMAGES), threads=run.recipe.threads,
            progress=lambda done, total: run.progress("correcting biases", done, total),
        )  # fmt: skip
        if biases and not is_no_worse(run, quantizer, plan, replace(quantizer, biases=biases).quantize(plan).model):
            biases = {}
        write_means(path, biases)
    return replace(quantizer, biases=biases)


def without_biases(run: Run, quantizer: Quantizer, plans: Mapping[str, PrecisionPlan]) -> list[str]:
    """Variants with integer layers in which no bias was corrected, though ``run`` was to measure them."""
    if "bias-empirical" not in run.corrections:
        return []
    integer = {
        variant: plan for variant, plan in plans.items() if plan.layers_at(Precision.INT8) and "-qat" not in variant
    }
    return [name for name, plan in integer.items() if not with_plan_biases(run, quantizer, plan).biases]


def quantized_network(run: Run, quantizer: Quantizer, variant: str, plan: PrecisionPlan) -> onnx.ModelProto:
    """The network of a variant, at the effort of ``run``."""
    quantizer = with_plan_biases(run, quantizer, plan)
    learning = NEEDS_TORCH & run.corrections
    if not learning or not plan.layers_at(Precision.INT8):
        return quantizer.quantize(plan).model
    # Only here: everything else runs without torch.
    from qtoolkit.quantization.learned_network import learn_network

    key = sha256_json([run.model_sha256, quantizer.statistics.key, run.recipe.ranges, plan.model_dump(mode="json")])
    folder = run.store.path("learning", f"{variant}-{key[:12]}", "folder").parent
    # What is learned has a scale for each weight of the graph as it is.
    learned = learn_network(
        replace(quantizer, splits_scales=False), plan, run.head, _photos(run), learning, folder,
        threads=run.recipe.threads,
        progress=lambda correction, done, total: run.progress(f"learning {correction} of {variant}", done, total),
    )  # fmt: skip
    return better_network(run, quantizer, plan, learned)


def _photos(run: Run) -> CalibrationSet:
    return plain_photos(run.recipe, open_data_source(run.recipe.data), run.samples, run.calibration)
