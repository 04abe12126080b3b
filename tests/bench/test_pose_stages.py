"""Times before, in and after an inference of known duration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from qtoolkit.artifacts.files import sha256_file
from qtoolkit.bench.pose_stages import StageTimes, measure_stages
from qtoolkit.errors import DataSetError, HeadError, UsageError

Lasting = Callable[..., dict[str, Path]]


def measure(variants: dict[str, Path], *photos: Path, kind: str = "Poses", **options: Any) -> dict[str, StageTimes]:
    settings: dict[str, Any] = {"runs": 10, "warmup_s": 0.0, "timeout_s": 30.0, **options}
    return measure_stages(variants, photos, backend=f"stand_ins:{kind}", **settings)


def median_ms(model: Path) -> float:
    """Median of the times that the runner of a network really took in those ten inferences that were counted."""
    (log,) = model.parent.glob(f"{model.name}.*.slept")
    times = [float(each) for each in log.read_text().split()]
    return float(np.median(times[-10:])) * 1e3


def test_the_inference_is_told_from_what_stands_around_it(lasting: Lasting, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((1500, 2000, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((64, 64, 3), np.uint8))
    variants = lasting(slow=0.02, fast=0.01)
    found = measure(variants, tmp_path / "large.png")
    for name, path in variants.items():
        # Longer than asked where others use the machine too.
        assert found[name].inference_p50_ms == pytest.approx(median_ms(path), rel=0.05), name
        assert found[name].inference_p50_ms >= {"slow": 20, "fast": 10}[name]
    for each in found.values():
        parts = each.preprocess_p50_ms + each.inference_p50_ms + each.postprocess_p50_ms
        assert each.end_to_end_p50_ms == pytest.approx(parts, rel=0.1)
        assert 0 < each.preprocess_p50_ms < 10 and 0 < each.postprocess_p50_ms < 10
        assert (each.head, each.images, each.count) == ("yolov8-pose", "1 photos", 10)
        assert each.end_to_end_p99_ms >= each.end_to_end_p50_ms
    small = measure(variants, tmp_path / "small.png")
    assert small["fast"].preprocess_p50_ms < found["fast"].preprocess_p50_ms


def test_the_record_names_what_the_times_depend_on(lasting: Lasting) -> None:
    variants = lasting(only=0.0)
    found = measure(variants, threads=2)["only"]
    assert (found.provider, found.threads, found.options) == ("none", 2, {"note": "none"})
    assert (found.batch, found.input_shapes) == (1, {"images": (1, 3, 64, 64)})
    assert found.model_sha256 == sha256_file(variants["only"])


def test_noise_stands_in_for_photos(lasting: Lasting) -> None:
    found = measure(lasting(only=0.0))["only"]
    assert (found.images, found.score_threshold) == ("noise", 0.25)


def test_a_network_without_a_pose_head(lasting: Lasting) -> None:
    with pytest.raises(HeadError, match="variant 'only': the outputs of this network fit no known pose head"):
        measure(lasting(only=0.0), kind="Timed")


def test_a_photo_that_is_none(lasting: Lasting, tmp_path: Path) -> None:
    (tmp_path / "none.png").write_text("no photo")
    with pytest.raises(DataSetError, match="cannot be used"):
        measure(lasting(only=0.0), tmp_path / "none.png")


def test_no_runs(lasting: Lasting) -> None:
    with pytest.raises(UsageError, match="the stages cannot be timed so"):
        measure(lasting(only=0.0), runs=0)
