"""The photos that quantization-aware training learns from, with labels or without: none that is evaluated on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qtoolkit.data.calibration_set import CalibrationSet, check_disjoint
from qtoolkit.data.samples import Samples
from qtoolkit.data.sources import DataSource, open_data_source
from qtoolkit.errors import DataSetError
from qtoolkit.recipe import Recipe
from qtoolkit.training.dataset import LabelledImages, read_labelled_images

__all__ = ["LearningSet", "learning_photos", "plain_photos"]

LearningSet = CalibrationSet | LabelledImages
"""Plain photos, which the float network alone teaches on, or labelled ones."""


def learning_photos(
    recipe: Recipe,
    source: DataSource,
    evaluated: Samples,
    calibration: CalibrationSet,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> LearningSet:
    """Labelled photos of ``recipe.labelled``, else ``plain_photos``.

    Raises as that does, and DataSetError where ``recipe.labelled`` has no labels or a photo that is evaluated on.
    """
    if recipe.labelled is None:
        return plain_photos(recipe, source, evaluated, calibration, progress)
    given = open_data_source(
        recipe.labelled, parts=("train",), progress=lambda done, total: progress("rendering people", done, total)
    )
    return _labelled(given, evaluated)


def plain_photos(
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


def _labelled(given: DataSource, evaluated: Samples) -> LabelledImages:
    """The part train of ``given`` or, without one, calib."""
    images = read_labelled_images(replace(given, train=given.train or given.calib), option="--labelled")
    hashes = {sample.sha256 for sample in evaluated}
    both = [sample.path.name for sample in images.samples if sample.sha256 in hashes]
    if both:
        raise DataSetError(
            f"{len(both)} of the {len(images.samples)} photos to fine-tune on are evaluation photos too",
            expected="no photo in both: figures measured on photos that were learned from are too good",
            found=", ".join(both[:5]) + (f" and {len(both) - 5} more" if len(both) > 5 else ""),
            do="take them out of the part train, or give other photos with --labelled",
        )
    return images
