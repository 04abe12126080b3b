"""Which photos the layers are fitted on, and that the fit reports what it did."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest

from qtoolkit.errors import UsageError
from qtoolkit.training import layer_fit
from qtoolkit.training.layer_fit import affordable_images, fit_images, fit_layers_
from qtoolkit.training.network_pair import NetworkPair
from qtoolkit.training.retrain_options import RetrainOptions


@pytest.fixture
def options(tmp_path, tiny_pose_model):
    onnx.save(tiny_pose_model(), tmp_path / "net.onnx")

    def make(**changes):
        fields = {"model": tmp_path / "net.onnx", "images": "photos", "out": tmp_path / "out", "rows": 1000}
        return RetrainOptions.model_validate(fields | changes)

    return make


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((64, 64, 3), 40 * index, np.uint8))
    return paths


def test_memory_decides_how_many_photos(options, monkeypatch):
    pair = NetworkPair.of(options())
    assert affordable_images(pair, (64, 64), 1000) == 64
    image_bytes = pair.teacher.live_bytes(layer_fit.torch.zeros(1, 3, 64, 64))
    assert image_bytes >= 4 * 3 * 64 * 64
    rows = layer_fit.regression_bytes(pair.student, pair.model, 1000)
    monkeypatch.setattr(layer_fit, "_MEMORY_BYTES", rows + 10 * image_bytes)
    assert affordable_images(pair, (64, 64), 1000) == 5
    assert affordable_images(pair, (128, 128), 1000) == 1
    assert affordable_images(pair, (64, 64), 10**6) == 1


def test_photos_are_spread_over_the_set(options, photos):
    chosen = options(fit_images=3, fit_size=64)
    images = fit_images(NetworkPair.of(chosen), photos, chosen)
    assert images.shape == (3, 3, 64, 64)
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [0, 80, 160]


def test_a_size_that_the_network_does_not_run_at(options, photos):
    chosen = options(fit_size=100)
    with pytest.raises(UsageError, match="--fit-size"):
        fit_images(NetworkPair.of(chosen), photos, chosen)


def test_the_report(options, photos):
    chosen = options(fit_size=64)
    pair = NetworkPair.of(chosen)
    calls = []
    report = fit_layers_(pair, fit_images(pair, photos, chosen), chosen, lambda done, total: calls.append(done))
    assert calls == list(range(1, len(pair.student.layer_names) + 1))
    facts = report.facts()
    assert (facts["fit_images"], facts["size_wh"], facts["new_statistics"]) == (5, [64, 64], False)
    assert set(facts["layers"]) == set(pair.student.layer_names)
