"""Training images are a function of seed, epoch and position."""

from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.sources import open_data_source
from qtoolkit.training.dataset import TrainingSet, read_labelled_images
from qtoolkit.training.image_cache import ImageCache
from qtoolkit.training.recipe import Augmentation


@pytest.fixture
def build(make_people, tmp_path):
    data = read_labelled_images(open_data_source(make_people(train=6)))
    with ImageCache(data.samples, 96, tmp_path) as cache:

        def build(seed: int = 0, **options) -> TrainingSet:
            return TrainingSet(cache, data.labels, Augmentation(**options), 96, seed)

        yield build


def _arrays(batch):
    return [getattr(batch, name) for name in batch.__dataclass_fields__]


def test_the_same_place_gives_the_same_batch(build):
    indices = np.array([4, 1, 1])
    first = build().batch(indices, 3, 8, 64, True)
    other = build()
    other.batch(indices, 0, 0, 64, True)
    assert all(
        np.array_equal(a, b) for a, b in zip(_arrays(first), _arrays(other.batch(indices, 3, 8, 64, True)), strict=True)
    )


def test_a_batch_is_its_parts(build):
    images = build()
    whole = images.batch(np.array([0, 1, 2, 3]), 1, 0, 64, True)
    second = images.batch(np.array([2, 3]), 1, 2, 64, True)
    assert np.array_equal(whole.images[2:], second.images)
    assert np.array_equal(whole.boxes[whole.person_image >= 2], second.boxes)


@pytest.mark.parametrize("change", ["seed", "epoch", "position"])
def test_another_place_gives_another_image(build, change):
    first = build().image(0, 1, 1, 64, True).image
    if change == "seed":
        second = build(seed=1).image(0, 1, 1, 64, True).image
    else:
        second = build().image(0, 1 + (change == "epoch"), 1 + (change == "position"), 64, True).image
    assert not np.array_equal(first, second)


def test_every_epoch_has_every_image_in_another_order(build):
    orders = [build().order(epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_shapes_and_types_of_a_batch(build):
    batch = build().batch(np.arange(4), 0, 0, 128, False)
    people = len(batch.person_image)
    assert batch.images.shape == (4, 128, 128, 3)
    assert batch.images.dtype == np.uint8
    assert batch.boxes.shape == (people, 4)
    assert batch.boxes.dtype == batch.keypoints.dtype == np.float32
    assert batch.keypoints.shape == (people, 17, 3)
    assert set(np.unique(batch.keypoints[..., 2])) <= {0, 1}
    assert (np.diff(batch.person_image) >= 0).all()
    assert ((batch.boxes[:, :2] >= 0) & (batch.boxes[:, :2] <= 128)).all()


def test_without_mosaic_a_whole_picture_is_seen(build):
    one = build(scale=0, translate=0, flip=0, hue=0, saturation=0, value=0).image(1, 0, 0, 96, False)
    assert (one.image[:12] == 114).all()
    assert len(one.labels.boxes_xyxy) == 1
    assert one.labels.keypoints[0, 0, 1] > 12
