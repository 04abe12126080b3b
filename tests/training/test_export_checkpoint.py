import numpy as np
import onnx
import pytest
import torch

from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.errors import GateFailed, UsageError
from qtoolkit.evaluation.pose_network import PoseNetwork
from qtoolkit.graph.layers import find_layers
from qtoolkit.graph.load import load_network
from qtoolkit.graph.macs import count_macs
from qtoolkit.models.checkpoint import save_weights
from qtoolkit.models.yolopose import DeployedYoloPose, YoloPose, YoloPoseConfig
from qtoolkit.training import export_checkpoint
from qtoolkit.training.evaluate import TorchRunner
from qtoolkit.training.export_checkpoint import MAX_RELATIVE_ERROR, export_network, export_weights

SIZE = 128
IMAGES = np.random.default_rng(5).integers(0, 256, (2, 96, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    """An n6 lite whose people differ from place to place."""
    torch.manual_seed(1)
    model = YoloPose(YoloPoseConfig(lite=True))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.6)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.1, 0.4)
        for head in model.heads:
            head.box.bias.view(3, 6)[:, 4] = -1.0
            head.box.weight.view(3, 6, -1)[:, 4] *= 5
    return model.eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """(result, file) with rows, and (result, file) with suppression inside."""
    folder = tmp_path_factory.mktemp("exported")
    plain = export_network(model, folder / "plain.onnx", (SIZE, SIZE))
    inside = export_network(model, folder / "inside.onnx", (SIZE, SIZE), opset=21, end_to_end=True)
    return plain, inside


def _people(runner):
    with runner:
        pose = PoseNetwork.from_runner(runner)
        return pose.head, [pose.people(image) for image in IMAGES]


def test_the_record_says_what_was_written(exported, model):
    plain, inside = exported
    assert plain.path.stat().st_size == plain.size_bytes
    assert (plain.architecture, plain.activation, plain.opset, plain.end_to_end) == ("n6-lite", "silu", 17, False)
    assert inside.opset == 21 and inside.end_to_end
    assert plain.parameters == sum(parameter.numel() for parameter in model.parameters())
    # The count of the graph is the count of the published definition: 2.318 GMACs at 640.
    assert plain.gmacs == pytest.approx(2.318 * (SIZE / 640) ** 2, rel=0.001)
    assert 0 < plain.relative_error <= MAX_RELATIVE_ERROR


def test_the_file_is_a_network_of_ours_for_every_other_part(exported, model):
    network = load_network(exported[0].path)
    names = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert {layer.name for layer in find_layers(network)} == names
    assert count_macs(network).gmacs == exported[0].gmacs


def test_people_are_those_of_torch_with_suppression_on_the_host_and_inside(exported, model):
    head, expected = _people(TorchRunner(model, SIZE))
    plain_head, plain = _people(OnnxRuntimeCpu(exported[0].path, threads=1))
    inside_head, inside = _people(OnnxRuntimeCpu(exported[1].path, threads=1))
    assert (head.kind, plain_head.kind, inside_head.kind) == ("yolov5-pose", "yolov5-pose", "separate-outputs")
    assert min(len(each.scores) for each in expected) > 20
    for a, b in zip(expected, plain, strict=True):
        np.testing.assert_allclose(b.scores, a.scores, atol=1e-4)
    for a, b in zip(plain, inside, strict=True):
        for field in ("boxes_xyxy", "scores", "keypoints"):
            np.testing.assert_allclose(getattr(b, field), getattr(a, field), rtol=1e-5, atol=1e-3, err_msg=field)


def test_a_network_that_computes_something_else_is_not_written(model, tmp_path, monkeypatch):
    def damaged(*arguments, **options):
        graph = onnx.load(tmp_path / "right.onnx")
        bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "heads.2.box.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1e-2, bias.name))
        return graph

    export_network(model, tmp_path / "right.onnx", (64, 64))
    monkeypatch.setattr(export_checkpoint, "export_onnx", damaged)
    with pytest.raises(GateFailed, match="does not compute what the weights do"):
        export_network(model, tmp_path / "wrong.onnx", (64, 64))
    assert not (tmp_path / "wrong.onnx").exists()


def test_values_that_are_not_numbers_are_no_parity(model):
    class Broken(DeployedYoloPose):
        def forward(self, images):
            return super().forward(images) * torch.nan

    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> '
        "net (float[1,3,64,64] images) => (float[1,255,57] y) <float[3] n = {1,255,57}> "
        "{ n2 = Constant<value_ints = [1,255,57]>() \n y = ConstantOfShape(n2) }"
    )
    assert export_checkpoint.relative_error(Broken(model), graph, (64, 64)) == float("inf")


@pytest.mark.parametrize(("size", "near"), [((100, 320), "128x320"), ((320, 10), "320x64")])
def test_sizes_that_do_not_fit(model, tmp_path, size, near):
    with pytest.raises(UsageError, match=f"give --size {near}"):
        export_network(model, tmp_path / "x.onnx", size)


@pytest.mark.parametrize(
    ("metadata", "size"), [({"recipe": {"image_size": 128}}, 128), ({}, 320), ({"recipe": None}, 320)]
)
def test_weights_know_their_size(model, tmp_path, monkeypatch, metadata, size):
    save_weights(tmp_path / "best.safetensors", model, metadata)
    asked = []
    monkeypatch.setattr(export_checkpoint, "export_network", lambda model, out, size, **options: asked.append(size))
    export_weights(tmp_path / "best.safetensors", tmp_path / "best.onnx")
    export_weights(tmp_path / "best.safetensors", tmp_path / "best.onnx", (64, 128))
    assert asked == [(size, size), (64, 128)]


def test_weights_are_not_written_over(model, tmp_path):
    save_weights(tmp_path / "best.safetensors", model)
    with pytest.raises(UsageError, match="over its weights"):
        export_weights(tmp_path / "best.safetensors", tmp_path / "best.safetensors")
