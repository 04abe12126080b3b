from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtoolkit.data.letterbox import PAD_VALUE, Letterbox
from qtoolkit.errors import UsageError

sides = st.integers(1, 8000)
sizes_wh = st.tuples(sides, sides)


def reference(image: NDArray[np.uint8], side: int) -> tuple[NDArray[Any], float, int, int]:
    """The letterbox the published figures were measured with, as it is written there: image, ratio, left, top."""
    h, w = image.shape[:2]
    r = min(side / h, side / w)
    nw, nh = round(w * r), round(h * r)
    resized: Any = cv2.resize(image, (nw, nh), interpolation=cv2.INTER_LINEAR) if (nw, nh) != (w, h) else image
    t, left = round((side - nh) / 2 - 0.1), round((side - nw) / 2 - 0.1)
    padded: Any = cv2.copyMakeBorder(
        resized, t, side - nh - t, left, side - nw - left, cv2.BORDER_CONSTANT, value=(114,) * 3
    )
    return padded, r, left, t


def noise(size_wh: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)


@pytest.mark.parametrize(
    ("image_wh", "input_wh", "resized_wh", "left", "top"),
    [
        pytest.param((640, 480), (640, 640), (640, 480), 0, 80, id="bars above and below"),
        pytest.param((480, 640), (640, 640), (480, 640), 80, 0, id="bars left and right"),
        pytest.param((640, 425), (640, 640), (640, 425), 0, 107, id="odd padding: 107 above, 108 below"),
        pytest.param((640, 427), (640, 640), (640, 427), 0, 106, id="odd padding whose half rounds up to even"),
        pytest.param((1280, 960), (640, 640), (640, 480), 0, 80, id="shrunk"),
        pytest.param((100, 50), (640, 640), (640, 320), 0, 160, id="enlarged"),
        pytest.param((640, 480), (640, 384), (512, 384), 64, 0, id="input that is not square"),
        pytest.param((640, 640), (640, 640), (640, 640), 0, 0, id="nothing to do"),
        pytest.param((8000, 2), (640, 640), (640, 1), 0, 319, id="a line keeps one pixel"),
    ],
)
def test_fit(
    image_wh: tuple[int, int], input_wh: tuple[int, int], resized_wh: tuple[int, int], left: int, top: int
) -> None:
    box = Letterbox.fit(image_wh, input_wh)
    assert (box.resized_size_wh, box.left, box.top) == (resized_wh, left, top)


@pytest.mark.parametrize(
    "image_wh", [(640, 425), (500, 333), (333, 500), (640, 640), (97, 31), (1201, 803), (1, 1), (7, 700)], ids=str
)
@pytest.mark.parametrize("side", [64, 160, 320])
def test_apply_equals_the_reference_pixel_for_pixel(image_wh: tuple[int, int], side: int) -> None:
    image = noise(image_wh)
    expected, ratio, left, top = reference(image, side)
    box = Letterbox.fit(image_wh, (side, side))
    np.testing.assert_array_equal(box.apply(image), expected)
    assert (box.ratio, box.left, box.top) == (ratio, left, top)


def test_padding_is_grey_and_the_photo_is_whole() -> None:
    image = noise((6, 4))
    boxed = Letterbox.fit((6, 4), (6, 9)).apply(image)
    np.testing.assert_array_equal(boxed[2:6], image)
    assert set(boxed[:2].ravel()) | set(boxed[6:].ravel()) == {PAD_VALUE}


def test_tensor_equals_the_plain_formula_bit_for_bit() -> None:
    # Every value in every channel, and sizes that no SIMD width divides.
    image = np.stack([np.roll(np.arange(256, dtype=np.uint8), shift) for shift in (0, 85, 170)], axis=-1)[None]
    for boxed in (image, noise((33, 65)), noise((64, 32))[:, ::-1]):
        tensor = Letterbox.to_tensor(boxed)
        np.testing.assert_array_equal(tensor, boxed[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255)
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous


def test_hand_computed_points() -> None:
    box = Letterbox.fit((1280, 960), (640, 640))
    assert box.points_to_input(np.array([[0, 0], [1280, 960], [10.0, 20.0]])).tolist() == [[0, 80], [640, 560], [5, 90]]
    assert box.points_to_image(np.array([[320.0, 320.0], [0, 0]])).tolist() == [[640, 480], [0, -160]]
    assert box.boxes_to_image(np.array([[5, 90, 640, 560]], np.float32)).tolist() == [[10, 20, 1280, 960]]
    assert box.boxes_to_input(np.array([10, 20, 1280, 960])).tolist() == [5, 90, 640, 560]


@settings(deadline=None)
@given(sizes_wh, sizes_wh, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_the_inverse_is_exact_at_any_size(
    image_wh: tuple[int, int], input_wh: tuple[int, int], place: tuple[float, float]
) -> None:
    box = Letterbox.fit(image_wh, input_wh)
    points = np.array([place]) * image_wh
    assert np.abs(box.points_to_image(box.points_to_input(points)) - points).max() < 1e-6


@settings(deadline=None)
@given(sizes_wh, st.integers(32, 2048), st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)))
def test_the_inverse_of_float32_points_is_exact_to_a_thousandth_of_a_pixel(
    image_wh: tuple[int, int], side: int, place: tuple[float, float]
) -> None:
    box = Letterbox.fit(image_wh, (side, side))
    points = np.array([place], np.float32) * np.array(image_wh, np.float32)
    there = box.points_to_input(points)
    back = box.points_to_image(there)
    assert there.dtype == back.dtype == np.float32
    assert np.abs(back - points).max() < 1e-3


@settings(deadline=None)
@given(sizes_wh, sizes_wh)
def test_the_resized_image_fits_and_touches_a_side(image_wh: tuple[int, int], input_wh: tuple[int, int]) -> None:
    box = Letterbox.fit(image_wh, input_wh)
    margins = [total - part for total, part in zip(input_wh, box.resized_size_wh, strict=True)]
    assert min(margins) == 0
    for margin, before in zip(margins, (box.left, box.top), strict=True):
        assert 0 <= margin - 2 * before <= 1


@pytest.mark.parametrize(
    ("given_type", "result_type"),
    [("float32", "float32"), ("float16", "float32"), ("float64", "float64"), ("int64", "float64")],
)
def test_result_types(given_type: str, result_type: str) -> None:
    box = Letterbox.fit((4, 4), (8, 8))
    assert box.points_to_image(np.ones((3, 2), given_type)).dtype == result_type
    assert box.points_to_input(np.ones((3, 2), given_type)).dtype == result_type
    assert box.boxes_to_image(np.ones((3, 4), given_type)).dtype == result_type


def test_no_points_and_points_of_many_people() -> None:
    box = Letterbox.fit((4, 4), (8, 8))
    assert box.points_to_image(np.zeros((0, 17, 2), np.float32)).shape == (0, 17, 2)
    assert box.boxes_to_image(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize(("image_wh", "input_wh"), [((0, 5), (8, 8)), ((5, 5), (8, -1))])
def test_a_size_without_pixels_is_refused(image_wh: tuple[int, int], input_wh: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="cannot be fitted"):
        Letterbox.fit(image_wh, input_wh)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.zeros((5, 4, 3), np.uint8), id="width and height swapped"),
        pytest.param(np.zeros((4, 5), np.uint8), id="grey"),
        pytest.param(np.zeros((4, 5, 3), np.float32), id="float"),
    ],
)
def test_an_image_of_another_size_is_refused(image: Any) -> None:
    with pytest.raises(UsageError, match=r"does not fit its letterbox\n  expected: shape \(4, 5, 3\), uint8"):
        Letterbox.fit((5, 4), (8, 8)).apply(image)


def test_wrong_shapes_are_refused() -> None:
    box = Letterbox.fit((4, 4), (8, 8))
    with pytest.raises(UsageError, match=r"points of the wrong shape[\s\S]*\(3, 3\)"):
        box.points_to_image(np.zeros((3, 3)))
    with pytest.raises(UsageError, match=r"boxes of the wrong shape[\s\S]*\(3, 2\)"):
        box.boxes_to_image(np.zeros((3, 2)))
    with pytest.raises(UsageError, match=r"shape \(H, W, 3\), uint8"):
        Letterbox.to_tensor(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]
