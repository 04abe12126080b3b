from __future__ import annotations

import math
import platform
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from qtoolkit.errors import UsageError
from qtoolkit.numerics.affine import (
    IntegerGrid,
    QuantParams,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
    scale_and_zero_point,
    weight_params,
)

INT8 = IntegerGrid(8, signed=True, symmetric=True)
INT8_FREE = IntegerGrid(8, signed=True, symmetric=False)
INT8_NARROW = IntegerGrid(8, signed=True, symmetric=True, narrow_range=True)
UINT8 = IntegerGrid(8, signed=False, symmetric=False)
INT16 = IntegerGrid(16, signed=True, symmetric=True)
INT16_FREE = IntegerGrid(16, signed=True, symmetric=False)
UINT16 = IntegerGrid(16, signed=False, symmetric=False)
INT32 = IntegerGrid(32, signed=True, symmetric=True)
INT8_SHIFT = IntegerGrid(8, signed=True, symmetric=True, power_of_two=True)
UINT8_FROM_0 = IntegerGrid(8, signed=False, symmetric=True)
UINT8_FROM_0_SHIFT = IntegerGrid(8, signed=False, symmetric=True, power_of_two=True)
UINT8_SHIFT = IntegerGrid(8, signed=False, symmetric=False, power_of_two=True)

GRIDS = {
    "int8": INT8,
    "int8-free": INT8_FREE,
    "int8-narrow": INT8_NARROW,
    "uint8": UINT8,
    "int16": INT16,
    "int16-free": INT16_FREE,
    "uint16": UINT16,
    "int8-shift": INT8_SHIFT,
    "uint8-shift": UINT8_SHIFT,
}
every_grid = st.sampled_from(list(GRIDS.values()))
bounds = st.floats(-(2.0**100), 2.0**100, width=32)
values = st.floats(-(2.0**100), 2.0**100, width=32)


def params(scale: Any, zero_point: Any, grid: IntegerGrid, axis: int | None = None) -> QuantParams:
    return QuantParams(np.asarray(scale, np.float32), np.asarray(zero_point, grid.dtype), grid, axis)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float, float]:
    lo, hi = sorted((draw(bounds), draw(bounds)))
    return lo, hi


class TestIntegerGrid:
    @pytest.mark.parametrize(
        ("grid", "qmin", "qmax", "dtype"),
        [
            pytest.param(INT8, -128, 127, np.int8, id="int8"),
            pytest.param(INT8_NARROW, -127, 127, np.int8, id="int8-narrow"),
            pytest.param(UINT8, 0, 255, np.uint8, id="uint8"),
            pytest.param(INT16, -32768, 32767, np.int16, id="int16"),
            pytest.param(UINT16, 0, 65535, np.uint16, id="uint16"),
            pytest.param(INT32, -(2**31), 2**31 - 1, np.int32, id="int32"),
        ],
    )
    def test_bounds_and_storage(self, grid: IntegerGrid, qmin: int, qmax: int, dtype: Any) -> None:
        assert (grid.qmin, grid.qmax, grid.dtype) == (qmin, qmax, np.dtype(dtype))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param({"bit_width": 4, "signed": True, "symmetric": True}, "bit width", id="4-bit"),
            pytest.param({"bit_width": 32, "signed": False, "symmetric": True}, "bit_width 32", id="32-bit-unsigned"),
            pytest.param(
                {"bit_width": 8, "signed": False, "symmetric": False, "narrow_range": True},
                "narrow_range does not go",
                id="unsigned-narrow",
            ),
            pytest.param({"bit_width": 32, "signed": True, "symmetric": False}, "bit_width 32", id="32-bit-free"),
        ],
    )
    def test_refuses(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            IntegerGrid(**options)


class TestQuantParams:
    def test_keeps_read_only_copies(self) -> None:
        scale = np.array([0.5, 2.0], np.float32)
        held = QuantParams(scale, np.array([0, 0], np.int8), INT8, 0)
        scale[0] = 9.0
        assert held.scale.tolist() == [0.5, 2.0]
        with pytest.raises(ValueError, match="read-only"):
            held.scale[0] = 1.0

    @pytest.mark.parametrize(
        ("scale", "zero_point", "grid", "axis", "message"),
        [
            pytest.param(np.float32([1, 1]), np.int8([0, 0]), INT8, None, "shape of their granularity", id="no-axis"),
            pytest.param(np.float32(1), np.int8(0), INT8, 1, "shape of their granularity", id="axis-of-scalar"),
            pytest.param(np.float32([1, 1]), np.int8([0]), INT8, 0, "shape of their granularity", id="two-shapes"),
            pytest.param(np.float32(0), np.int8(0), INT8, None, "scale cannot be used", id="zero"),
            pytest.param(np.float32(-1), np.int8(0), INT8, None, "scale cannot be used", id="negative"),
            pytest.param(np.float32(np.inf), np.int8(0), INT8, None, "scale cannot be used", id="infinite"),
            pytest.param(np.float32(np.nan), np.int8(0), INT8, None, "scale cannot be used", id="nan"),
            pytest.param(np.float64(1), np.int8(0), INT8, None, "float64", id="float64"),
            pytest.param(np.float32(1), np.int8(3), INT8, None, "does not lie on its grid", id="symmetric-moved"),
            pytest.param(np.float32(1), np.int64(3), UINT8, None, "does not lie on its grid", id="other-type"),
            pytest.param(
                np.float32(1),
                np.int8(-128),
                IntegerGrid(8, True, False, narrow_range=True),
                None,
                "does not lie on its grid",
                id="below-narrow-range",
            ),
        ],
    )
    def test_refuses(self, scale: Any, zero_point: Any, grid: IntegerGrid, axis: int | None, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            QuantParams(scale, zero_point, grid, axis)


class TestParamsFromRange:
    @pytest.mark.parametrize(
        ("lo", "hi", "grid", "scale", "zero_point"),
        [
            pytest.param(-1.27, 0.5, INT8, 0.01, 0, id="symmetric-takes-the-larger-side"),
            pytest.param(-1.0, 3.27, INT8_NARROW, 3.27 / 127, 0, id="narrow"),
            pytest.param(0.0, 2.55, UINT8, 0.01, 0, id="relu"),
            pytest.param(-2.55, 0.0, UINT8, 0.01, 255, id="all-negative"),
            pytest.param(-1.0, 1.55, UINT8, 0.01, 100, id="both-sides"),
            pytest.param(-1.0, 1.55, INT8_FREE, 0.01, -28, id="both-sides-signed"),
            pytest.param(1.0, 2.55, UINT8, 0.01, 0, id="widened-down-to-zero"),
            pytest.param(-2.55, -1.0, UINT8, 0.01, 255, id="widened-up-to-zero"),
            pytest.param(0.0, 0.0, UINT8, 1.0, 0, id="all-zero"),
            pytest.param(0.0, 0.0, INT8_FREE, 1.0, -128, id="all-zero-signed"),
            pytest.param(0.0, 0.0, INT8_SHIFT, 1.0, 0, id="all-zero-shift"),
            pytest.param(-1e-44, 0.0, INT8, 2.0**-126, 0, id="subnormal-becomes-smallest-normal"),
            pytest.param(-127.0, 3.0, INT8_SHIFT, 1.0, 0, id="power-of-two-kept"),
            pytest.param(-127.1, 3.0, INT8_SHIFT, 2.0, 0, id="power-of-two-rounded-up"),
            pytest.param(-0.3, 0.5, INT8_SHIFT, 2.0**-7, 0, id="power-of-two-below-one"),
            pytest.param(-64.0, 191.0, UINT8_SHIFT, 1.0, 64, id="power-of-two-asymmetric"),
            pytest.param(0.0, 2.55, UINT8_FROM_0, 0.01, 0, id="unsigned-symmetric"),
            pytest.param(-9.0, 2.55, UINT8_FROM_0, 0.01, 0, id="unsigned-symmetric-clips-below-0"),
            pytest.param(-9.0, 0.0, UINT8_FROM_0, 1.0, 0, id="unsigned-symmetric-all-negative"),
            pytest.param(0.0, 200.0, UINT8_FROM_0_SHIFT, 1.0, 0, id="unsigned-symmetric-shift"),
            pytest.param(-327.67, 1.0, INT16, 0.01, 0, id="int16"),
            pytest.param(-1.0, 654.35, UINT16, 655.35 / 65535, 100, id="uint16"),
        ],
    )
    def test_table(self, lo: float, hi: float, grid: IntegerGrid, scale: float, zero_point: int) -> None:
        found = params_from_range(lo, hi, grid)
        assert found.scale == np.float32(scale)
        assert found.scale.dtype == np.float32
        assert found.zero_point == zero_point
        assert found.zero_point.dtype == grid.dtype
        assert found.axis is None

    def test_per_channel(self) -> None:
        found = params_from_range([-1.27, 0.0, 0.0], [0.0, 2.54, 0.0], INT8, axis=0)
        np.testing.assert_array_equal(found.scale, np.float32([0.01, 0.02, 1.0]))
        assert found.axis == 0

    def test_range_without_the_shape_of_its_axis(self) -> None:
        with pytest.raises(UsageError, match="shape of their granularity"):
            params_from_range([-1.0, -1.0], [1.0, 1.0], INT8)

    @pytest.mark.parametrize(
        ("lo", "hi", "message"),
        [
            pytest.param(1.0, -1.0, "lo <= hi", id="crossed"),
            pytest.param(math.nan, 1.0, "lo <= hi", id="nan"),
            pytest.param(0.0, math.inf, "lo <= hi", id="infinite"),
            pytest.param(-3e38, 3e38, "too wide for float32", id="too-wide"),
        ],
    )
    def test_refuses(self, lo: float, hi: float, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            params_from_range(lo, hi, UINT8)

    @given(ranges(), every_grid)
    def test_zero_is_exact(self, extent: tuple[float, float], grid: IntegerGrid) -> None:
        found = params_from_range(*extent, grid)
        assert fake_quantize(np.float32([0.0, -0.0]), found).tolist() == [0.0, 0.0]

    @given(ranges(), st.sampled_from([INT8_SHIFT, UINT8_SHIFT]))
    def test_power_of_two_is_the_next_one_up(self, extent: tuple[float, float], grid: IntegerGrid) -> None:
        plain = IntegerGrid(grid.bit_width, grid.signed, grid.symmetric)
        free, shift = (float(scale_and_zero_point(*extent, one)[0]) for one in (plain, grid))
        assert math.frexp(shift)[0] == 0.5
        # The free scale is rounded to float32 before it can be compared.
        assert free * (1 - 2**-23) <= shift < 2 * free * (1 + 2**-23)


class TestQuantize:
    @pytest.mark.parametrize(
        ("x", "scale", "zero_point", "grid", "q", "y"),
        [
            pytest.param(
                [0.5, 1.5, 2.5, -0.5, -1.5], 1, 0, INT8, [0, 2, 2, 0, -2], [0, 2, 2, 0, -2], id="half-to-even"
            ),
            pytest.param([200, -200, 127.4], 1, 0, INT8, [127, -128, 127], [127, -128, 127], id="saturates"),
            pytest.param([-200], 1, 0, INT8_NARROW, [-127], [-127], id="saturates-narrow"),
            pytest.param([-1, 0, 1.5, 64], 0.5, 3, UINT8, [1, 3, 6, 131], [-1, 0, 1.5, 64], id="zero-point"),
            pytest.param([-9, 999], 0.5, 3, UINT8, [0, 255], [-1.5, 126], id="zero-point-saturates"),
            pytest.param([math.inf, -math.inf], 1, 0, INT8, [127, -128], [127, -128], id="infinite"),
            pytest.param([math.nan], 0.5, 3, UINT8, [0], [-1.5], id="nan-is-qmin"),
            pytest.param([3e38], 2.0**-10, 0, INT16, [32767], [32767 / 1024], id="overflowing-division"),
            pytest.param([2.0**31, -(2.0**40), 5], 1, 0, INT32, [2**31 - 1, -(2**31), 5], None, id="int32"),
            pytest.param([0.5, 2.5], 1, 5, UINT16, [5, 7], [0, 2], id="half-to-even-before-the-zero-point"),
        ],
    )
    def test_table(self, x: Any, scale: float, zero_point: int, grid: IntegerGrid, q: Any, y: Any) -> None:
        held = params(scale, zero_point, grid)
        integers = quantize(np.float32(x), held)
        assert integers.dtype == grid.dtype
        assert integers.tolist() == q
        restored = dequantize(integers, held)
        assert restored.dtype == np.float32
        if y is not None:
            assert restored.tolist() == np.float32(y).tolist()

    def test_scalar_and_empty_keep_their_shape(self) -> None:
        assert quantize(np.float32(2.4), params(1, 0, INT8)).shape == ()
        assert fake_quantize(np.zeros((0, 3), np.float32), params(1, 0, INT8)).shape == (0, 3)

    @pytest.mark.parametrize("axis", [1, -2], ids=["from-the-front", "from-the-end"])
    def test_per_channel(self, axis: int) -> None:
        x = np.full((1, 2, 3), 3.0, np.float32)
        held = params([1.0, 2.0], [0, 10], UINT8, axis)
        assert quantize(x, held).tolist() == [[[3, 3, 3], [12, 12, 12]]]
        assert fake_quantize(x, held).tolist() == [[[3, 3, 3], [4, 4, 4]]]

    def test_int32_is_not_limited_by_float32(self) -> None:
        assert quantize(np.float64([16777217.0]), params(1, 0, INT32)).tolist() == [16777217]

    def test_input_is_left_alone(self) -> None:
        x = np.float32([1.4, 300])
        fake_quantize(x, params(1, 0, INT8))
        assert x.tolist() == np.float32([1.4, 300]).tolist()

    @pytest.mark.parametrize(
        ("shape", "axis", "message"),
        [
            pytest.param((3, 2), 0, "has not the channels", id="count"),
            pytest.param((2, 2), 2, "not an axis of the tensor", id="axis"),
            pytest.param((), 0, "not an axis of the tensor", id="scalar"),
        ],
    )
    def test_refuses(self, shape: tuple[int, ...], axis: int, message: str) -> None:
        held = params([1.0, 1.0], [0, 0], INT8, axis)
        for call in (quantize, fake_quantize):
            with pytest.raises(UsageError, match=message):
                call(np.zeros(shape, np.float32), held)
        with pytest.raises(UsageError, match=message):
            dequantize(np.zeros(shape, np.int8), held)


class TestFakeQuantizeProperties:
    @given(hnp.arrays(np.float32, st.integers(1, 30), elements=values), ranges(), every_grid)
    def test_idempotent(self, x: Any, extent: tuple[float, float], grid: IntegerGrid) -> None:
        held = params_from_range(*extent, grid)
        once = fake_quantize(x, held)
        np.testing.assert_array_equal(fake_quantize(once, held), once)

    @given(ranges(), every_grid, st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_half_a_step_inside_the_range(
        self, extent: tuple[float, float], grid: IntegerGrid, shares: list[float]
    ) -> None:
        held = params_from_range(*extent, grid)
        lo, hi = min(extent[0], 0.0), max(extent[1], 0.0)
        x = np.clip(np.float64(lo) + np.array(shares) * (hi - lo), lo, hi).astype(np.float32)
        error = np.abs(fake_quantize(x, held).astype(np.float64) - x)
        # 65535 steps of one float32 rounding each are 0.008 steps.
        assert np.all(error <= float(held.scale) * (0.5 + (grid.qmax - grid.qmin) * 2.0**-22))

    @given(hnp.arrays(np.float32, st.integers(2, 30), elements=values), ranges(), every_grid)
    def test_monotone(self, x: Any, extent: tuple[float, float], grid: IntegerGrid) -> None:
        assert np.all(np.diff(fake_quantize(np.sort(x), params_from_range(*extent, grid))) >= 0)

    @given(ranges(), every_grid)
    def test_every_integer_comes_back(self, extent: tuple[float, float], grid: IntegerGrid) -> None:
        held = params_from_range(*extent, grid)
        q = np.linspace(grid.qmin, grid.qmax, 256).astype(grid.dtype)
        np.testing.assert_array_equal(quantize(dequantize(q, held), held), q)


class TestWeightParams:
    WEIGHT = np.float32([[[1.27, -0.5]], [[0.0, 0.0]], [[-2.54, 2.0]]])

    def test_per_channel(self) -> None:
        found = weight_params(self.WEIGHT, INT8, 0)
        np.testing.assert_array_equal(found.scale, np.float32([0.01, 1.0, 0.02]))
        assert quantize(self.WEIGHT, found).tolist() == [[[127, -50]], [[0, 0]], [[-127, 100]]]

    def test_per_tensor_and_last_axis(self) -> None:
        assert weight_params(self.WEIGHT, INT8, None).scale == np.float32(0.02)
        np.testing.assert_array_equal(weight_params(self.WEIGHT, INT8, -1).scale, np.float32([0.02, 2.0 / 127]))

    def test_vector(self) -> None:
        np.testing.assert_array_equal(weight_params(np.float32([1.27, -2.54]), INT8, 0).scale, np.float32([0.01, 0.02]))

    @pytest.mark.parametrize(
        ("weight", "grid", "axis", "message"),
        [
            pytest.param(WEIGHT, UINT8, 0, "symmetric grid", id="asymmetric"),
            pytest.param(WEIGHT, UINT8_FROM_0, 0, "signed symmetric grid", id="unsigned"),
            pytest.param(WEIGHT, INT8, 3, "not an axis", id="axis"),
            pytest.param(np.zeros((0, 3), np.float32), INT8, 0, "no element", id="empty"),
            pytest.param(np.float32([np.nan]), INT8, None, "lo <= hi", id="nan"),
        ],
    )
    def test_refuses(self, weight: Any, grid: IntegerGrid, axis: int | None, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            weight_params(weight, grid, axis)


def run_in_onnxruntime(x: Any, held: QuantParams) -> tuple[Any, Any]:
    """QuantizeLinear and DequantizeLinear of opset 21, as written, on the CPU."""
    names = ["x", "scale", "zero_point"]
    attributes = {} if held.axis is None else {"axis": held.axis}
    integer = helper.np_dtype_to_tensor_dtype(held.grid.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", names, ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", *names[1:]], ["y"], **attributes),
        ],
        "pair",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info("q", integer, x.shape),
            helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape),
        ],
        [
            onnx.numpy_helper.from_array(held.scale, "scale"),
            onnx.numpy_helper.from_array(held.zero_point, "zero_point"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    q, y = session.run(["q", "y"], {"x": x})
    return q, y


def assert_bit_for_bit(x: Any, held: QuantParams) -> None:
    q, y = run_in_onnxruntime(x, held)
    ours = quantize(x, held)
    assert ours.dtype == q.dtype
    np.testing.assert_array_equal(ours, q)
    np.testing.assert_array_equal(dequantize(q, held).view(np.uint32), y.view(np.uint32))


ONNX_GRIDS = {"int8": INT8_FREE, "uint8": UINT8, "int16": INT16_FREE, "uint16": UINT16}


@pytest.mark.parametrize("grid", ONNX_GRIDS.values(), ids=ONNX_GRIDS)
class TestOnnxRuntimeBitForBit:
    @pytest.mark.parametrize("scale", [0.1, 1.0, 3.3e-5, 2.0**-126, 1e30])
    @pytest.mark.parametrize("place", ["lowest", "highest", "middle"])
    def test_per_tensor(self, grid: IntegerGrid, scale: float, place: str) -> None:
        zero_point = {"lowest": grid.qmin, "highest": grid.qmax, "middle": (grid.qmin + grid.qmax) // 2 + 3}[place]
        held = params(scale, zero_point, grid)
        rng = np.random.default_rng(7)
        patterns = rng.integers(0, 2**32, 20_000, np.uint64).astype(np.uint32).view(np.float32)
        around = rng.standard_normal(20_001) * scale * (grid.qmax - grid.qmin) / 3
        with np.errstate(over="ignore"):
            ties = ((rng.integers(-70_000, 70_000, 20_000) + 0.5) * scale).astype(np.float32)
        special = np.float32([0.0, -0.0, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45])
        x = np.concatenate([patterns[~np.isnan(patterns)], around.astype(np.float32), ties, special])
        assert_bit_for_bit(x, held)

    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_per_channel(self, grid: IntegerGrid, axis: int) -> None:
        rng = np.random.default_rng(11)
        x = (rng.standard_normal((5, 6, 7)) * 40).astype(np.float32)
        channels = x.shape[axis]
        lo, hi = -rng.uniform(1, 50, channels), rng.uniform(1, 50, channels)
        assert_bit_for_bit(x, params_from_range(lo, hi, grid, axis))

    @settings(max_examples=25)
    @given(
        x=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False)),
        extent=ranges(),
    )
    def test_any_values_and_any_range(self, grid: IntegerGrid, x: Any, extent: tuple[float, float]) -> None:
        assert_bit_for_bit(x, params_from_range(*extent, grid))

    @pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ONNX leaves NaN to the processor")
    def test_nan(self, grid: IntegerGrid) -> None:
        # 19 values: the vector loop and what is left over after it.
        assert_bit_for_bit(np.full(19, np.nan, np.float32), params(0.25, 3, grid))


def test_int32_dequantize_equals_onnxruntime() -> None:
    q = np.array([0, 1, -1, 16777217, 2**31 - 1, -(2**31)], np.int32)
    held = params(3e-4, 0, INT32)
    node = helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"])
    graph = helper.make_graph(
        [node],
        "dequantize",
        [helper.make_tensor_value_info("q", onnx.TensorProto.INT32, q.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, q.shape)],
        [
            onnx.numpy_helper.from_array(held.scale, "scale"),
            onnx.numpy_helper.from_array(held.zero_point, "zero_point"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"q": q})
    np.testing.assert_array_equal(dequantize(q, held).view(np.uint32), y.view(np.uint32))
