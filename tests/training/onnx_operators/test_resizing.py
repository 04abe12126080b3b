from __future__ import annotations

import numpy as np
import pytest

TRANSFORMS = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]
SCALES = [(1, 1, 2, 2), (1, 1, 0.5, 0.5), (1, 1, 1.5, 0.7), (1, 1, 3, 2)]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def floats(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_nearest(same_in_torch, noise, scales, transform, rounding):
    same_in_torch(
        "Resize",
        {"x": noise(2, 3, 6, 8)},
        {"scales": floats(*scales)},
        order=("x", "", "scales"),
        mode="nearest",
        coordinate_transformation_mode=transform,
        nearest_mode=rounding,
    )


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("transform", [*TRANSFORMS, "half_pixel_symmetric"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_linear_and_cubic(same_in_torch, noise, scales, transform, mode):
    same_in_torch(
        "Resize",
        {"x": noise(2, 3, 6, 8)},
        {"scales": floats(*scales)},
        opset=19,
        order=("x", "", "scales"),
        mode=mode,
        coordinate_transformation_mode=transform,
    )


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("size", [(12, 16), (5, 11), (3, 4), (6, 8)])
@pytest.mark.parametrize("transform", ["half_pixel", "asymmetric", "align_corners"])
def test_sizes(same_in_torch, noise, mode, size, transform):
    same_in_torch(
        "Resize",
        {"x": noise(1, 3, 6, 8)},
        {"sizes": np.array([1, 3, *size])},
        order=("x", "", "", "sizes"),
        mode=mode,
        coordinate_transformation_mode=transform,
    )


@pytest.mark.parametrize("outside", [0, 1])
def test_cubic_with_its_own_coefficient(same_in_torch, noise, outside):
    attributes = {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": outside}
    x, scales = {"x": noise(1, 2, 5, 6)}, {"scales": floats(1, 1, 1.6, 2)}
    same_in_torch("Resize", x, scales, order=("x", "", "scales"), **attributes)


def test_scales_of_some_axes(same_in_torch, noise):
    x, scales = {"x": noise(1, 2, 5, 6)}, {"scales": floats(2, 3)}
    same_in_torch("Resize", x, scales, opset=18, order=("x", "", "scales"), mode="linear", axes=[2, 3])


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_a_kept_aspect_ratio(same_in_torch, noise, policy):
    attributes = {"axes": [2, 3], "keep_aspect_ratio_policy": policy, "mode": "nearest"}
    x, sizes = {"x": noise(1, 2, 5, 6)}, {"sizes": np.array([10, 9])}
    same_in_torch("Resize", x, sizes, opset=18, order=("x", "", "", "sizes"), **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_older_forms(same_in_torch, noise, mode):
    x, scales = {"x": noise(2, 3, 5, 6)}, {"scales": floats(1, 1, 2, 3)}
    same_in_torch("Resize", x, scales, opset=10, mode=mode)
    same_in_torch("Upsample", x, scales, opset=9, mode=mode)
    same_in_torch("Upsample", x, opset=7, mode=mode, scales=[1.0, 1.0, 2.0, 3.0])


def test_one_dimension(same_in_torch, noise):
    x, scales = {"x": noise(2, 3, 6)}, {"scales": floats(1, 1, 2)}
    same_in_torch("Resize", x, scales, order=("x", "", "scales"), mode="linear")
