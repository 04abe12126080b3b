from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", [1, -1, [0, 2], [[0, -1], [1, 1]]], ids=["one", "last", "two", "square"])
def test_gather(same_in_torch, noise, axis, indices):
    same_in_torch("Gather", {"x": noise(3, 4, 5)}, {"i": np.array(indices)}, axis=axis)
    same_in_torch("Gather", {"x": noise(3, 4, 5), "i": np.array(indices)}, axis=axis)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(same_in_torch, noise, axis):
    indices = np.random.default_rng(0).integers(-3, 3, (3, 3, 3))
    same_in_torch("GatherElements", {"x": noise(3, 3, 3), "i": indices}, axis=axis)


@pytest.mark.parametrize(
    ("shape", "indices", "batch_dims"),
    [
        ((3, 4, 5), [[0, 1], [2, -1]], 0),
        ((3, 4, 5), [[1], [2]], 0),
        ((3, 4, 5), [[[0, 1, 2]], [[2, 3, 4]]], 0),
        ((2, 4, 5), [[1], [3]], 1),
        ((2, 4, 5), [[[1], [0]], [[3], [2]]], 1),
        ((2, 3, 4, 5), [[[1], [0], [2]], [[3], [2], [1]]], 2),
    ],
)
def test_gather_nd(same_in_torch, noise, shape, indices, batch_dims):
    same_in_torch("GatherND", {"x": noise(*shape), "i": np.array(indices)}, batch_dims=batch_dims)


def test_scatter_nd(same_in_torch, noise):
    same_in_torch("ScatterND", {"x": noise(4, 5), "i": np.array([[1], [-1]]), "u": noise(2, 5, seed=1)})
    same_in_torch("ScatterND", {"x": noise(4, 5), "i": np.array([[1, 2], [3, 4]]), "u": noise(2, seed=1)})


@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_elements(same_in_torch, noise, axis):
    same_in_torch(
        "ScatterElements", {"x": noise(3, 3), "i": np.array([[0, -1, 1]]), "u": noise(1, 3, seed=1)}, axis=axis
    )


def test_non_zero(same_in_torch):
    same_in_torch("NonZero", {"x": np.array([[1, 0, 2], [0, 0, 3]], np.float32)})


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(same_in_torch, axis):
    values = np.array([0.5, 2.0], np.float32)
    same_in_torch("OneHot", {"i": np.array([[0, 2], [-1, 1]])}, {"d": np.array([3]), "v": values}, axis=axis)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(same_in_torch, noise, mode):
    same_in_torch("DepthToSpace", {"x": noise(2, 12, 3, 4)}, blocksize=2, mode=mode)


def test_space_to_depth(same_in_torch, noise):
    same_in_torch("SpaceToDepth", {"x": noise(2, 3, 4, 6)}, blocksize=2)
