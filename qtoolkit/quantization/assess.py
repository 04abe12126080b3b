"""From quantized networks to rows of the scorecard: what each is, costs, and finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qtoolkit.artifacts.files import sha256_file
from qtoolkit.artifacts.plan import PrecisionPlan
from qtoolkit.artifacts.scorecard import LatencyFigures, ScorecardRow
from qtoolkit.bench.cost import FLOAT_BITS, plan_bops
from qtoolkit.bench.latency_result import LatencyResult
from qtoolkit.data.people import People
from qtoolkit.data.samples import Samples
from qtoolkit.evaluation.agreement import agreement
from qtoolkit.evaluation.coco_ap import coco_keypoint_ap
from qtoolkit.graph.layers import Layer

__all__ = ["accuracy_figures", "latency_figures", "variant_row"]


def variant_row(
    variant: str,
    path: Path,
    plan: PrecisionPlan,
    layers: tuple[Layer, ...],
    gmacs: float,
    accuracy: Mapping[str, Any],
    latency: LatencyFigures | None,
    reading_float: Collection[str] = (),
) -> ScorecardRow:
    """One row: ``plan`` gives the precisions, ``accuracy`` the fields that ``accuracy_figures`` made.

    ``reading_float``: integer layers whose weights alone are on a grid; their activations count as float.
    """
    wide = set(plan.layers_16bit)
    total = sum(layer.macs for layer in layers) or 1
    bits = {name: (precision.weight_bits, precision.activation_bits) for name, precision in plan.layers.items()}
    return ScorecardRow(
        variant=variant,
        file=path.name,
        sha256=sha256_file(path),
        precisions=dict(Counter(precision.value for precision in plan.layers.values())),
        weights_bits=min(pair[0] for pair in bits.values()),
        activation_bits=min(pair[1] for pair in bits.values()),
        layers_16bit=len(wide),
        layers_total=len(layers),
        macs_16bit_share=sum(layer.macs for layer in layers if layer.name in wide) / total,
        gmacs=gmacs,
        bops_g=plan_bops(layers, bits | {name: (bits[name][0], FLOAT_BITS[1]) for name in reading_float}),
        size_mb=path.stat().st_size / 1e6,
        latency=latency,
        **accuracy,
    )


def accuracy_figures(
    predictions: Mapping[int, People], reference: Mapping[int, People], samples: Samples, runtime: str
) -> dict[str, Any]:
    """AP and its kin (where there are labels) and agreement with ``reference``, the float network's people.

    Only images that both networks saw count. ``runtime`` is where the network ran.
    """
    image_ids = [image_id for image_id in samples.image_ids if image_id in predictions and image_id in reference]
    figures: dict[str, Any] = {"accuracy_on": runtime}
    if samples.annotations is not None:
        truth = samples.annotations.ground_truth(image_ids)
        metrics = coco_keypoint_ap(truth, predictions, image_ids)
        figures |= {
            name: None if (value := getattr(metrics, name)) is None else round(value, 3)
            for name in ("ap", "ap50", "ap75", "ap_m", "ap_l", "ar")
        }
        of_float = coco_keypoint_ap(truth, reference, image_ids).ap
        figures["retention"] = round(metrics.ap / of_float, 5) if of_float > 0 else None
    agreed = agreement({i: reference[i] for i in image_ids}, predictions).ap
    figures["agreement"] = None if agreed is None else round(agreed, 3)
    return figures


def latency_figures(result: LatencyResult) -> LatencyFigures:
    """The record of a measurement as it stands in a scorecard."""
    summary = result.summary()
    named = {
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "ratio",
        "ratio_lo",
        "ratio_hi",
        "target",
        "measured",
        "device",
        "runtime",
        "version",
    }
    dropped = {"variant", "model_sha256", "mean_ms", "min_ms"}
    rounded = {
        name: round(summary[name], 4) for name in ("p50_ms", "p90_ms", "p99_ms", "ratio", "ratio_lo", "ratio_hi")
    }
    return LatencyFigures(
        **rounded,
        target=result.target,
        measured=True,
        device=result.device,
        runtime=result.runtime,
        version=result.version,
        images_per_second=round(result.images_per_second, 3),
        conditions={name: value for name, value in summary.items() if name not in named | dropped},
    )
