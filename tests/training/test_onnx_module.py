from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser
from torch import nn

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.layers import Structure, find_layers, last_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.units import find_units
from qtoolkit.graph.view import GraphView
from qtoolkit.training.onnx_module import OnnxModule


def runtime(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def images(size, batch=1, seed=0):
    return np.random.default_rng(seed).random((batch, 3, size, size), dtype=np.float32)


def relative_error(found, wanted):
    return float(np.abs(found.detach().numpy() - wanted).max() / np.abs(wanted).max())


def check_batches(model, size, tolerance=1e-4):
    """One image equals ONNX Runtime, and a batch of three is three times one."""
    module = OnnxModule(model).eval()
    x = images(size, 3)
    with torch.no_grad():
        alone, together = module(torch.from_numpy(x[:1])), module(torch.from_numpy(x))
    name = model.graph.input[0].name
    for place in range(3):
        for output, wanted in runtime(model, {name: x[place : place + 1]}).items():
            assert together[output].shape == (3 * wanted.shape[0], *wanted.shape[1:])
            rows = together[output][place * wanted.shape[0] : (place + 1) * wanted.shape[0]]
            assert relative_error(rows, wanted) < tolerance
            if place == 0:
                assert relative_error(alone[output], wanted) < tolerance


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "as exported"])
def test_pose_network(tiny_pose_model, activation, prepared):
    model = tiny_pose_model(activation)
    check_batches(prepare_network(model) if prepared else model, 64)


def test_every_kind_of_layer(mixed_layers_model):
    check_batches(mixed_layers_model(), 16)
    check_batches(prepare_network(mixed_layers_model()), 16)


def test_shapes_computed_in_the_graph(dynamic_pose_model):
    module = OnnxModule(dynamic_pose_model()).eval()
    for size in (64, 96):
        x = images(size)
        wanted = runtime(dynamic_pose_model(), {"images": x})["output0"]
        assert relative_error(module(torch.from_numpy(x))["output0"], wanted) < 1e-4
    batch = module(torch.from_numpy(images(64, 3)))["output0"]
    torch.testing.assert_close(batch[:1], module(torch.from_numpy(images(64, 3)[:1]))["output0"], rtol=1e-4, atol=1e-3)


@pytest.mark.real
def test_the_real_network(real_data):
    model = prepare_network(onnx.load(real_data / "models" / "yolov8n-pose.onnx"))
    module = OnnxModule(model, channels_last=True).eval()
    x = images(640, 2)
    with torch.no_grad():
        found = module(torch.from_numpy(x))["output0"]
    for place in range(2):
        wanted = runtime(model, {"images": x[place : place + 1]})["output0"]
        assert relative_error(found[place : place + 1], wanted) < 1e-4
        # Pixels are hundreds and scores below one: each by itself.
        assert float(np.abs(found[place, 4].numpy() - wanted[0, 4]).max()) < 1e-5
    assert module.layer_names == tuple(layer.name for layer in find_layers(model))
    assert len(module.parameters_by_name()) == 144


@pytest.mark.real
def test_the_real_network_at_another_size_without_its_decoder(real_data):
    model = prepare_network(onnx.load(real_data / "models" / "yolov8n-pose.onnx"))
    outputs = {layer.name: layer.output for layer in find_layers(model)}
    heads = [outputs[name] for name in last_layers(model)]
    module = OnnxModule(model, outputs=heads)
    found = module(torch.from_numpy(images(96, 2)))
    assert sorted(tuple(value.shape[2:]) for value in found.values()) == sorted([(12, 12), (6, 6), (3, 3)] * 3)
    sum(value.square().mean() for value in found.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_names_are_those_of_the_graph(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    module = OnnxModule(model)
    layers = find_layers(model)
    assert module.layer_names == tuple(layer.name for layer in layers)
    named = module.parameters_by_name()
    assert set(named) == {layer.weight for layer in layers} | {layer.bias for layer in layers if layer.bias}
    assert module.weight_name(layers[0].name) == layers[0].weight
    assert {id(parameter) for parameter in named.values()} == {id(parameter) for parameter in module.parameters()}
    assert "dfl.conv.weight" not in named


def test_capture_returns_inner_tensors_and_only_what_is_asked_for_is_run(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    module = OnnxModule(model).eval()
    x = torch.from_numpy(images(64))
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    for name in ("stem.sigmoid", "sppf.concat"):
        exposed.graph.output.append(onnx.ValueInfoProto(name=name))
    wanted = runtime(exposed, {"images": x.numpy()})
    found = module(x, capture=["stem.sigmoid", "sppf.concat"])
    assert list(found) == ["output0", "stem.sigmoid", "sppf.concat"]
    assert all(relative_error(found[name], wanted[name]) < 1e-4 for name in found)
    seen = []
    module.set_node_function("output0.node", lambda *parts: seen.append(1) or torch.cat(parts, 1))
    assert list(module(x, capture=["sppf.concat"], outputs=())) == ["sppf.concat"]
    assert not seen
    module(x)
    assert seen


def test_tensors_are_freed_after_their_last_use():
    text = "net (float[1,3] x) => (float[1,3] y) { a = Abs(x) b = Add(a, x) c = Sub(b, a) y = Relu(c) }"
    module = OnnxModule(parse(text))
    plan = module._program.plan(["y"], ["x"], ())
    assert [step.frees for step in plan] == [(), (), ("a", "b"), ("c",)]
    kept = module._program.plan(["y", "a"], ["x"], ())
    assert [step.frees for step in kept] == [(), (), ("b",), ("c",)]


def parse(text, opset=13):
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')


CONV = """net (float[1,3,4,4] x) => (float[1,2,4,4] y)
<float[2,3,1,1] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}> { c = Conv(x, w, b) y = Relu(c) }"""


@pytest.fixture
def conv():
    """A layer 'c' (its node has no name of its own) and a Relu."""
    return OnnxModule(parse(CONV))


def test_transforms_of_input_and_weight(conv):
    x = torch.rand(2, 3, 4, 4)
    plain = conv(x, capture=["c"])["c"]
    bias = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    conv.set_input_transform("c", lambda value: value * 2)
    torch.testing.assert_close(conv(x, capture=["c"])["c"], (plain - bias) * 2 + bias)
    conv.set_weight_transform("c", lambda value: value * 3)
    torch.testing.assert_close(conv(x, capture=["c"])["c"], (plain - bias) * 6 + bias)
    conv.set_input_transform("c", None)
    conv.set_weight_transform("c", None)
    torch.testing.assert_close(conv(x, capture=["c"])["c"], plain)


def test_a_module_as_transform_is_trained_with_the_rest(conv):
    before = len(list(conv.parameters()))
    conv.set_input_transform("c", nn.PReLU())
    assert len(list(conv.parameters())) == before + 1
    conv(-torch.rand(2, 3, 4, 4), capture=["c"])["c"].sum().backward()
    assert all(parameter.grad is not None for parameter in conv.parameters())
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        next(twin.modules()).get_submodule("input:c").weight.fill_(9.0)
    x = -torch.rand(1, 3, 4, 4)
    assert not torch.equal(twin(x, capture=["c"])["c"], conv(x, capture=["c"])["c"])
    conv.set_input_transform("c", None)
    assert len(list(conv.parameters())) == before


def test_a_node_computed_by_another_function():
    module = OnnxModule(parse("net (float[1,3] x) => (float[1,3] y) { s = Sigmoid(x) y = Mul(s, x) }"))
    x = torch.tensor([[-1.0, 0.0, 2.0]])
    torch.testing.assert_close(module(x)["y"], nn.functional.silu(x))
    module.set_node_function("y", lambda s, given: 0.25 * s * given + 0.75 * torch.relu(given))
    torch.testing.assert_close(module(x)["y"], 0.25 * nn.functional.silu(x) + 0.75 * torch.relu(x))
    module.set_node_function("y", None)
    torch.testing.assert_close(module(x)["y"], nn.functional.silu(x))
    torch.testing.assert_close(module(x, capture=["s"])["s"], torch.sigmoid(x))


def test_unknown_names_are_named(conv):
    with pytest.raises(UsageError, match="'nowhere'"):
        conv.set_input_transform("nowhere", None)
    with pytest.raises(UsageError, match="'y'"):
        conv.set_weight_transform("y", torch.abs)
    with pytest.raises(UsageError, match="'nowhere'"):
        conv.set_node_function("nowhere", torch.relu)
    with pytest.raises(UsageError, match="'nowhere'"):
        conv(torch.rand(1, 3, 4, 4), capture=["nowhere"])
    with pytest.raises(UsageError, match="expected: 'x'"):
        conv({"images": torch.rand(1, 3, 4, 4)})
    with pytest.raises(UsageError, match="'nowhere'"):
        OnnxModule(parse(CONV), outputs=["nowhere"])


def test_all_that_cannot_be_run_is_named_at_once():
    text = """net (float[1,3,4,4] x) => (float[1,3,4,4] y)
    { a = Relu(x) b = Erosion(a) c = Resize <antialias = 1> (b) y = Opening(c) }"""
    with pytest.raises(ModelFileError) as caught:
        OnnxModule(parse(text, 18))
    wanted = "Erosion 'b': unknown operator; Resize 'c': antialias; Opening 'y': unknown operator"
    assert caught.value.found == wanted
    assert list(OnnxModule(parse(text, 18), outputs=["a"])(torch.rand(2, 3, 4, 4))) == ["a"]


def test_to_onnx_writes_the_trained_weights_and_nothing_else(tiny_pose_model):
    model = prepare_network(tiny_pose_model())
    module = OnnxModule(model, channels_last=True)
    assert module.to_onnx() == model
    optimizer = torch.optim.SGD(module.parameters(), 1e-4)
    x = torch.from_numpy(images(64, 2))
    module(x)["output0"].square().mean().backward()
    optimizer.step()
    trained = module.to_onnx()
    assert trained.SerializeToString(deterministic=True) == module.to_onnx().SerializeToString(deterministic=True)
    onnx.checker.check_model(trained)
    assert [node.name for node in trained.graph.node] == [node.name for node in model.graph.node]
    wanted = runtime(trained, {"images": x[:1].numpy()})["output0"]
    assert relative_error(module(x[:1])["output0"], wanted) < 1e-4
    changed = {
        after.name
        for before, after in zip(model.graph.initializer, trained.graph.initializer, strict=True)
        if before != after
    }
    assert changed and changed <= set(module.parameters_by_name())


def test_weights_in_constant_nodes_and_of_16_bit_are_written_back_too():
    model = parse("net (float16[1,2] x) => (float16[1,2] y) { w = Constant() y = MatMul(x, w) }")
    value = numpy_helper.from_array(np.array([[1, 2], [3, 4]], np.float16))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("value", value))
    module = OnnxModule(model)
    weight = module.parameters_by_name()["w"]
    with torch.no_grad():
        weight.mul_(2)
    written = GraphView(module.to_onnx()).constant("w")
    assert written.dtype == np.float16
    assert written.tolist() == [[2, 4], [6, 8]]


def test_a_copy_is_a_network_of_its_own(conv):
    twin = copy.deepcopy(conv)
    with torch.no_grad():
        twin.parameters_by_name()["w"].zero_()
    x = torch.rand(1, 3, 4, 4)
    assert not torch.equal(conv(x)["y"], twin(x)["y"])
    restored = OnnxModule(parse(CONV))
    restored.load_state_dict(twin.state_dict())
    assert torch.equal(restored(x)["y"], twin(x)["y"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_float(tiny_pose_model, dtype):
    module = OnnxModule(prepare_network(tiny_pose_model())).eval()
    x = torch.from_numpy(images(64))
    wanted = module(x)["output0"]
    found = module.to(dtype)(x.to(dtype))["output0"]
    assert found.dtype == dtype
    assert relative_error(found.float(), wanted.detach().numpy()) < (1e-4 if dtype == torch.float64 else 0.1)


def test_autocast(tiny_pose_model):
    module = OnnxModule(prepare_network(tiny_pose_model()), channels_last=True).eval()
    x = torch.from_numpy(images(64))
    wanted = module(x)["output0"].detach().numpy()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)["output0"]
    assert relative_error(found.float(), wanted) < 0.1


NORM = """net (float[1,2,3,3] x) => (float[1,2,3,3] y)
<float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0, 0}, float[2] v = {1, 1}>
{ a = BatchNormalization(x, s, b, m, v) r = Relu(a) y = BatchNormalization(r, s, b, m2, v2) }"""


def test_statistics_are_estimated_anew():
    text = NORM.replace("float[2] v = {1, 1}", "float[2] v = {1, 1}, float[2] m2 = {0, 0}, float[2] v2 = {1, 1}")
    module = OnnxModule(parse(text)).eval()
    batches = [torch.randn(4, 2, 3, 3) * 3 + 1 for _ in range(5)]
    assert module.estimate_statistics(batches) == 5
    statistics = module.statistics_by_name()
    assert set(statistics) == {"m", "v", "m2", "v2"}
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(statistics["m"], means)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(statistics["v"], variances)
    assert not module.training
    written = GraphView(module.to_onnx())
    np.testing.assert_array_equal(written.constant("m2"), statistics["m2"].numpy())
    assert module.estimate_statistics([]) == 0


def test_a_network_without_batch_norms_has_no_statistics(conv):
    assert conv.estimate_statistics([torch.rand(1, 3, 4, 4)]) == 0
    assert conv.statistics_by_name() == {}


def test_gradients_equal_those_of_plain_torch(conv):
    x = torch.randn(3, 3, 4, 4)
    conv(x)["y"].square().sum().backward()
    weight = nn.Parameter(torch.arange(1.0, 7.0).reshape(2, 3, 1, 1))
    bias = nn.Parameter(torch.tensor([1.0, 2.0]))
    nn.functional.conv2d(x, weight, bias).relu().square().sum().backward()
    named = conv.parameters_by_name()
    torch.testing.assert_close(named["w"].grad, weight.grad)
    torch.testing.assert_close(named["b"].grad, bias.grad)


def test_quantized_layers_are_trained_through_their_quantizers():
    text = """net (float[1,3] x) => (float[1,2] y) <float[3,2] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}, float s = {0.01},
    int8 z = {0}> { q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = MatMul(x, d) }"""
    module = OnnxModule(parse(text))
    assert list(module.parameters_by_name()) == ["w"]
    module(torch.rand(2, 3))["y"].sum().backward()
    assert bool((module.parameters_by_name()["w"].grad != 0).all())


def test_initializers_can_have_any_name():
    model = parse(CONV)
    for old, new in (("w", "training"), ("b", "a.b%2E/c")):
        for tensor in model.graph.initializer:
            if tensor.name == old:
                tensor.name = new
        names = model.graph.node[0].input
        names[list(names).index(old)] = new
    module = OnnxModule(model)
    assert set(module.parameters_by_name()) == {"training", "a.b%2E/c"}
    assert module.to_onnx() == model
    assert numpy_helper.to_array(module.to_onnx().graph.initializer[1]).tolist() == [1, 2]


class TestInnerTensors:
    """Runs that begin inside the network."""

    @pytest.mark.parametrize("activation", ["silu", "relu"])
    def test_from_anywhere_the_rest_is_the_same(self, tiny_pose_model, activation):
        model = prepare_network(tiny_pose_model(activation))
        last = last_layers(model)
        ends = [layer.output for layer in find_layers(model) if layer.name in last]
        module = OnnxModule(model, outputs=ends).eval()
        units = find_units(Structure.of(model))
        x = torch.from_numpy(images(64, 2))
        with torch.no_grad():
            known = dict(module(x, capture=[name for unit in units for name in unit.tensors if name not in ends]))
            known[module.inputs[0]] = x
            for unit in units:
                found = module({name: known[name] for name in unit.inputs}, outputs=unit.outputs)
                assert all(torch.allclose(found[name], known[name], atol=1e-5) for name in unit.outputs)

    def test_what_is_fed_is_what_is_read(self, tiny_pose_model):
        model = prepare_network(tiny_pose_model("relu"))
        unit = find_units(Structure.of(model))[1]
        module = OnnxModule(model).eval()
        with torch.no_grad():
            inner = module(torch.from_numpy(images(64)), outputs=unit.inputs)
            plain, other = (
                module({name: value * factor for name, value in inner.items()}, outputs=unit.outputs)
                for factor in (1.0, 2.0)
            )
        assert not any(torch.allclose(plain[name], other[name]) for name in unit.outputs)

    def test_an_input_that_is_still_needed_must_be_there(self, tiny_pose_model):
        model = prepare_network(tiny_pose_model("relu"))
        unit = find_units(Structure.of(model))[1]
        module = OnnxModule(model).eval()
        with torch.no_grad():
            inner = module(torch.from_numpy(images(64)), outputs=unit.outputs)
        with pytest.raises(UsageError, match="the inputs are not those of the network"):
            module(inner, outputs=unit.inputs)
