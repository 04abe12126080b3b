from __future__ import annotations

import pydantic
import pytest

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.table import RUNNERS
from qtoolkit.backends.targets import TARGETS, find_target
from qtoolkit.errors import UsageError
from qtoolkit.graph.layers import LAYER_OPS
from qtoolkit.numerics.affine import IntegerGrid

GRIDS = ("activation_8bit", "activation_16bit", "weight_8bit", "weight_16bit")


def test_ort_cpu_is_the_default():
    assert next(iter(TARGETS)) == "ort-cpu"


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_target_is_found_by_its_name(name):
    assert find_target(name) is TARGETS[name]
    assert find_target(name).name == name


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(UsageError, match="the target is not known") as caught:
        find_target("tpu")
    assert caught.value.expected == f"one of {', '.join(TARGETS)}"
    assert caught.value.found == "'tpu'"
    assert "--target" in caught.value.do


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("field", GRIDS)
def test_every_grid_of_every_target_exists(name, field):
    spec = getattr(find_target(name), field)
    grid = IntegerGrid(**spec.model_dump())
    assert grid.bit_width == int(field.rsplit("_", 1)[-1].removesuffix("bit"))
    if field.startswith("weight"):
        assert grid.symmetric and grid.narrow_range


@pytest.mark.parametrize("name", list(TARGETS))
def test_layers_and_16_bit_kinds_are_known_ones(name):
    target = find_target(name)
    assert target.int8_layers <= LAYER_OPS
    assert target.wide is target.wide_kinds[0]
    assert all(kind.is_16bit for kind in target.wide_kinds)
    assert not target.int8_ops & target.shape_ops


def test_what_the_two_runtimes_differ_in():
    ort, tensorrt = find_target("ort-cpu"), find_target("tensorrt")
    assert ort.quantize_layer_outputs and not tensorrt.quantize_layer_outputs
    assert tensorrt.quantize_residual_adds and not ort.quantize_residual_adds
    assert tensorrt.activation_8bit.symmetric and not ort.activation_8bit.symmetric
    assert tensorrt.wide_kinds == (Precision.FP16,)
    assert set(ort.wide_kinds) == {Precision.FP16, Precision.INT16, Precision.INT16W16}
    assert "ConvTranspose" in tensorrt.int8_layers - ort.int8_layers


def test_tidl_is_symmetric_per_tensor_with_scales_that_shift():
    tidl = find_target("tidl")
    assert tidl.activation_8bit.symmetric and tidl.activation_8bit.power_of_two
    assert tidl.activation_16bit.symmetric and tidl.activation_16bit.power_of_two
    assert not tidl.per_channel_weights and not tidl.weight_8bit.power_of_two
    assert tidl.wide is Precision.INT16W16 and Precision.FP16 not in tidl.wide_kinds
    assert tidl.integer_only and tidl.concat_forces_inputs
    assert tidl.backend not in RUNNERS


def test_the_default_target_has_its_backend():
    assert find_target("ort-cpu").backend in RUNNERS


def test_targets_cannot_be_changed():
    with pytest.raises(TypeError):
        TARGETS["mine"] = find_target("ort-cpu")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        find_target("ort-cpu").name = "mine"
