from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

UNARY = ["Abs", "Neg", "Exp", "Erf", "Reciprocal", "Floor", "Ceil", "Sign", "Sin", "Cos", "Tan"]
UNARY += ["Atan", "Sinh", "Cosh", "Identity", "Round"]


@pytest.mark.parametrize("op_type", UNARY)
def test_functions(same_in_torch, noise, op_type):
    same_in_torch(op_type, {"x": noise(2, 3, 4)})


@pytest.mark.parametrize("op_type", ["Sqrt", "Log"])
def test_functions_of_positive_numbers(same_in_torch, noise, op_type):
    same_in_torch(op_type, {"x": np.abs(noise(2, 3)) + np.float32(0.1)})


@pytest.mark.parametrize("op_type", ["Asin", "Acos"])
def test_functions_of_small_numbers(same_in_torch, noise, op_type):
    same_in_torch(op_type, {"x": np.tanh(noise(2, 3))})


def test_halves_are_rounded_to_even(same_in_torch):
    same_in_torch("Round", {"x": np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)})


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("opset", [7, 13, 14])
def test_two_operands_broadcast(same_in_torch, noise, op_type, opset):
    same_in_torch(op_type, {"a": noise(2, 3, 4)}, {"b": noise(3, 1, seed=1)}, opset=opset)


def test_whole_numbers_are_divided_towards_zero(same_in_torch):
    same_in_torch("Div", {"a": np.array([-7, 7, 6]), "b": np.array([2, -2, 3])})


@pytest.mark.parametrize("exponent", [2.0, 0.5, -1.0, 3.0])
def test_power_by_a_number(same_in_torch, noise, exponent):
    same_in_torch("Pow", {"a": np.abs(noise(2, 3)) + np.float32(0.1)}, {"b": np.float32(exponent)})


def test_power_by_a_tensor(same_in_torch, noise):
    same_in_torch("Pow", {"a": np.abs(noise(2, 3)), "b": noise(3, seed=1)})


def test_power_keeps_the_type_of_its_base(same_in_torch):
    same_in_torch("Pow", {"a": np.array([1, 2, 3])}, {"b": np.float32(2.0)})


@pytest.mark.parametrize(
    ("fmod", "dtype"), [(0, np.int64), (1, np.int64), (1, np.float32)], ids=["of b's sign", "of a's sign", "floats"]
)
def test_modulo(same_in_torch, fmod, dtype):
    same_in_torch("Mod", {"a": np.array([-7, 7, -6], dtype), "b": np.array([3, -3, 4], dtype)}, fmod=fmod)


@pytest.mark.parametrize("op_type", ["Sum", "Mean", "Max", "Min"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_operands(same_in_torch, noise, op_type, count):
    shapes = [(2, 3, 4), (3, 1), (1, 4)]
    same_in_torch(op_type, {f"x{i}": noise(*shapes[i], seed=i) for i in range(count)})


@pytest.mark.parametrize("op_type", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons(same_in_torch, op_type):
    same_in_torch(op_type, {"a": np.array([[1, 2, 3]]), "b": np.array([[3], [2]])})


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logic(same_in_torch, op_type):
    same_in_torch(op_type, {"a": np.array([True, True, False, False]), "b": np.array([True, False, True, False])})


def test_not(same_in_torch):
    same_in_torch("Not", {"a": np.array([True, False])})


def test_where(same_in_torch, noise):
    same_in_torch("Where", {"c": noise(2, 1) > 0, "a": noise(2, 3), "b": noise(3, seed=1)})


@pytest.mark.parametrize(("positive", "negative"), [(1, 1), (0, 1), (1, 0)])
def test_infinities(same_in_torch, positive, negative):
    x = np.array([np.inf, -np.inf, 1.0, np.nan], np.float32)
    same_in_torch("IsInf", {"x": x}, detect_positive=positive, detect_negative=negative)
    same_in_torch("IsNaN", {"x": x})


@pytest.mark.parametrize(
    "to",
    [TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.FLOAT16],
)
def test_cast(same_in_torch, noise, to):
    same_in_torch("Cast", {"x": noise(2, 3)}, to=to)


def test_cast_like(same_in_torch, noise):
    same_in_torch("CastLike", {"x": noise(2, 3), "like": np.array([1])}, opset=15)
