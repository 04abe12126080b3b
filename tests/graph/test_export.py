import logging
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qtoolkit.errors import UsageError
from qtoolkit.graph.export import export_onnx
from qtoolkit.models.blocks import C3, ConvolutionUnit, FocusStem


class Small(nn.Module):
    """A stem, a chain of two and an up-sampling: names at every depth."""

    def __init__(self, activation="silu"):
        super().__init__()
        self.stem = FocusStem(8, activation)
        self.stages = nn.Sequential(C3(8, 8, 1, True, activation), ConvolutionUnit(8, 4, 3, 2, activation=activation))
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, images):
        x = self.out(nn.functional.interpolate(self.stages(self.stem(images)), scale_factor=2.0))
        places = torch.arange(x.shape[3], dtype=x.dtype)
        return x + places


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    module = Small()
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.normal_(0, 0.2)
            each.running_var.uniform_(0.3, 2)
            # What training leaves is never the same twice; the first weights are.
    module.stem.conv.bn.weight.data.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize("opset", [17, 18, 21])
def test_it_computes_the_same(small, run_network, opset):
    model = export_onnx(small, (32, 24), opset=opset)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]
    onnx.checker.check_model(model, full_check=True)
    image = np.random.default_rng(0).random((1, 3, 24, 32), dtype=np.float32)
    with torch.inference_mode():
        expected = small.eval()(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(run_network(model, {"images": image})["output0"], expected, rtol=1e-4, atol=1e-5)


def test_names_are_paths_of_modules(small):
    model = export_onnx(small, (32, 32), without_prefix="stages")
    convolutions = {node.name: list(node.input)[1:] for node in model.graph.node if node.op_type == "Conv"}
    assert list(convolutions) == [
        "stem.conv.conv",
        "0.cv1.conv",
        "0.m.0.cv1.conv",
        "0.m.0.cv2.conv",
        "0.cv2.conv",
        "0.cv3.conv",
        "1.conv",
        "out",
    ]
    assert all(inputs == [f"{name}.weight", f"{name}.bias"] for name, inputs in convolutions.items())
    names = {node.name for node in model.graph.node}
    assert {"stem.transpose", "0.cv1.act.sigmoid", "0.cv1.act.mul", "0.m.0.add", "0.concat"} <= names
    inner = [node for node in model.graph.node if node.output[0] != "output0"]
    assert all(node.output[0] == node.name for node in inner)
    everything = [*names, *(tensor.name for tensor in model.graph.initializer)]
    assert not any("/" in name or "::" in name for name in everything)


def test_nothing_is_left_that_does_not_depend_on_the_image(small):
    model = export_onnx(small, (32, 32))
    kinds = {node.op_type for node in model.graph.node}
    assert kinds == {"Conv", "Sigmoid", "Mul", "Add", "Concat", "Reshape", "Transpose", "Resize"}
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 32, 32]
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [1, 2, 16, 16]


def test_equal_weights_give_equal_bytes_and_no_paths(small):
    first, second = (export_onnx(small, (32, 32)).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert b".py" not in first and b"site-packages" not in first


def test_modes_and_gradients_are_left_as_they_were(small):
    module = Small()
    module.train()
    module.stem.eval()
    modes = [each.training for each in module.modules()]
    export_onnx(module, (32, 32))
    assert [each.training for each in module.modules()] == modes
    assert all(parameter.requires_grad for parameter in module.parameters())
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(small, (32, 32))
    assert logging.getLogger("torch.onnx").level == level


def test_equal_weights_of_two_layers_stay_two_layers(run_network):
    module = nn.Sequential(ConvolutionUnit(3, 3, activation="relu"), ConvolutionUnit(3, 3, activation="relu"))
    module[1].load_state_dict(module[0].state_dict())
    module[1].bn.weight.data.mul_(2)
    image = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)
    found = run_network(export_onnx(module, (8, 8)), {"images": image})["output0"]
    np.testing.assert_allclose(found, module.eval()(torch.from_numpy(image)).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [16, 22])
def test_other_opsets_are_refused(small, opset):
    with pytest.raises(UsageError, match=f"17 to 21\n  found: {opset}"):
        export_onnx(small, (32, 32), opset=opset)


def test_the_modules_own_objection_comes_through():
    class Picky(Small):
        def forward(self, images):
            if images.shape[3] % 64:
                raise UsageError("not this size")
            return super().forward(images)

    with pytest.raises(UsageError, match="not this size"):
        export_onnx(Picky(), (32, 32))
