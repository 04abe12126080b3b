"""The AP of a network in training is the AP of the file that is exported from it."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import onnx
import pytest
import torch

from qtoolkit.data.skeletons import COCO17
from qtoolkit.data.sources import open_data_source
from qtoolkit.errors import DataSetError
from qtoolkit.evaluation.evaluate import evaluate_network
from qtoolkit.evaluation.pose_network import PoseNetwork
from qtoolkit.graph.export import export_onnx
from qtoolkit.models.yolopose import DeployedYoloPose, YoloPose, YoloPoseConfig
from qtoolkit.training.evaluate import TorchRunner, evaluate_pose

SIZE = 64


@pytest.fixture
def model():
    """An n6 lite whose people differ from place to place, in the midst of a training."""
    torch.manual_seed(3)
    model = YoloPose(YoloPoseConfig(lite=True))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.6)
                module.running_var.uniform_(0.1, 0.4)
        for head in model.heads:
            head.box.weight.view(3, 6, -1)[:, 4] *= 5
    return model.train()


@pytest.fixture
def labelled(model, tmp_path):
    """Photos of noise whose labels are some of what the network sees there, moved by a few pixels."""
    random = np.random.default_rng(0)
    (tmp_path / "val").mkdir()
    images, annotations = [], []
    with TorchRunner(model, SIZE) as runner:
        network = PoseNetwork.from_runner(runner)
        for image_id in (1, 2, 3):
            pixels = cv2.resize(random.integers(0, 256, (6, 8, 3), np.uint8), (80, 60))
            cv2.imwrite(str(tmp_path / "val" / f"{image_id}.png"), pixels)
            images.append({"id": image_id, "file_name": f"{image_id}.png", "width": 80, "height": 60})
            people = network.people(pixels)
            for row in (0, 2, 5):
                keypoints = people.keypoints[row].astype(float)
                keypoints[:, :2] += random.normal(0, 1.5, (17, 2))
                keypoints[:, 2] = 2
                box = people.boxes_xyxy[row].tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 1,
                        "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
                        "area": 1500.0,
                        "iscrowd": 0,
                        "num_keypoints": 17,
                        "keypoints": keypoints.ravel().tolist(),
                    }
                )
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.keypoint_names), "skeleton": []}
    document = {"images": images, "annotations": annotations, "categories": [category]}
    (tmp_path / "val.json").write_text(json.dumps(document))
    (tmp_path / "dataset.yaml").write_text("kind: coco-keypoints\nval: {images: val, annotations: val.json}\n")
    return open_data_source(tmp_path)


def test_the_ap_is_that_of_the_exported_network(model, labelled, tmp_path):
    found = evaluate_pose(model, labelled.evaluation_samples(), SIZE)
    assert model.training
    onnx.save(export_onnx(DeployedYoloPose(model).eval(), (SIZE, SIZE)), tmp_path / "net.onnx")
    expected = evaluate_network(tmp_path / "net.onnx", labelled).record.metrics
    assert 20 < found.ap < 99
    for name, value in expected.items():
        assert getattr(found, name) == (pytest.approx(value, abs=0.05) if value is not None else None), name


def test_conditions_say_what_it_ran_on(model):
    with TorchRunner(model, SIZE) as runner:
        assert runner.conditions()["runtime"] == "torch"
        assert runner.conditions()["provider"] == "cpu"
        assert runner.output_shapes["output0"] == (1, 3 * (64 + 16 + 4 + 1), 57)


def test_photos_without_labels_have_no_ap(model, labelled):
    samples = dataclasses.replace(labelled.evaluation_samples(), annotations=None)
    with pytest.raises(DataSetError, match="no labels"):
        evaluate_pose(model, samples, SIZE)
