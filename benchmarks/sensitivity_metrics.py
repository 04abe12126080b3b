"""All sensitivity metrics on the same labelled photos: how far they agree, what they cost, what they lead to.

usage: python benchmarks/sensitivity_metrics.py MODEL DATA [--photos N] [--images N] [--mixed 0.3] [--halves]
                                                [--metrics M ...] [--target T] [--corrections [NAME ...]] [--out DIR]

One row a metric: Spearman's rank correlation with ``ap`` (COCO AP lost by each layer quantized alone) and with ``oks``,
seconds and processor seconds with their ratio to those of ``ap``, and the AP on the evaluation photos of the mixed
network it leads to. In brackets: the correlation with ``ap`` among the layers that lose more AP than any layer happens
to gain, which is what chance moves AP by; among the others there is no order to find. ``--halves`` also ranks by ``ap``
on each half of the photos: how far they agree says how far any metric can agree with ``ap``. All is kept in DIR; what
is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import qtoolkit
from qtoolkit.artifacts.files import prepare_out_dir, write_text
from qtoolkit.artifacts.plan import Precision
from qtoolkit.artifacts.sensitivity import Sensitivity
from qtoolkit.artifacts.stages import StageStore
from qtoolkit.evaluation.coco_ap import coco_keypoint_ap
from qtoolkit.numerics.rank_correlation import spearman
from qtoolkit.pipeline import Run, calibrate_stage, evaluate_stage, open_run, quantize_stage, select_stage
from qtoolkit.quantization.labelled_photos import LabelledPhotos
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.sensitivity import METRICS, Metric, analyse_sensitivity
from qtoolkit.recipe import Recipe


def ranking_inputs(run: Run, quantizer: Quantizer, metric: Metric, photos: LabelledPhotos) -> list[Any]:
    """What a ranking depends on."""
    return [run.model_sha256, quantizer.statistics.key, metric, photos.samples.sha256, qtoolkit.__version__]


def rank(
    run: Run, quantizer: Quantizer, metric: Metric, photos: LabelledPhotos, name: str
) -> tuple[Sensitivity, float]:
    """The ranking and its processor seconds, from the files of an earlier run where they are still right."""
    path, times = run.out / f"{name}.json", run.out / f"{name}.times.json"

    def make() -> None:
        started = time.process_time()
        ranking = analyse_sensitivity(
            quantizer, run.head, photos, metric=metric, threads=run.recipe.threads,
            calibration_sha256=run.calibration.sha256, model_sha256=run.model_sha256,
        )  # fmt: skip
        write_text(times, json.dumps({"processor_s": time.process_time() - started}) + "\n")
        ranking.write(path)

    run.store.run(f"rank-{name}", ranking_inputs(run, quantizer, metric, photos), [path, times], make)
    return Sensitivity.read(path), float(json.loads(times.read_text(encoding="utf-8"))["processor_s"])


def ap_of(run: Run, variant: str) -> float:
    """AP on the evaluation photos, 0–100."""
    people = evaluate_stage(run, variant)
    labels = run.samples.annotations
    return math.nan if labels is None else coco_keypoint_ap(labels.ground_truth(people), people, people).ap


def mixed_ap(run: Run, quantizer: Quantizer, ranking: Sensitivity) -> tuple[float, int]:
    """AP of the mixed network that a ranking leads to, and its number of 16-bit layers."""
    mine = replace(run, store=StageStore(prepare_out_dir(run.out / ranking.metric)))
    plan = select_stage(mine, quantizer, ranking)
    quantize_stage(mine, quantizer, plan)
    return ap_of(mine, "mixed"), 0 if plan is None else len(plan.layers_16bit)


def losing(losses: Sequence[float]) -> list[int]:
    """Positions of the layers that lose more than the largest gain of any."""
    chance = max(0.0, -min(losses))
    return [position for position, loss in enumerate(losses) if loss > chance]


def correlation_of_losing(losses: Sequence[float], of_ap: Sequence[float]) -> float:
    """Spearman's correlation of a metric's losses with those of ``ap`` among ``losing``; NaN for fewer than three."""
    chosen = losing(of_ap)
    return spearman([losses[i] for i in chosen], [of_ap[i] for i in chosen]) if len(chosen) > 2 else math.nan


def halves(run: Run, quantizer: Quantizer, photos: LabelledPhotos) -> float:
    """Rank correlation of the AP lost on one half of the photos (every other one) with that on the other half."""
    losses = []
    for half in (0, 1):
        part = replace(photos, samples=replace(photos.samples, samples=photos.samples.samples[half::2]))
        ranking, _ = rank(run, quantizer, "ap", part, f"ap-half{half}")
        losses.append([row.loss for row in ranking.layers])
    return spearman(*losses)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=1000, help="labelled photos to rank on, at most")
    parser.add_argument("--images", type=int, help="evaluation photos; all by default")
    parser.add_argument("--mixed", type=float, default=0.3)
    parser.add_argument("--halves", action="store_true")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=METRICS, help="ap is always among them")
    parser.add_argument("--target", default="ort-cpu")
    parser.add_argument("--corrections", nargs="*", help="by name; without any: none; as `qtool quantize` by default")
    parser.add_argument("--calibration-images", type=int, help="photos to calibrate on; as `qtool quantize` by default")
    parser.add_argument("--out", type=Path, default=Path("runs/sensitivity_metrics"))
    options = parser.parse_args(arguments)
    recipe = Recipe(
        model=options.model, data=options.data, out=options.out, metric="ap", mixed=options.mixed,
        images=options.images, sensitivity_images=options.photos, runs=0,
        target=options.target, calibration_images=options.calibration_images,
        corrections=None if options.corrections is None else tuple(options.corrections),
    )  # fmt: skip
    run = open_run(recipe)
    quantizer = calibrate_stage(run)
    photos = run.labelled
    if photos is None:
        raise SystemExit("no labelled photos")
    # Ranges are found once, for all metrics.
    quantizer.quantize_only({layer.name: Precision.INT8 for layer in run.layers})
    metrics = [metric for metric in METRICS if metric in options.metrics or metric == "ap"]
    found = {metric: rank(run, quantizer, metric, photos, metric) for metric in metrics}
    losses = {metric: [row.loss for row in ranking.layers] for metric, (ranking, _) in found.items()}
    print(
        f"{len(run.layers)} layers, {found['ap'][0].images} labelled photos of {photos.part}, {len(run.samples)} of val"
    )
    print(f"float AP {ap_of(run, 'float'):.2f} on val")
    of_ap, clear = found["ap"], len(losing(losses["ap"]))
    print(f"{clear} layers lose more AP than any gains")
    print("metric  Spearman: ap (clear)    oks  seconds  of ap  processor s  of ap  AP of mixed  16-bit layers")
    for metric, (ranking, processor_s) in found.items():
        ap, wide = mixed_ap(run, quantizer, ranking)
        clear_text = f"({correlation_of_losing(losses[metric], losses['ap']):.3f})"
        print(
            f"{metric:6} {spearman(losses[metric], losses['ap']):12.3f}"
            f" {clear_text:>7}"
            f" {spearman(losses[metric], losses['oks']) if 'oks' in losses else math.nan:6.3f}"
            f" {ranking.seconds:8.1f} {ranking.seconds / of_ap[0].seconds:6.1%} {processor_s:11.1f}"
            f" {processor_s / of_ap[1]:6.1%} {ap:11.2f} {wide:12}"
        )
    if options.halves:
        agreed = halves(run, quantizer, photos)
        whole = 2 * agreed / (1 + agreed) if agreed > -1 else math.nan
        print(f"ap on one half of the photos against the other: {agreed:.3f}")
        print(f"reliability of ap on all photos (Spearman-Brown): {whole:.3f}")


if __name__ == "__main__":
    main()
