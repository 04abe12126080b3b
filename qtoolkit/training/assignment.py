"""Which cells and anchors shall see which person: the matching of YOLOv5, vectorised.

A person goes to every anchor whose sides are within a factor ``ANCHOR_RATIO`` of its box's, at every level, in the cell
that holds the centre of the box and in its two nearest neighbours. Source: edgeai-yolov5, ``utils/loss.py``,
``build_targets`` (anchor_t 4, offsets 0.5).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ANCHOR_RATIO", "Matches", "crowd_cells", "match_anchors"]

ANCHOR_RATIO = 4.0
"""Largest ratio between the sides of a box and those of an anchor that is matched with it."""

_NEAR = 0.5


class Matches(NamedTuple):
    """M matches of one level; all (M,) int64: image of the batch, anchor, row and column of the cell, person (T)."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    person: Tensor


def match_anchors(
    person_image: Tensor, boxes: Tensor, anchors: Tensor, stride: int, grid_wh: tuple[int, int]
) -> Matches:
    """The matches of one level.

    person_image  (T,) int64    image of each person
    boxes         (T, 4) float  cx, cy, w, h in pixels of the input, centres inside it
    anchors       (A, 2) float  w, h in pixels
    stride        pixels per cell; ``grid_wh`` cells along x and y

    The three cells: the one with the centre; its left or right neighbour, whichever is nearer, and the upper or lower
    one, where they exist.
    """
    ratio = boxes[None, :, 2:] / anchors[:, None]
    fits = torch.maximum(ratio, 1 / ratio.clamp(min=1e-9)).amax(dim=2) < ANCHOR_RATIO
    anchor, person = fits.nonzero(as_tuple=True)
    centre = boxes[person, :2] / stride
    limit = centre.new_tensor(grid_wh)
    from_end = limit - centre
    # A centre in the first half of a cell is near the cell before it; the first and the last cell lack a neighbour.
    near_before = (centre % 1 < _NEAR) & (centre > 1)
    near_after = (from_end % 1 < _NEAR) & (from_end > 1)
    here = torch.ones_like(near_before[:, :1])
    chosen = torch.cat([here, near_before, near_after], dim=1).T
    offsets = centre.new_tensor([[0, 0], [_NEAR, 0], [0, _NEAR], [-_NEAR, 0], [0, -_NEAR]])
    which, match = chosen.nonzero(as_tuple=True)
    cell = (centre[match] - offsets[which]).long()
    column, row = cell[:, 0].clamp(0, grid_wh[0] - 1), cell[:, 1].clamp(0, grid_wh[1] - 1)
    person = person[match]
    return Matches(person_image[person], anchor[match], row, column, person)


def crowd_cells(crowd_image: Tensor, crowds_xyxy: Tensor, images: int, stride: int, grid_wh: tuple[int, int]) -> Tensor:
    """(B, H, W) bool: cells whose centre lies in a crowd, where neither a person nor background is known.

    crowd_image (C,) int64; crowds_xyxy (C, 4) float, pixels of the input.
    """
    device = crowds_xyxy.device
    x = (torch.arange(grid_wh[0], device=device) + 0.5) * stride
    y = (torch.arange(grid_wh[1], device=device) + 0.5) * stride
    left, top, right, bottom = crowds_xyxy[:, :, None].unbind(dim=1)
    inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    cells = torch.zeros((images, grid_wh[1], grid_wh[0]), dtype=torch.bool, device=device)
    for image, crowd in zip(crowd_image.tolist(), inside, strict=True):
        cells[image] |= crowd
    return cells
