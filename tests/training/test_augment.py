"""Where pixels and labels of a training image come to lie."""

from __future__ import annotations

import numpy as np
import pytest

from qtoolkit.data.letterbox import PAD_VALUE
from qtoolkit.data.skeletons import COCO17
from qtoolkit.training.augment import Placement, Tile, change_colours, mosaic_placements, one_placement, paint
from qtoolkit.training.labels import ImageLabels
from qtoolkit.training.recipe import Augmentation

SIZE = 128


def _labels(keypoints_xy, box=None, crowds=()) -> ImageLabels:
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, :, :2] = keypoints_xy
    keypoints[0, :, 2] = 2
    low, high = keypoints[0, :, :2].min(0), keypoints[0, :, :2].max(0)
    boxes = np.array([box if box is not None else [*(low - 1), *(high + 1)]], np.float32)
    return ImageLabels(boxes, keypoints, np.array([True]), np.array(crowds, np.float32).reshape(-1, 4))


def _marked_tile(seed: int, size_wh=(96, 72), ratio=(1.0, 1.0)) -> Tile:
    """A dark tile with a 7x7 square of a colour of its own around each keypoint."""
    random = np.random.default_rng(seed)
    places = random.permutation([(x, y) for x in range(6, 90, 10) for y in range(6, 66, 10)])[:17]
    image = np.full((size_wh[1], size_wh[0], 3), 10, np.uint8)
    for keypoint, (x, y) in enumerate(places):
        image[y - 3 : y + 4, x - 3 : x + 4] = (60 + 10 * keypoint, 255 - 10 * keypoint, 40 * seed)
    # The centre of pixel 6 lies at 6.5; labels are in pixels of a picture `ratio` smaller.
    return Tile(image, _labels((places + 0.5) / ratio), ratio)


def _assert_keypoints_on_their_colours(painted, tiles, mirrored) -> int:
    seen = 0
    names = np.arange(17) if not mirrored else np.array(COCO17.flip_order)
    assert len(painted.labels.keypoints) == len(tiles)
    for tile_index, person in zip(tiles, painted.labels.keypoints, strict=True):
        for keypoint, (x, y, visibility) in zip(names, person, strict=True):
            if visibility and 1 < x < SIZE - 1 and 1 < y < SIZE - 1:
                expected = (60 + 10 * keypoint, 255 - 10 * keypoint, 40 * tile_index)
                assert np.abs(painted.image[int(y), int(x)].astype(int) - expected).max() < 12, (keypoint, x, y)
                seen += 1
    return seen


@pytest.mark.parametrize("mirrored", [False, True], ids=["as it is", "mirrored"])
@pytest.mark.parametrize("seed", range(4))
def test_keypoints_of_one_image_stay_on_their_pixels(seed, mirrored):
    options = Augmentation(scale=0.3, flip=float(mirrored))
    tile = _marked_tile(seed, ratio=(0.5, 0.5))
    placement = one_placement((96, 72), SIZE, 96, options, np.random.default_rng(seed))
    painted = paint([tile], [placement], SIZE)
    assert _assert_keypoints_on_their_colours(painted, [seed], mirrored) >= 5


@pytest.mark.parametrize("mirrored", [False, True], ids=["as it is", "mirrored"])
@pytest.mark.parametrize("seed", range(6))
def test_keypoints_of_a_mosaic_stay_on_their_pixels(seed, mirrored):
    options = Augmentation(scale=0.3, flip=float(mirrored))
    tiles = [_marked_tile(each) for each in range(4)]
    placements = mosaic_placements([(96, 72)] * 4, SIZE, 96, options, np.random.default_rng(seed))
    painted = paint(tiles, placements, SIZE)
    # A tile may leave the image: its person is recognised by where it went, not by its place in the list.
    alone = [paint([tile], [placement], SIZE).labels for tile, placement in zip(tiles, placements, strict=True)]
    left = [index for index, labels in enumerate(alone) if len(labels.keypoints)]
    assert _assert_keypoints_on_their_colours(painted, left, mirrored) >= 5


def test_tiles_of_a_mosaic_meet_and_do_not_overlap():
    options = Augmentation(scale=0.0, translate=0.0, flip=0.0)
    placements = mosaic_placements([(96, 72), (50, 96), (96, 96), (96, 40)], 96, 96, options, np.random.default_rng(3))
    ends = [(x + (96, 50, 96, 96)[i], y + (72, 96, 96, 40)[i]) for i, (_, (x, y)) in enumerate(placements)]
    centre = ends[0]
    assert (placements[1].offset_xy[0], ends[1][1]) == pytest.approx(centre)
    assert (ends[2][0], placements[2].offset_xy[1]) == pytest.approx(centre)
    assert placements[3].offset_xy == pytest.approx(centre)


def test_without_change_one_image_is_centred_and_whole():
    options = Augmentation(scale=0.0, translate=0.0, flip=0.0)
    tile = _marked_tile(1)
    placement = one_placement((96, 72), 96, 96, options, np.random.default_rng(0))
    painted = paint([tile], [placement], 96)
    assert np.array_equal(painted.image[12:84], tile.image)
    assert (painted.image[:12] == PAD_VALUE).all()
    assert (painted.image[84:] == PAD_VALUE).all()


def test_mirroring_swaps_left_and_right_and_keeps_the_nose():
    points = np.stack([np.arange(17) * 4 + 20, np.full(17, 50)], axis=1).astype(np.float32)
    mirrored = Placement((-1.0, 1.0), (float(SIZE), 0.0))
    labels = _labels(points, box=(19, 40, 85, 60))
    painted = paint([Tile(np.zeros((SIZE, SIZE, 3), np.uint8), labels, (1, 1))], [mirrored], SIZE)
    x = painted.labels.keypoints[0, :, 0]
    assert x[0] == SIZE - points[0, 0]
    assert x[COCO17.keypoint_names.index("left_wrist")] == SIZE - points[COCO17.keypoint_names.index("right_wrist"), 0]
    assert painted.labels.boxes_xyxy[0].tolist() == [SIZE - 85, 40, SIZE - 19, 60]


def test_keypoints_that_leave_the_image_are_not_visible_and_boxes_are_clipped():
    points = np.stack([np.linspace(-30, 60, 17), np.full(17, 50)], axis=1).astype(np.float32)
    tile = Tile(np.zeros((SIZE, SIZE, 3), np.uint8), _labels(points, box=(-30, 40, 60, 60)), (1, 1))
    painted = paint([tile], [Placement((1.0, 1.0), (0.0, 0.0))], SIZE)
    assert ((painted.labels.keypoints[0, :, 2] > 0) == (points[:, 0] >= 0)).all()
    assert painted.labels.boxes_xyxy[0].tolist() == [0, 40, 60, 60]


@pytest.mark.parametrize(
    ("box", "offset", "kept"),
    [
        pytest.param((10, 10, 50, 50), (0, 0), True, id="whole"),
        pytest.param((10, 10, 50, 50), (-44, 0), True, id="15 % left"),
        pytest.param((10, 10, 50, 50), (-47, 0), False, id="7 % left"),
        pytest.param((10, 10, 12, 50), (0, 0), False, id="two pixels wide"),
        pytest.param((10, 10, 14, 95), (0, 0), False, id="1 : 21"),
    ],
)
def test_people_of_whom_too_little_stays_are_left_out(box, offset, kept):
    tile = Tile(np.zeros((SIZE, SIZE, 3), np.uint8), _labels(np.full((17, 2), 20.0), box), (1, 1))
    painted = paint([tile], [Placement((1.0, 1.0), offset)], SIZE)
    assert len(painted.labels.boxes_xyxy) == len(painted.labels.keypoints) == len(painted.labels.labelled) == kept


def test_crowds_come_along():
    labels = _labels(np.full((17, 2), 20.0), crowds=[(10, 10, 30, 20)])
    painted = paint(
        [Tile(np.zeros((64, 64, 3), np.uint8), labels, (1, 1))], [Placement((-2.0, 2.0), (100.0, 5.0))], 128
    )
    # The visible part of the tile ends within a pixel of it: what is drawn is smaller by less than 1 %.
    assert painted.labels.crowds_xyxy[0] == pytest.approx([40, 25, 80, 45], abs=0.5)


def test_no_change_of_colours_gives_rgb():
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    changed = change_colours(image, Augmentation(hue=0, saturation=0, value=0), np.random.default_rng(0))
    # Hue in steps of 2 degrees moves a value by a few.
    assert np.abs(changed.astype(int) - image[..., ::-1]).max() <= 6


def test_value_scales_grey():
    grey = np.full((4, 4, 3), 100, np.uint8)
    found = {int(change_colours(grey, Augmentation(), np.random.default_rng(seed))[0, 0, 0]) for seed in range(50)}
    assert 60 <= min(found) < 75
    assert 125 < max(found) <= 140


@pytest.mark.parametrize("mirrored", [False, True], ids=["as it is", "mirrored"])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_drawn_is_off_by_a_pixel_at_most(seed, mirrored):
    random = np.random.default_rng(seed)
    scale, offset = random.uniform(0.3, 2.5), random.uniform(-60, 60, 2)
    placement = Placement((-scale if mirrored else scale, scale), (offset[0] + SIZE * mirrored, offset[1]))
    points = random.uniform(5, 90, (17, 2)).astype(np.float32)
    box = (1.0, 1.0, 95.0, 95.0)
    painted = paint([Tile(np.zeros((96, 96, 3), np.uint8), _labels(points, box=box), (1, 1))], [placement], SIZE)
    order = COCO17.flip_order if mirrored else range(17)
    expected = points[list(order)] * placement.scale_xy + placement.offset_xy
    for person in painted.labels.keypoints:
        inside = person[:, 2] > 0
        assert np.abs(person[inside, :2] - expected[inside]).max(initial=0.0) <= max(1.0, scale) + 1e-3


def test_a_tile_that_is_not_scaled_is_copied():
    random = np.random.default_rng(0)
    tile = Tile(random.integers(0, 256, (64, 64, 3), np.uint8), _labels(random.uniform(5, 60, (17, 2))), (1, 1))
    for scale_x, x, columns in ((1.0, 10.0, slice(None)), (-1.0, 74.0, slice(None, None, -1))):
        painted = paint([tile], [Placement((scale_x, 1.0), (x, 20.0))], SIZE)
        assert np.array_equal(painted.image[20:84, 10:74], tile.image[:, columns])
