"""Anchor matching, against loops that say the rule again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qtoolkit.training.assignment import ANCHOR_RATIO, crowd_cells, match_anchors

ANCHORS = np.array([[19, 27], [44, 40], [38, 94]], np.float64)


def _by_loops(images, boxes, stride, grid_wh) -> set[tuple[int, ...]]:
    found = set()
    for person, (cx, cy, w, h) in enumerate(boxes):
        for anchor, (aw, ah) in enumerate(ANCHORS):
            if max(w / aw, aw / w, h / ah, ah / h) >= ANCHOR_RATIO:
                continue
            x, y = cx / stride, cy / stride
            column, row = int(x), int(y)
            cells = [(column, row)]
            if x - column < 0.5 and column > 0:
                cells.append((column - 1, row))
            if x - column > 0.5 and column < grid_wh[0] - 1:
                cells.append((column + 1, row))
            if y - row < 0.5 and row > 0:
                cells.append((column, row - 1))
            if y - row > 0.5 and row < grid_wh[1] - 1:
                cells.append((column, row + 1))
            found |= {(images[person], anchor, r, c, person) for c, r in cells}
    return found


def test_matches_are_those_of_the_rule():
    random = np.random.default_rng(0)
    grid_wh, stride = (8, 6), 8
    boxes = np.concatenate(
        [random.uniform(0.2, 0.99, (200, 2)) * (64, 48), np.exp(random.uniform(0.5, 6, (200, 2)))], axis=1
    )
    images = random.integers(0, 4, 200)
    found = match_anchors(torch.tensor(images), torch.tensor(boxes), torch.tensor(ANCHORS), stride, grid_wh)
    rows = list(zip(*(part.tolist() for part in found), strict=True))
    assert len(rows) == len(set(rows)) > 100
    assert set(rows) == _by_loops(images.tolist(), boxes.tolist(), stride, grid_wh)


@pytest.mark.parametrize(
    ("centre", "cells"),
    [
        pytest.param((20, 20), {(2, 2)}, id="no neighbour is nearer than the other"),
        pytest.param((21, 21), {(2, 2), (3, 2), (2, 3)}, id="right and below"),
        pytest.param((17, 23), {(2, 2), (1, 2), (2, 3)}, id="left and further below"),
        pytest.param((1, 1), {(0, 0)}, id="no neighbour before the first cell"),
        pytest.param((31.9, 31.9), {(3, 3)}, id="no neighbour behind the last cell"),
        pytest.param((32, 32), {(3, 3)}, id="on the far edge"),
    ],
)
def test_the_centre_and_its_nearest_neighbours(centre, cells):
    boxes = torch.tensor([[*centre, 38.0, 94.0]])
    found = match_anchors(torch.tensor([0]), boxes, torch.tensor(ANCHORS[2:]), 8, (4, 4))
    assert set(zip(found.column.tolist(), found.row.tolist(), strict=True)) == cells


def test_nobody_matches_nothing():
    found = match_anchors(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), torch.tensor(ANCHORS), 8, (4, 4))
    assert all(part.shape == (0,) for part in found)


def test_cells_of_a_crowd():
    crowds = torch.tensor([[4.0, 0, 20, 12], [0, 0, 4, 4]])
    cells = crowd_cells(torch.tensor([1, 0]), crowds, 2, 8, (4, 2))
    assert cells[1].tolist() == [[True, True, False, False], [False] * 4]
    assert not cells[0].any()
