"""The loss of labels, found in a graph: the same number that the network's own training computes."""

from __future__ import annotations

import pytest
import torch

from qtoolkit.errors import UsageError
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.graph.export import export_onnx
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.view import GraphView
from qtoolkit.models.yolopose import DeployedYoloPose, YoloPose, YoloPoseConfig
from qtoolkit.training.distill import head_outputs
from qtoolkit.training.labelled_loss import LabelledLoss
from qtoolkit.training.losses import PoseLoss, Targets
from qtoolkit.training.onnx_module import OnnxModule

_SIZE = 128


def _network(order="apart", **changes):
    torch.manual_seed(0)
    model = YoloPose(YoloPoseConfig(size="n6", lite=True, activation="relu", head_order=order)).eval()
    for name, value in changes.items():
        setattr(model, name, value)
    return model, export_onnx(DeployedYoloPose(model), (_SIZE, _SIZE), without_prefix="model")


def _head(model):
    view = GraphView(model)
    return detect_head({name: view.shape(name) or () for name in view.outputs}, (_SIZE, _SIZE))


def _people():
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor([[40.0, 60.0, 50.0, 80.0], [90.0, 50.0, 30.0, 60.0], [60.0, 64.0, 100.0, 120.0]])
    keypoints = torch.cat(
        [boxes[:, None, :2] + torch.randn(3, 17, 2, generator=generator) * 10, torch.ones(3, 17, 1)], 2
    )
    return Targets(
        person_image=torch.tensor([0, 0, 1]),
        boxes=boxes,
        keypoints=keypoints,
        labelled=torch.ones(3, dtype=torch.bool),
        crowd_image=torch.zeros(0, dtype=torch.int64),
        crowds_xyxy=torch.zeros(0, 4),
    )


@pytest.mark.parametrize("order", ["apart", "ti"])
def test_it_is_the_loss_of_the_training(order):
    network, graph = _network(order)
    found = LabelledLoss.of(graph, _head(graph))
    assert found.joined == order
    images = torch.rand((2, 3, _SIZE, _SIZE), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted, _ = PoseLoss(network.anchors, network.strides)(network(images), _people())
        outputs = OnnxModule(graph, outputs=head_outputs(graph))(images)
        given = found(outputs, _people())
    assert float(given) == pytest.approx(float(wanted) / 2, rel=1e-4)
    assert float(given) > 0


def test_other_anchors_are_no_network_of_ours():
    with pytest.raises(UsageError, match="labels can teach only the networks that `qtool train` makes"):
        _, graph = _network(anchors=torch.full((4, 3, 2), 50.0))
        LabelledLoss.of(graph, _head(graph))


def test_another_head(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    view = GraphView(model)
    size = view.shape(view.inputs[0] if isinstance(view.inputs, (list, tuple)) else next(iter(view.inputs)))
    head = detect_head({name: view.shape(name) or () for name in view.outputs}, (size[3], size[2]))
    with pytest.raises(UsageError, match="yolov8-pose with 17 keypoints"):
        LabelledLoss.of(model, head)
    with pytest.raises(UsageError, match="another head"):
        LabelledLoss.of(model, None)
