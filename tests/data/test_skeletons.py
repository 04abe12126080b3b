from __future__ import annotations

import numpy as np
import pytest
from pycocotools.cocoeval import Params

from qtoolkit.data.skeletons import COCO17, Skeleton
from qtoolkit.errors import UsageError


def test_the_sigmas_are_those_pycocotools_evaluates_with() -> None:
    np.testing.assert_array_equal(COCO17.sigmas, Params("keypoints").kpt_oks_sigmas)
    assert COCO17.sigmas[[0, 11, 16]] == pytest.approx([0.026, 0.107, 0.089])
    assert COCO17.keypoint_count == 17


def test_every_left_keypoint_is_paired_with_its_right_one() -> None:
    names = COCO17.keypoint_names
    assert {(names[a], names[b]) for a, b in COCO17.flip_pairs} == {
        (name, name.replace("left", "right")) for name in names if name.startswith("left")
    }


def test_flipping_twice_restores_the_order() -> None:
    order = np.array(COCO17.flip_order)
    assert order[:5].tolist() == [0, 2, 1, 4, 3]
    np.testing.assert_array_equal(order[order], np.arange(17))


def test_links_join_the_same_side_or_mirror_images() -> None:
    assert len(COCO17.links) == 19
    assert len({frozenset(link) for link in COCO17.links}) == 19
    mirrored = {frozenset(COCO17.flip_order[k] for k in link) for link in COCO17.links}
    assert mirrored == {frozenset(link) for link in COCO17.links}


def test_sigmas_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        COCO17.sigmas[0] = 1.0


def test_a_sigma_too_few_is_refused() -> None:
    with pytest.raises(UsageError, match=r"sigmas of skeleton 'two'.*\n  expected: 2 values above 0"):
        Skeleton("two", ("a", "b"), np.array([0.1]), ((0, 1),), ())


def test_a_sigma_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match=r"lowest 0\.0"):
        Skeleton("two", ("a", "b"), np.array([0.1, 0.0]), ((0, 1),), ())


def test_a_link_to_a_keypoint_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"joins keypoints that it does not have[\s\S]*\(0, 2\)"):
        Skeleton("two", ("a", "b"), np.array([0.1, 0.1]), ((0, 1),), ((0, 2),))
