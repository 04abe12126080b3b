from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtoolkit.artifacts.plan import Precision, PrecisionPlan, uniform_plan
from qtoolkit.backends.onnxruntime_cpu import int8_convolutions, optimized_model
from qtoolkit.backends.targets import find_target
from qtoolkit.errors import PlanFileError, UsageError
from qtoolkit.graph.activations import silu_around
from qtoolkit.graph.layers import decode_tail, find_layers, last_layers
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.numerics.affine import IntegerGrid
from qtoolkit.numerics.histogram import StreamingHistogram, TensorStatistics
from qtoolkit.numerics.ranges import RangeEstimator
from qtoolkit.numerics.similarity import sqnr_db
from qtoolkit.quantization.calibrate import CalibrationStatistics
from qtoolkit.quantization.ptq import Quantizer, check_plan, integer_grid, supported_plan, wide_precision

ORT_CPU, TENSORRT = find_target("ort-cpu"), find_target("tensorrt")
FP32, FP16, INT16, INT16W16, INT8 = (Precision(p) for p in ("fp32", "fp16", "int16", "int16w16", "int8"))
UINT8 = IntegerGrid(8, signed=False, symmetric=False)
SHAPES = {"Split", "MaxPool", "Resize"}


@pytest.fixture(scope="module")
def relu_quantizer(relu_pose, calibrated):
    return Quantizer(relu_pose, ORT_CPU, calibrated(relu_pose))


@pytest.fixture(scope="module")
def tensorrt_quantizer(pose, calibrated):
    return Quantizer(pose, TENSORRT, calibrated(pose, "tensorrt"))


@pytest.fixture(scope="module")
def mixed_layers(mixed_layers_model, calibrated):
    model = prepare_network(mixed_layers_model())
    return {
        target: Quantizer(model, find_target(target), calibrated(model, target)) for target in ("ort-cpu", "tensorrt")
    }


def names_of(quantizer):
    return [layer.name for layer in quantizer.layers]


def at(quantizer, precision, **changes):
    """The network with every layer at ``precision`` but those in ``changes`` (_ for the dots)."""
    plan = uniform_plan(names_of(quantizer), precision)
    return quantizer.quantize(plan.with_layers({name.replace("_", "."): p for name, p in changes.items()}))


def of_values(*values):
    """Statistics of a tensor of one image with these values, all of them sampled."""
    array = np.array(values, np.float32)
    histogram = StreamingHistogram()
    histogram.update(array)
    return TensorStatistics.of(histogram, array.min()[None], array.max()[None])


def with_statistics(quantizer, **changes):
    """A quantizer of the same network that saw other values; names with _ for the dots."""
    tensors = {**quantizer.statistics.tensors, **{name.replace("_", "."): each for name, each in changes.items()}}
    return Quantizer(quantizer.model, quantizer.target, CalibrationStatistics("", 1, tensors), quantizer.estimator)


def operators(model):
    return [node.op_type for node in optimized_model(model, threads=1).graph.node]


@pytest.mark.parametrize("kind", ["quantizer", "relu_quantizer"])
def test_the_runtime_runs_every_layer_but_the_last_on_integers(kind, request):
    quantizer = request.getfixturevalue(kind)
    model = at(quantizer, INT8).model
    onnx.checker.check_model(model, full_check=True)
    last = set(last_layers(quantizer.model))
    inner = set(names_of(quantizer)) - last
    int8, floating = int8_convolutions(model, threads=1)
    assert len(last) == 9 and len(inner) == 21
    assert set(int8) == inner
    # The DFL's convolution is arithmetic of the decode tail.
    assert set(floating) == last | {"dfl.conv.node"}
    assert operators(model).count("QLinearConv") == 21


def test_everything_between_silu_layers_runs_in_8_bit(quantizer):
    found = operators(at(quantizer, INT8).model)
    counts = {name: found.count(name) for name in ("QLinearSigmoid", "QLinearMul", "QLinearAdd", "QLinearConcat")}
    # The nine last layers read float, so SiLU in front of them is in float too.
    assert counts == {"QLinearSigmoid": 12, "QLinearMul": 12, "QLinearAdd": 1, "QLinearConcat": 3}
    # One Q at the image; no operator in the middle falls back to float between a DQ and a Q.
    assert found.count("QuantizeLinear") == 1
    model = optimized_model(at(quantizer, INT8).model, threads=1)
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        # Split of the c2f, Resize and the max-pools; the tail splits floats.
        if node.op_type in ("NhwcMaxPool", "MaxPool", "Resize"):
            assert made_by[node.input[0]] != "DequantizeLinear"
    tail = decode_tail(quantizer.model)
    assert sum(name == "Split" for name in found) == 1 + sum(
        "Split" in n.op_type and node_name(n) in tail for n in quantizer.model.graph.node
    )


def test_relu_is_fused_into_the_convolution_before_it(relu_quantizer):
    found = operators(at(relu_quantizer, INT8).model)
    assert found.count("QLinearConv") == 21
    assert "Relu" not in found and "QLinearSigmoid" not in found
    assert found.count("QuantizeLinear") == 1


def test_last_layers_outputs_and_the_decode_tail_stay_as_they_were(quantizer):
    model = at(quantizer, INT8).model
    view, tail = GraphView(model), decode_tail(quantizer.model)
    before = {node_name(node): node for node in quantizer.model.graph.node}
    for node in view.nodes:
        if node_name(node) in tail:
            assert node == before[node_name(node)]
    for layer in quantizer.layers:
        if layer.name in last_layers(quantizer.model):
            assert not {n.op_type for n in view.consumers(layer.output)} & {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("kind", ["quantizer", "relu_quantizer"])
def test_int8_is_near_float_and_16_bit_much_nearer(kind, request, photos, infer):
    quantizer = request.getfixturevalue(kind)
    feeds = photos(1, seed=9)[0]
    expected = infer(quantizer.model, feeds)["output0"]
    found = {p: sqnr_db(expected, infer(at(quantizer, p).model, feeds)["output0"]) for p in Precision if p is not FP32}
    assert 20 < found[INT8] < found[INT16] < found[INT16W16]
    assert found[INT16W16] > 60 and found[FP16] > 45


def test_a_plan_of_float_layers_is_the_float_network(quantizer, photos, infer):
    model = at(quantizer, FP32).model
    feeds = photos(1)[0]
    assert model == quantizer.model
    np.testing.assert_array_equal(infer(model, feeds)["output0"], infer(quantizer.model, feeds)["output0"])


def test_tensorrt_is_symmetric_with_zero_points_of_zero(tensorrt_quantizer):
    model = at(tensorrt_quantizer, INT8).model
    onnx.checker.check_model(model, full_check=True)
    view = GraphView(model)
    linear = [node for node in view.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    # Four nodes for a layer at most: Q and DQ of its input, DQ of its weight; shared inputs need fewer.
    assert len(linear) > 2 * len(tensorrt_quantizer.layers)
    for node in linear:
        zero_point = view.constant(node.input[2])
        assert zero_point.dtype == np.int8 and not zero_point.any()
        assert view.elem_type(node.input[1]) == onnx.TensorProto.FLOAT


def test_tensorrt_finds_no_pair_between_a_convolution_and_its_activation(tensorrt_quantizer):
    view = GraphView(at(tensorrt_quantizer, INT8).model)
    for layer in tensorrt_quantizer.layers:
        assert "QuantizeLinear" not in {node.op_type for node in view.consumers(layer.output)}
        node = next(node for node in view.nodes if node_name(node) == layer.name)
        assert [view.producer(name).op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        # The runtime adds biases in float: they stay as they are.
        assert node.input[2] == layer.bias
    add = next(node for node in view.nodes if node_name(node) == "c2f.add.node")
    assert [view.producer(name).op_type for name in add.input] == ["DequantizeLinear"] * 2


@pytest.mark.parametrize("precision", [FP32, FP16], ids=lambda p: p.value)
def test_a_float_layer_between_int8_layers(quantizer, photos, infer, precision):
    model = at(quantizer, INT8, c2f_a=precision).model
    onnx.checker.check_model(model, full_check=True)
    view = GraphView(model)
    node = next(node for node in view.nodes if node_name(node) == "c2f.a")
    suffix = "" if precision is FP32 else "/fp16"
    assert list(node.input) == [f"c2f.right/dequantized8{suffix}", f"c2f.a.weight{suffix}", f"c2f.a.bias{suffix}"]
    assert set(int8_convolutions(model, threads=1).int8) == set(names_of(quantizer)) - {"c2f.a"} - set(
        last_layers(quantizer.model)
    )
    feeds = photos(1, seed=9)[0]
    expected = infer(quantizer.model, feeds)["output0"]
    assert sqnr_db(expected, infer(model, feeds)["output0"]) > 20


def types_of(model):
    view = GraphView(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True))
    return view, view.elem_type


@pytest.mark.parametrize("kind", ["quantizer", "relu_quantizer", "tensorrt_quantizer"])
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_plan_gives_a_valid_network_whose_layers_are_what_the_plan_says(kind, request, photos, infer, data):
    quantizer = request.getfixturevalue(kind)
    names = names_of(quantizer)
    kinds = st.sampled_from([FP32, INT8, *quantizer.target.wide_kinds])
    precisions = data.draw(st.lists(kinds, min_size=len(names), max_size=len(names)))
    plan = PrecisionPlan(layers=dict(zip(names, precisions, strict=True)))
    result = quantizer.quantize(plan)
    model, unsigned = result.model, not quantizer.target.activation_8bit.signed
    onnx.checker.check_model(model, full_check=True)
    assert list(model.graph.input) == list(quantizer.model.graph.input)
    assert list(model.graph.output) == list(quantizer.model.graph.output)
    view, type_of = types_of(model)
    assert {node_name(node) for node in quantizer.model.graph.node} <= {node_name(node) for node in view.nodes}
    for layer in quantizer.layers:
        node = next(node for node in view.nodes if node_name(node) == layer.name)
        precision = plan.layers[layer.name]
        half = precision is FP16
        assert {type_of(name) for name in node.input} == {onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT}
        weight = view.producer(node.input[1])
        assert (weight is not None) == precision.is_integer
        if precision.is_integer:
            assert view.dtype(weight.input[0]) == np.dtype(f"int{precision.weight_bits}")
            activation = view.producer(node.input[0])
            if activation.op_type != "DequantizeLinear":
                assert precision is INT8 and quantizer.target.float_last_inputs
                assert layer.name in last_layers(quantizer.model)
                continue
            assert activation.op_type == "DequantizeLinear"
            # An integer layer of 16 bit reads 8 bit where its input comes out of 8-bit arithmetic.
            pair = result.placement.tensors.get((layer.input, 8))
            bits = 8 if pair is not None and pair.readers is None else precision.activation_bits
            assert view.dtype(activation.input[0]) == np.dtype(f"{'u' * unsigned}int{bits}")
    outputs = infer(model, photos(1)[0], graph_optimization="basic")["output0"]
    assert np.isfinite(outputs).all()


def test_a_plan_for_another_network_is_refused(quantizer):
    with pytest.raises(PlanFileError, match="the plan does not fit the network"):
        quantizer.quantize(uniform_plan(["stem"], INT8))


def test_what_was_asked_for_is_kept_with_the_network(quantizer):
    plan = uniform_plan(names_of(quantizer), INT8, made_by="test")
    result = quantizer.quantize(plan)
    assert result.plan is plan
    assert set(result.placement.layers) == set(plan.layers)


def test_quantize_only_leaves_the_other_layers_in_float(quantizer):
    model = quantizer.quantize_only({"c2f.b": INT8})
    view = GraphView(model)
    dequantizing = [n for n in view.nodes if n.op_type == "DequantizeLinear" and view.is_constant(n.input[0])]
    quantized = {node_name(view.consumers(n.output[0])[0]) for n in dequantizing}
    assert quantized == {"c2f.b"}


def test_ranges_of_8_bit_tensors(quantizer):
    model = at(quantizer, INT8).model
    view = GraphView(model)

    def bounds(tensor):
        scale, zero = (view.constant(f"{tensor}/quantized8/{part}") for part in ("scale", "zero_point"))
        return float((0 - int(zero)) * scale), float((255 - int(zero)) * scale)

    # A Sigmoid is 0 … 1 whatever it was seen to be.
    low, high = bounds("stem.sigmoid")
    assert low == 0.0 and high == pytest.approx(1.0)
    # What SiLU flattens needs no steps: its input is clipped far above its lowest value.
    seen = quantizer.statistics.of("stem.bn.out")
    assert seen.minimum < -2.0
    assert bounds("stem.bn.out")[0] > 0.9 * seen.minimum
    # A chain of shape operators has one range.
    assert bounds("sppf.pool1") == bounds("sppf.pool2") == bounds("sppf.in.act")


def test_16_bit_tensors_take_twice_the_extremes(pose, quantizer):
    view = GraphView(at(quantizer, INT16).model)
    seen = quantizer.statistics.of("stem.act")
    scale, zero = (view.constant(f"stem.act/quantized16/{part}") for part in ("scale", "zero_point"))
    assert zero.dtype == np.uint16
    assert -float(zero) * float(scale) == pytest.approx(2 * seen.minimum, rel=1e-2)
    assert 65535 * float(scale) == pytest.approx(2 * (seen.maximum - seen.minimum), rel=1e-6)


def test_the_estimator_is_the_users(quantizer):
    by_extremes = dataclasses.replace(quantizer, estimator=RangeEstimator.MIN_MAX, _ranges={})
    view = GraphView(at(by_extremes, INT8).model)
    seen = quantizer.statistics.of("stem.bn.out")
    assert float(view.constant("stem.bn.out/quantized8/scale")) == pytest.approx((seen.maximum - seen.minimum) / 255)
    assert GraphView(at(quantizer, INT8).model).constant("stem.bn.out/quantized8/scale") < view.constant(
        "stem.bn.out/quantized8/scale"
    )


def test_a_layer_whose_values_would_overflow_fp16_stays_in_fp32(quantizer, photos, infer):
    overflowing = with_statistics(quantizer, c2f_a_bn_out=of_values(-20000.0, 1.0))
    model = at(overflowing, FP16).model
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert weights["c2f.a.weight"] == onnx.TensorProto.FLOAT and "c2f.a.weight/fp16" not in weights
    assert weights["c2f.b.weight/fp16"] == onnx.TensorProto.FLOAT16
    onnx.checker.check_model(model, full_check=True)
    # 16000 leaves room for four times as much.
    fitting = with_statistics(quantizer, c2f_a_bn_out=of_values(-16000.0, 1.0))
    assert "c2f.a.weight/fp16" in {tensor.name for tensor in at(fitting, FP16).model.graph.initializer}


def test_an_operator_whose_result_would_overflow_fp16_stays_in_fp32(quantizer):
    overflowing = with_statistics(quantizer, c2f_add=of_values(0.0, 20000.0))
    _view, type_of = types_of(at(overflowing, FP16).model)
    assert type_of("c2f.add") == onnx.TensorProto.FLOAT
    assert type_of("c2f.b.act/fp16") == onnx.TensorProto.FLOAT16


@pytest.mark.parametrize("constant", ["weight", "bias"])
def test_a_layer_whose_constants_do_not_fit_fp16_stays_in_fp32(pose, quantizer, constant):
    model = onnx.ModelProto()
    model.CopyFrom(pose)
    tensor = next(each for each in model.graph.initializer if each.name == f"c2f.a.{constant}")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] = 70000.0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    changed = Quantizer(model, ORT_CPU, quantizer.statistics)
    names = {each.name for each in at(changed, FP16).model.graph.initializer}
    assert "c2f.a.weight" in names and "c2f.b.weight/fp16" in names


def test_every_kind_of_layer_quantizes_and_runs(mixed_layers, photos, infer, exact_int8):
    feeds = photos(1, size=16)[0]
    for target, quantizer in mixed_layers.items():
        plan = supported_plan(uniform_plan(names_of(quantizer), INT8), quantizer.layers, quantizer.target)
        model = quantizer.quantize(plan).model
        onnx.checker.check_model(model, full_check=True)
        expected = infer(quantizer.model, feeds)["output0"]
        assert sqnr_db(expected, infer(model, feeds)["output0"]) > (15 if exact_int8 else 5), target


def test_a_grouped_transposed_convolution_has_one_scale_and_the_others_one_per_channel(mixed_layers):
    quantizer = mixed_layers["tensorrt"]
    view = GraphView(at(quantizer, INT8).model)
    sizes = {}
    for layer in quantizer.layers:
        node = next(node for node in view.nodes if node_name(node) == layer.name)
        weights = [view.producer(name) for name in node.input[:2]]
        dequantizing = [n for n in weights if n is not None and n.op_type == "DequantizeLinear"]
        weight = next(n for n in dequantizing if view.is_constant(n.input[0]))
        sizes[layer.name] = view.constant(weight.input[1]).shape
    assert sizes == {
        "conv": (8,),
        "up.out.node": (),
        "left.node": (5,),
        "right.node": (12,),
        "fc1.out.node": (20,),
        "output0.node": (10,),
    }


def test_int16_is_not_for_tensorrt(tensorrt_quantizer):
    with pytest.raises(PlanFileError) as caught:
        at(tensorrt_quantizer, FP16, stem=INT16)
    assert caught.value.what == "layer 'stem' cannot be int16 on target tensorrt"
    assert caught.value.expected == "one of fp32, fp16, int8"
    assert "--target" in caught.value.do


def test_ort_cpu_has_no_8_bit_transposed_convolution(mixed_layers):
    quantizer = mixed_layers["ort-cpu"]
    plan = uniform_plan(names_of(quantizer), INT8)
    with pytest.raises(PlanFileError) as caught:
        quantizer.quantize(plan)
    assert caught.value.what == (
        "layer 'up.out.node' cannot be int8 on target ort-cpu, which runs no 8-bit ConvTranspose"
    )
    assert caught.value.expected == "one of fp32, fp16, int16, int16w16"
    assert caught.value.do == "give it fp16 in the plan"


def test_a_plan_is_made_fit_by_moving_those_layers_to_16_bit(mixed_layers):
    quantizer = mixed_layers["ort-cpu"]
    plan = uniform_plan(names_of(quantizer), INT8)
    supported = supported_plan(plan, quantizer.layers, ORT_CPU)
    assert supported.layers_16bit == ("up.out.node",)
    assert supported.layers["up.out.node"] is FP16
    check_plan(supported, quantizer.layers, ORT_CPU)
    assert supported_plan(plan, quantizer.layers, TENSORRT) is plan
    # What the user chose in 16 bit or float is left alone.
    chosen = plan.with_layers({"up.out.node": FP32})
    assert supported_plan(chosen, quantizer.layers, ORT_CPU) is chosen


def test_the_16_bit_precision_is_the_targets_own_or_the_one_named():
    assert wide_precision(ORT_CPU, None) is FP16
    assert wide_precision(ORT_CPU, "int16w16") is INT16W16
    with pytest.raises(UsageError, match="target tensorrt has no such 16-bit precision") as caught:
        wide_precision(TENSORRT, "int16")
    assert (caught.value.expected, caught.value.found) == ("one of fp16", "'int16'")
    with pytest.raises(UsageError, match="no such 16-bit precision"):
        wide_precision(ORT_CPU, "int8")


def test_grids_are_those_of_the_targets_row():
    assert integer_grid(ORT_CPU.activation_8bit) == UINT8
    assert integer_grid(TENSORRT.weight_8bit) == IntegerGrid(8, signed=True, symmetric=True, narrow_range=True)


def test_the_layers_of_the_network_are_the_quantizers(quantizer):
    assert quantizer.layers == find_layers(quantizer.model)


class TestPairsOfSilu:
    def both(self, pose, calibrated, target="ort-cpu", **options):
        plan = {layer.name: INT8 for layer in find_layers(pose)}
        statistics = calibrated(pose, target)
        quantizers = (
            Quantizer(pose, find_target(target), statistics, **options, pairs_silu=pairs) for pairs in (False, True)
        )
        return [quantizer.grids(plan).activations for quantizer in quantizers]

    def test_only_tensors_around_a_silu_get_other_grids(self, pose, calibrated):
        alone, paired = self.both(pose, calibrated)
        changed = {tensor for tensor, bits in alone if alone[tensor, bits].scale != paired[tensor, bits].scale}
        view = GraphView(pose)
        assert changed
        # Shape operators hand on the grid of what they read.
        makers = {tensor: view.producer(tensor) for tensor in changed if silu_around(view, tensor) is None}
        assert all(maker is not None and maker.op_type in SHAPES for maker in makers.values())

    @pytest.mark.parametrize("options", [{"target": "tensorrt"}, {"estimator": RangeEstimator.PERCENTILE}])
    def test_symmetric_grids_and_other_estimators_are_searched_as_before(self, pose, calibrated, options):
        alone, paired = self.both(pose, calibrated, **options)
        assert {key: float(params.scale) for key, params in alone.items()} == {
            key: float(params.scale) for key, params in paired.items()
        }
