"""Resize an image into a network's input keeping its ratio, and bring points back exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from qtoolkit.errors import UsageError

__all__ = ["PAD_VALUE", "Letterbox"]

PAD_VALUE = 114
"""Grey level of the padding, all channels: the value pose networks of the YOLO family are trained with."""


@dataclass(frozen=True)
class Letterbox:
    """Where an image of ``image_size_wh`` lies inside an input of ``input_size_wh``, in pixels.

    An x of the image is at ``x * ratio + left`` in the input (y: ``+ top``), back at ``(x - left) / ratio``. One ratio
    serves both axes although the resized image is rounded to whole pixels: that is the convention in which the
    published APs of the YOLO pose networks were measured (ultralytics' LetterBox and scale_coords).
    """

    image_size_wh: tuple[int, int]
    input_size_wh: tuple[int, int]
    ratio: float
    resized_size_wh: tuple[int, int]
    left: int
    top: int

    @classmethod
    def fit(cls, image_size_wh: tuple[int, int], input_size_wh: tuple[int, int]) -> Letterbox:
        """Centre an image in an input: the largest size that fits, the odd pixel of padding right and below.

        Raises UsageError where a size is not positive.
        """
        image_w, image_h = (int(side) for side in image_size_wh)
        input_w, input_h = (int(side) for side in input_size_wh)
        if min(image_w, image_h, input_w, input_h) < 1:
            raise UsageError(
                "an image cannot be fitted into the network's input",
                expected="width and height of at least 1 pixel",
                found=f"image {image_w}×{image_h}, input {input_w}×{input_h} (width×height)",
                do="leave the image out, or give another input size",
            )
        ratio = min(input_w / image_w, input_h / image_h)
        # A thin line of an image would round to no pixel at all, which cannot be resized to.
        resized_w, resized_h = max(1, round(image_w * ratio)), max(1, round(image_h * ratio))
        # The 0.1 sends the half pixel of an odd padding to the right and bottom, whatever half-to-even rounding says.
        left, top = round((input_w - resized_w) / 2 - 0.1), round((input_h - resized_h) / 2 - 0.1)
        return cls((image_w, image_h), (input_w, input_h), ratio, (resized_w, resized_h), left, top)

    def apply(self, image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image (h, w, 3) uint8 resized (bilinear) and padded to the input's (H, W, 3) uint8.

        Raises UsageError where the image is not of the size this letterbox was fitted to.
        """
        image_w, image_h = self.image_size_wh
        if image_bgr.shape != (image_h, image_w, 3) or image_bgr.dtype != np.uint8:
            raise UsageError(
                "an image does not fit its letterbox",
                expected=f"shape {(image_h, image_w, 3)}, uint8",
                found=f"shape {image_bgr.shape}, {image_bgr.dtype}",
                do="fit the letterbox to this image's own width and height",
            )
        resized: Any = image_bgr
        if self.resized_size_wh != self.image_size_wh:
            resized = cv2.resize(image_bgr, self.resized_size_wh, interpolation=cv2.INTER_LINEAR)
        right = self.input_size_wh[0] - self.resized_size_wh[0] - self.left
        bottom = self.input_size_wh[1] - self.resized_size_wh[1] - self.top
        padded: Any = cv2.copyMakeBorder(
            resized, self.top, bottom, self.left, right, cv2.BORDER_CONSTANT, value=(PAD_VALUE,) * 3
        )
        result: NDArray[np.uint8] = padded
        return result

    @staticmethod
    def to_tensor(letterboxed_bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The input's (H, W, 3) uint8 BGR as the network's (1, 3, H, W) float32 RGB, value / 255, contiguous."""
        if letterboxed_bgr.ndim != 3 or letterboxed_bgr.shape[2] != 3 or letterboxed_bgr.dtype != np.uint8:
            raise UsageError(
                "an image cannot be made into a network's input",
                expected="shape (H, W, 3), uint8",
                found=f"shape {letterboxed_bgr.shape}, {letterboxed_bgr.dtype}",
                do="pass what Letterbox.apply returned",
            )
        height, width = letterboxed_bgr.shape[:2]
        tensor = np.empty((1, 3, height, width), np.float32)
        # Plane by plane keeps every read and write in sequence: seven times faster than transposing the whole array.
        # A true division, because multiplying by 1/255 differs in the last bit for some of the 256 values.
        for channel, plane in enumerate(reversed(cv2.split(letterboxed_bgr))):
            np.divide(plane, np.float32(255), out=tensor[0, channel])
        return tensor

    def points_to_input(self, points_xy: NDArray[Any]) -> NDArray[Any]:
        """Points (..., 2) in pixels of the image → the same points in pixels of the input.

        Arithmetic is float64; the result is float32 for float32 and smaller types, float64 for the others.
        """
        points = _points(points_xy)
        moved = points.astype(np.float64) * self.ratio + (self.left, self.top)
        return moved.astype(np.promote_types(points.dtype, np.float32))

    def points_to_image(self, points_xy: NDArray[Any]) -> NDArray[Any]:
        """Points (..., 2) in pixels of the input → pixels of the image: the exact inverse of ``points_to_input``.

        Types as there. Points on the padding come out outside the image; nothing is clipped.
        """
        points = _points(points_xy)
        moved = (points.astype(np.float64) - (self.left, self.top)) / self.ratio
        return moved.astype(np.promote_types(points.dtype, np.float32))

    def boxes_to_image(self, boxes_xyxy: NDArray[Any]) -> NDArray[Any]:
        """Boxes (..., 4) as left, top, right, bottom in pixels of the input → pixels of the image; not clipped."""
        return self._boxes(boxes_xyxy, self.points_to_image)

    def boxes_to_input(self, boxes_xyxy: NDArray[Any]) -> NDArray[Any]:
        """Boxes (..., 4) as left, top, right, bottom in pixels of the image → pixels of the input."""
        return self._boxes(boxes_xyxy, self.points_to_input)

    @staticmethod
    def _boxes(boxes_xyxy: NDArray[Any], move: Any) -> NDArray[Any]:
        boxes = np.asarray(boxes_xyxy)
        if boxes.ndim < 1 or boxes.shape[-1] != 4:
            raise _wrong_shape("boxes", "(..., 4)", boxes)
        moved: NDArray[Any] = move(boxes.reshape(*boxes.shape[:-1], 2, 2))
        return moved.reshape(boxes.shape)


def _points(points_xy: NDArray[Any]) -> NDArray[Any]:
    points = np.asarray(points_xy)
    if points.ndim < 1 or points.shape[-1] != 2:
        raise _wrong_shape("points", "(..., 2)", points)
    return points


def _wrong_shape(what: str, expected: str, array: NDArray[Any]) -> UsageError:
    return UsageError(
        f"{what} of the wrong shape cannot be moved between image and input",
        expected=f"shape {expected}",
        found=f"shape {array.shape}",
        do="split confidences off first",
    )
