"""The loss, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qtoolkit.data.skeletons import COCO17
from qtoolkit.training.losses import BALANCE, GAINS, PoseLoss, Targets, ciou, keypoint_gain

ANCHORS = torch.tensor([[[8.0, 8.0], [100, 100], [200, 200]]])
STRIDES = (8,)
CELLS = ((2, 2), (3, 2), (2, 3))
"""Column and row of the cells that see a centre at 21, 21: that is 2.625 cells."""
K = 17


def _targets(
    boxes=((21.0, 21, 8, 8),), keypoints=None, labelled=None, images=None, crowds=(), crowd_images=()
) -> Targets:
    count = len(boxes)
    points = torch.zeros(count, K, 3) if keypoints is None else keypoints
    return Targets(
        person_image=torch.tensor(images or [0] * count, dtype=torch.int64),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        keypoints=points,
        labelled=torch.ones(count, dtype=torch.bool) if labelled is None else torch.tensor(labelled),
        crowd_image=torch.tensor(crowd_images, dtype=torch.int64),
        crowds_xyxy=torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4),
    )


def _raw(images: int = 1, cells: int = 4) -> torch.Tensor:
    return torch.zeros(images, 3, cells, cells, 6 + 3 * K)


def _loss(kind: str = "oks", **options) -> PoseLoss:
    return PoseLoss(ANCHORS, STRIDES, kind, **options)


def test_ciou_of_equal_boxes_is_one():
    boxes = torch.tensor([[3.0, 4, 2, 5]])
    complete, plain = ciou(boxes, boxes)
    assert complete.item() == pytest.approx(1, abs=1e-5)
    assert plain.item() == pytest.approx(1, abs=1e-5)


def test_ciou_by_hand():
    a, b = torch.tensor([[1.0, 1, 2, 2]]), torch.tensor([[2.0, 1, 2, 4]])
    # Boxes (0,0)-(2,2) and (1,-1)-(3,3): shared 1x2, union 4 + 8 - 2; enclosing 3x4; centres 1 apart.
    iou = 2 / 10
    v = 4 / math.pi**2 * (math.atan(2 / 4) - math.atan(1)) ** 2
    expected = iou - 1 / 25 - v / (v - iou + 1) * v
    complete, plain = ciou(a, b)
    assert plain.item() == pytest.approx(iou, abs=1e-6)
    assert complete.item() == pytest.approx(expected, abs=1e-6)


def test_a_box_is_matched_in_three_cells_and_scored_by_its_distance():
    targets = _targets()
    _, parts = _loss()([_raw()], targets)
    # Zero logits: the predicted box has sides of its anchor, 8 px, and its centre in the middle of the cell.
    boxes = [torch.tensor([[0.5, 0.5, 1.0, 1.0]])] * 3
    wanted = [torch.tensor([[2.625 - x, 2.625 - y, 1.0, 1.0]]) for x, y in CELLS]
    expected = np.mean([1 - ciou(one, two)[0].item() for one, two in zip(boxes, wanted, strict=True)])
    assert parts[0].item() == pytest.approx(GAINS["box"] * expected, rel=1e-5)


def test_objectness_is_the_overlap_where_matched_and_zero_elsewhere():
    targets = _targets()
    raw = _raw()
    raw[..., 4] = 1.0
    _, parts = _loss()([raw], targets)
    # Boxes of one cell's size, from their cell's middle an eighth of a cell away along both axes, or 7/8 along one.
    shared = [(7 / 8) ** 2, 7 / 8 * 1 / 8, 7 / 8 * 1 / 8]
    background = math.log(1 + math.e)
    per_cell = [background - area / (2 - area) for area in shared] + [background] * (3 * 16 - 3)
    assert parts[1].item() == pytest.approx(BALANCE[0] * np.mean(per_cell), rel=1e-4)


def test_oks_loss_by_hand():
    keypoints = torch.zeros(1, K, 3)
    keypoints[0, 0] = torch.tensor([24.0, 20.0, 1])  # the nose, half a cell to the right of where zero logits put it
    _, parts = _loss()([_raw()], _targets(keypoints=keypoints))
    sigma, area = COCO17.sigmas[0], 1.0
    # Zero logits put keypoints at -0.5 cells from the corner of each of the cells (2,2), (3,2), (2,3).
    squared = [(3.0 - x + 0.5) ** 2 + (2.5 - y + 0.5) ** 2 for x, y in CELLS]
    expected = np.mean([1 - math.exp(-d / (4 * sigma**2 * area)) for d in squared])
    assert parts[2].item() == pytest.approx(GAINS["keypoints"] * expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["l1", "l1-scaled"])
def test_l1_losses_by_hand(kind):
    keypoints = torch.zeros(1, K, 3)
    keypoints[0, 5] = torch.tensor([24.0, 20.0, 1])
    _, parts = _loss(kind)([_raw()], _targets(boxes=((21.0, 21, 16, 8),), keypoints=keypoints))
    cells = [(abs(3.0 - x + 0.5) + abs(2.5 - y + 0.5)) / 2 for x, y in CELLS]
    divisor = math.sqrt(2.0 * 1.0) if kind == "l1-scaled" else 1.0
    assert parts[2].item() == pytest.approx(keypoint_gain(kind) * np.mean(cells) / divisor, rel=1e-5)


def test_wide_sigmas_reach_far_keypoints():
    keypoints = torch.zeros(1, K, 3)
    keypoints[0, 0] = torch.tensor([180.0, 20.0, 1])  # a nose 20 cells away
    gradients = []
    for widths in ((1.0,), (512.0,), (1.0, 512.0)):
        raw = _raw().requires_grad_()
        _loss()([raw], _targets(keypoints=keypoints), widths)[0].backward()
        gradients.append(raw.grad[..., 6].abs().max().item())
    assert gradients[0] == 0
    assert gradients[1] > 1e-4
    assert gradients[2] == pytest.approx(gradients[1] / 2)


def test_an_oks_loss_that_is_right_has_no_loss_and_one_far_off_is_one():
    keypoints = torch.full((1, K, 3), 20.0)
    keypoints[..., 2] = 1
    raw = _raw()
    for x, y in CELLS:
        raw[0, 0, y, x, 6::3] = (2.5 - x + 0.5) / 2
        raw[0, 0, y, x, 7::3] = (2.5 - y + 0.5) / 2
    assert _loss()([raw], _targets(keypoints=keypoints))[1][2].item() == pytest.approx(0, abs=1e-6)
    raw[..., 6::3] = 100
    assert _loss()([raw], _targets(keypoints=keypoints))[1][2].item() == pytest.approx(GAINS["keypoints"])


def test_confidence_is_of_labelled_people_only():
    keypoints = torch.zeros(2, K, 3)
    keypoints[0, :5, 2] = 1
    raw = _raw(images=2)
    raw[..., 8::3] = 2.0
    targets = _targets(boxes=((21.0, 21, 8, 8),) * 2, keypoints=keypoints, labelled=[True, False], images=[0, 1])
    _, parts = _loss()([raw], targets)
    background = math.log(1 + math.e**2)
    expected = (5 * (background - 2) + 12 * background) / 17
    assert parts[3].item() == pytest.approx(GAINS["confidence"] * expected, rel=1e-5)


def test_a_person_without_labelled_keypoints_gives_its_box_alone():
    raw = _raw().requires_grad_()
    loss, parts = _loss()([raw], _targets(labelled=[False]))
    loss.backward()
    assert parts[2:].tolist() == [0.0, 0.0]
    assert raw.grad[..., 6:].abs().max() == 0
    assert raw.grad[..., :5].abs().max() > 0


def test_the_place_of_an_unlabelled_keypoint_does_not_matter():
    keypoints = torch.zeros(1, K, 3)
    keypoints[0, 3] = torch.tensor([18.0, 18, 1])
    before = _loss()([_raw()], _targets(keypoints=keypoints))[1]
    keypoints[0, 4, :2] = 1e20
    assert torch.equal(before, _loss()([_raw()], _targets(keypoints=keypoints))[1])


def test_cells_in_a_crowd_are_no_background():
    raw = _raw()
    raw[..., 4] = 3.0
    everywhere = _loss()([raw], _targets(boxes=()))[1][1]
    half = _loss()([raw], _targets(boxes=(), crowds=((0.0, 0, 16, 32),), crowd_images=(0,)))[1][1]
    assert half.item() == pytest.approx(everywhere.item() / 2, rel=1e-6)


def test_a_person_matched_in_a_crowd_counts():
    crowd = {"crowds": ((0.0, 0, 32, 32),), "crowd_images": (0,)}
    raw = _raw().requires_grad_()
    loss, _ = _loss()([raw], _targets(**crowd))
    loss.backward()
    touched = (raw.grad[..., 4] != 0).nonzero()
    assert sorted(map(tuple, touched.tolist())) == [(0, 0, 2, 2), (0, 0, 2, 3), (0, 0, 3, 2)]


def test_without_people_there_is_objectness_alone():
    loss, parts = _loss()([_raw()], _targets(boxes=()))
    assert torch.isfinite(loss)
    assert parts.tolist()[0] == 0
    assert parts[1].item() == pytest.approx(BALANCE[0] * math.log(2))


def test_the_loss_is_the_sum_of_its_parts_times_the_images():
    raw = torch.randn(3, 3, 4, 4, 6 + 3 * K, generator=torch.Generator().manual_seed(0))
    keypoints = torch.full((2, K, 3), 12.0)
    keypoints[..., 2] = 1
    targets = _targets(boxes=((21.0, 21, 8, 8), (9, 9, 12, 20)), keypoints=keypoints, images=[0, 2])
    loss, parts = _loss()([raw], targets)
    assert loss.item() == pytest.approx(3 * parts.sum().item(), rel=1e-6)


def test_gains_make_the_three_keypoint_losses_equal_at_a_typical_error():
    distance, angles = 0.05, np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    oks = np.mean(1 - np.exp(-(distance**2) / (4 * COCO17.sigmas**2)))
    scaled = distance * np.mean(np.abs(np.cos(angles)) + np.abs(np.sin(angles))) / 2
    assert keypoint_gain("oks") == GAINS["keypoints"]
    assert keypoint_gain("l1-scaled") * scaled == pytest.approx(0.1 * oks, rel=1e-4)
    assert keypoint_gain("l1") * scaled * 7.2 == pytest.approx(0.1 * oks, rel=1e-4)


def test_shares_of_two_processes_average_to_the_loss_of_the_whole_batch():
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(4, 3, 4, 4, 6 + 3 * K, generator=generator, dtype=torch.float64)
    keypoints = torch.rand(3, K, 3, generator=generator) * 30
    keypoints[..., 2] = (keypoints[..., 2] > 10).float()
    boxes = ((21.0, 21, 8, 8), (9, 9, 12, 20), (25, 12, 9, 9))
    whole = raw.clone().requires_grad_()
    _loss()([whole], _targets(boxes, keypoints, images=[0, 1, 3]))[0].backward()

    def share(images: slice, people: slice, rows: list[int], totals) -> torch.Tensor:
        part = raw[images].clone().requires_grad_()
        targets = _targets(boxes[people], keypoints[people], images=rows)
        _loss(total_of=totals, processes=2)([part], targets)[0].backward()
        return part.grad

    counts: list[torch.Tensor] = []
    for images, people, rows in ((slice(0, 2), slice(0, 2), [0, 1]), (slice(2, 4), slice(2, 3), [1])):
        share(images, people, rows, lambda count: counts.append(count.clone()) or count)
    total = counts[0] + counts[1]
    first = share(slice(0, 2), slice(0, 2), [0, 1], lambda count: total)
    second = share(slice(2, 4), slice(2, 3), [1], lambda count: total)
    # Each computes gradients of its own images only, and averaging halves what it has doubled.
    assert torch.allclose(torch.cat([first, second]) / 2, whole.grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["oks", "l1", "l1-scaled"])
def test_gains_scale_their_parts(kind):
    targets, raw = _targets(keypoints=torch.full((1, K, 3), 1.0)), _raw()
    _, published = _loss(kind)([raw], targets)
    gains = {"box": 2 * GAINS["box"], "objectness": 0.0, "keypoints": 3 * GAINS["keypoints"], "confidence": 0.25}
    _, changed = _loss(kind, gains=gains)([raw], targets)
    factors = [2.0, 0.0, 3.0, 0.25 / GAINS["confidence"]]
    assert changed.tolist() == pytest.approx(
        [factor * part for factor, part in zip(factors, published.tolist(), strict=True)]
    )
