"""The photos that quantization-aware training learns from: without labels, and none that is evaluated on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qtoolkit.data.calibration_set import CalibrationSet, check_disjoint
from qtoolkit.data.samples import Samples
from qtoolkit.data.sources import DataSource, open_data_source
from qtoolkit.recipe import Recipe

__all__ = ["learning_photos"]


def learning_photos(
    recipe: Recipe,
    source: DataSource,
    evaluated: Samples,
    calibration: CalibrationSet,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> CalibrationSet:
    """Photos of ``recipe.unlabeled``; else those of the part unlabeled of ``source``, the data set of the run, that are
    not evaluated on; else those of ``calibration``.

    Raises DataSetError where what ``recipe.unlabeled`` names cannot be opened, has no usable photo, or has one that is
    evaluated on.
    """
    if recipe.unlabeled is not None:
        given = open_data_source(
            recipe.unlabeled, parts=("train",), progress=lambda done, total: progress("rendering people", done, total)
        )
        photos = CalibrationSet.from_split(given.learning_split("--unlabeled"))
        check_disjoint(photos, evaluated)
        return photos
    if source.unlabeled is not None:
        photos, hashes = CalibrationSet.from_split(source.unlabeled), {sample.sha256 for sample in evaluated}
        # A plain folder of photos is its own unlabeled part as a whole, and half of it is evaluated on.
        kept = tuple(image for image in photos.images if image.sha256 not in hashes)
        if kept:
            return replace(photos, images=kept)
    return calibration
