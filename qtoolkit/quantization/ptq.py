"""Post-training quantization: a plan, a target and calibration statistics in, a quantized network out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.artifacts.plan import Precision, PrecisionPlan
from qtoolkit.artifacts.target import GridSpec, Target
from qtoolkit.errors import PlanFileError, UsageError
from qtoolkit.graph.activations import activation_behind, is_unit_interval, silu_around
from qtoolkit.graph.half import FP16_LIMIT, convert_half
from qtoolkit.graph.layers import Layer, Structure
from qtoolkit.graph.placement import Placement, place_qdq
from qtoolkit.graph.qdq import LayerWeights, insert_qdq
from qtoolkit.graph.runtime_form import runtime_form
from qtoolkit.graph.split_rows import split_rows
from qtoolkit.graph.view import node_name
from qtoolkit.numerics.activations import ACTIVATIONS
from qtoolkit.numerics.affine import IntegerGrid, QuantParams, params_from_range, weight_params
from qtoolkit.numerics.ranges import RangeEstimator, mse, mse_through
from qtoolkit.numerics.silu_ranges import silu_ranges
from qtoolkit.numerics.squared_error import error_distribution
from qtoolkit.quantization.bias_correction import corrected_bias
from qtoolkit.quantization.calibrate import CalibrationStatistics
from qtoolkit.quantization.split_scales import find_splits, grouped_params, grouped_weights

__all__ = [
    "ChosenGrids",
    "QuantizedNetwork",
    "Quantizer",
    "check_plan",
    "integer_grid",
    "supported_plan",
    "wide_precision",
]

# 16-bit grids have steps to spare: half of them are kept for values that calibration did not see.
_HEADROOM_16BIT = 2.0
# An fp16 tensor may hold values larger than any seen in calibration by this much.
_FP16_HEADROOM = 4.0
_SILU_PARTS = 4


@dataclass(frozen=True)
class QuantizedNetwork:
    """A network with its precisions written into it: ``model``, and the ``plan`` it was made under."""

    model: onnx.ModelProto
    plan: PrecisionPlan
    placement: Placement


@dataclass(frozen=True, eq=False)
class ChosenGrids:
    """What is written into a network: ``placement``, the quantization parameters of each placed (tensor, bit width),
    and the weights of each integer layer on their grids."""

    placement: Placement
    activations: Mapping[tuple[str, int], QuantParams]
    weights: Mapping[str, LayerWeights]


@dataclass(eq=False)
class Quantizer:
    """PTQ of one prepared float network for one target; quantizes it under any number of plans.

    Ranges: a tensor that only an activation function reads gets the range with the least squared error *behind* that
    function where the estimator is ``mse`` (what SiLU flattens needs no steps); a Sigmoid's output is 0 … 1; 16-bit
    tensors take the exact extremes, doubled; everything else takes the estimator's range. Ranges found once are kept.
    ``means`` are those of ``bias_correction.input_means``; biases of layers without them stay as they are.
    ``pairs_silu``: where the estimator is ``mse``, grids before and behind a SiLU on integers are searched together.
    ``splits_scales``: layers whose rows are unlike are written in parts, where weights have one scale.
    ``tolerance``: how much larger than usual an image's values may be before errors on it count less
    (``squared_error.error_distribution``). ``biases``: of layers by name, those of
    ``empirical_bias.empirical_biases``, in place of the network's own.
    """

    model: onnx.ModelProto
    target: Target
    statistics: CalibrationStatistics
    estimator: RangeEstimator = RangeEstimator.MSE
    means: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    pairs_silu: bool = False
    tolerance: float = 1.0
    splits_scales: bool = False
    biases: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    _ranges: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._structure = Structure.of(self.model)
        self._view = self._structure.view
        self._by_name = self._structure.layers
        self._splits = find_splits(self._structure, self.target) if self.splits_scales else {}
        self.layers: tuple[Layer, ...] = tuple(self._by_name.values())

    def quantize(self, plan: PrecisionPlan) -> QuantizedNetwork:
        """The network under ``plan``. Raises PlanFileError where plan, network and target do not fit."""
        plan.check_layers(layer.name for layer in self.layers)
        check_plan(plan, self.layers, self.target)
        plan = self.within_fp16(plan)
        model, placement = self._apply(plan.layers)
        return QuantizedNetwork(model, plan, placement)

    def within_fp16(self, plan: PrecisionPlan) -> PrecisionPlan:
        """``plan`` with the fp16 layers whose constants or tensors do not fit fp16 at fp32: what is really applied."""
        beyond = [name for name in plan.layers_at(Precision.FP16) if not self._fits_fp16(name)]
        return plan.with_layers(dict.fromkeys(beyond, Precision.FP32)) if beyond else plan

    def quantize_only(self, precisions: Mapping[str, Precision]) -> onnx.ModelProto:
        """The network with the named layers at their precisions and all the others in float: for sensitivity."""
        return self._apply(precisions)[0]

    def grids(self, precisions: Mapping[str, Precision]) -> ChosenGrids:
        """Where Q/DQ stands with the layers at ``precisions``, and with which quantization parameters."""
        placement = place_qdq(self.model, precisions, self.target, self._structure)
        activations = {
            key: self.activation_params(pair.range_of, pair.bit_width) for key, pair in placement.tensors.items()
        }
        weights = {name: self._layer_weights(self._by_name[name], placement, activations) for name in placement.layers}
        return ChosenGrids(placement, activations, weights)

    def write(
        self, precisions: Mapping[str, Precision], grids: ChosenGrids, model: onnx.ModelProto | None = None
    ) -> onnx.ModelProto:
        """The network with ``grids`` written into it; ``model`` is the same graph with other constants, if given."""
        source = self.model if model is None else model
        quantized = insert_qdq(source, grids.placement, grids.activations, grids.weights, self._structure)
        split = {name: self._splits[name] for name in self._splits if self._is_split(name, grids.placement)}
        if split:
            quantized = split_rows(quantized, self._by_name, split, self.target.fused_activations)
        half = [name for name, precision in precisions.items() if precision is Precision.FP16]
        chosen = [name for name in half if self._fits_fp16(name)]
        return convert_half(quantized, chosen, self._beyond_fp16() if chosen else ())

    def handed_out(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A network that this made, in the form that its runtime is fastest with: the same but for rounding."""
        return runtime_form(model, self.target, self._structure.tail)

    def range_of(self, tensor: str, bit_width: int) -> tuple[float, float]:
        """The clipping range that is used for ``tensor`` at ``bit_width``."""
        self.activation_params(tensor, bit_width)
        return self._ranges[tensor, bit_width]

    def with_ranges(self, ranges: Mapping[tuple[str, int], tuple[float, float]]) -> Quantizer:
        """The same quantizer with ``ranges`` (tensor, bit width) → (lo, hi) in place of what it would find there."""
        return replace(self, _ranges={**self._ranges, **ranges})

    def _apply(self, precisions: Mapping[str, Precision]) -> tuple[onnx.ModelProto, Placement]:
        grids = self.grids(precisions)
        return self.write(precisions, grids), grids.placement

    def activation_grid(self, tensor: str, bit_width: int) -> IntegerGrid:
        """The integer grid of an activation at ``bit_width``."""
        spec = self.target.activation_8bit if bit_width == 8 else self.target.activation_16bit
        if self.target.unsigned_where_nonnegative and self._is_nonnegative(tensor):
            spec = spec.model_copy(update={"signed": False})
        return integer_grid(spec)

    def activation_params(
        self, tensor: str, bit_width: int, ranges: Mapping[tuple[str, int], tuple[float, float]] | None = None
    ) -> QuantParams:
        """Quantization parameters of ``tensor``; ``ranges`` (tensor, bit width) → (lo, hi) are tried for its own."""
        grid, key = self.activation_grid(tensor, bit_width), (tensor, bit_width)
        if ranges is not None and key in ranges:
            return params_from_range(*ranges[key], grid)
        if key not in self._ranges:
            found = self._silu_ranges(tensor, grid) or {key: self._range(tensor, grid)}
            # What was given stays: a SiLU's other range may have been.
            self._ranges |= {other: value for other, value in found.items() if other not in self._ranges}
        return params_from_range(*self._ranges[key], grid)

    def _is_nonnegative(self, tensor: str) -> bool:
        return is_unit_interval(self._view, tensor) or self.statistics.of(tensor).minimum >= 0.0

    def _silu_ranges(self, tensor: str, grid: IntegerGrid) -> dict[tuple[str, int], tuple[float, float]]:
        """The ranges before and behind the SiLU that ``tensor`` belongs to; empty where they are not found together."""
        free = grid.bit_width == 8 and not grid.symmetric and not grid.power_of_two
        on_integers = {"Sigmoid", "Mul"} <= self.target.int8_ops and self.estimator is RangeEstimator.MSE
        around = silu_around(self._view, tensor) if self.pairs_silu and free and on_integers else None
        if around is None or around[0] not in self.statistics.tensors:
            return {}
        before, behind = around
        # Without a value above 0 there is nothing but the dip.
        if self.statistics.of(before).maximum <= 0.0:
            return {}
        found = silu_ranges(error_distribution(self.statistics.of(before), _SILU_PARTS, self.tolerance), grid)
        return {(before, 8): found[0], (behind, 8): found[1]}

    def _range(self, tensor: str, grid: IntegerGrid) -> tuple[float, float]:
        if is_unit_interval(self._view, tensor):
            return 0.0, 1.0
        statistics = self.statistics.of(tensor)
        if grid.bit_width == 16:
            return statistics.minimum * _HEADROOM_16BIT, statistics.maximum * _HEADROOM_16BIT
        function = ACTIVATIONS.get(activation_behind(self._view, tensor) or "")
        if function is not None and self.estimator is RangeEstimator.MSE:
            return mse_through(statistics, grid, function)
        if self.estimator is RangeEstimator.MSE:
            return mse(statistics, grid, self.tolerance)
        return self.estimator.estimate(statistics, grid)

    def _layer_weights(
        self, layer: Layer, placement: Placement, activations: Mapping[tuple[str, int], QuantParams]
    ) -> LayerWeights:
        precision = placement.layers[layer.name]
        weight = self._view.constant(layer.weight)
        if weight is None:
            raise PlanFileError(f"layer {layer.name!r} has no constant weight", do="leave it out of the plan")
        spec = self.target.weight_16bit if precision.weight_bits == 16 else self.target.weight_8bit
        per_channel = self.target.per_channel_weights and layer.weight_channel_axis < weight.ndim
        # A grouped ConvTranspose has Cout/group entries on that axis: one scale cannot stand for several channels.
        axis = (
            layer.weight_channel_axis
            if per_channel and not (layer.op_type == "ConvTranspose" and layer.group > 1)
            else None
        )
        split = self._splits[layer.name] if self._is_split(layer.name, placement) else None
        params = (
            weight_params(weight, integer_grid(spec), axis)
            if split is None
            else grouped_params(weight, integer_grid(spec), split)
        )
        bias = None if layer.bias is None else self._view.constant(layer.bias)
        if layer.name in self.biases:
            bias = self.biases[layer.name]
        elif bias is not None and layer.op_type == "Conv" and layer.input in self.means:
            bias = corrected_bias(layer, weight, bias, params, self.means[layer.input])
        key = (layer.input, precision.activation_bits)
        adds_integers = precision is Precision.INT8 and self.target.quantize_layer_outputs
        integer_bias = (adds_integers or self.target.integer_only) and key in activations
        input_scale = float(activations[key].scale) if integer_bias else None
        if split is not None:
            return grouped_weights(weight, params, bias, input_scale, split)
        return LayerWeights.quantized(weight, params, bias, input_scale)

    def _is_split(self, name: str, placement: Placement) -> bool:
        return name in self._splits and name in placement.layers and placement.layers[name].weight_bits == 8

    def _fits_fp16(self, name: str) -> bool:
        """Whether constants, input and output of a layer stay inside fp16; a layer that does not stays in fp32."""
        layer = self._by_name[name]
        constants = [self._view.constant(tensor) for tensor in (layer.weight, layer.bias) if tensor]
        heaviest = max((float(abs(value).max(initial=0.0)) for value in constants if value is not None), default=0.0)
        return self._tensors_fit_fp16((layer.input, layer.output)) and heaviest <= FP16_LIMIT

    def _tensors_fit_fp16(self, tensors: Iterable[str]) -> bool:
        seen = [self.statistics.tensors[tensor] for tensor in tensors if tensor in self.statistics.tensors]
        largest = max((max(-each.minimum, each.maximum) for each in seen), default=0.0)
        return largest * _FP16_HEADROOM <= FP16_LIMIT

    def _beyond_fp16(self) -> frozenset[str]:
        """Nodes whose outputs, as calibration saw them, do not fit fp16."""
        return frozenset(node_name(node) for node in self._view.nodes if not self._tensors_fit_fp16(node.output))


def integer_grid(spec: GridSpec) -> IntegerGrid:
    """The grid a target's row describes."""
    return IntegerGrid(**spec.model_dump())


def supported_plan(
    plan: PrecisionPlan, layers: tuple[Layer, ...], target: Target, wide_kind: Precision | None = None
) -> PrecisionPlan:
    """``plan`` with int8 layers that ``target`` cannot run in int8 at ``wide_kind`` (None: its own 16 bit)."""
    wide = {
        layer.name: wide_kind or target.wide
        for layer in layers
        if layer.op_type not in target.int8_layers and plan.layers[layer.name] is Precision.INT8
    }
    return plan.with_layers(wide) if wide else plan


def check_plan(plan: PrecisionPlan, layers: tuple[Layer, ...], target: Target) -> None:
    """Raise PlanFileError for a precision that ``target`` does not have, or not for that operator."""
    allowed = {Precision.FP32, Precision.INT8, *target.wide_kinds}
    for layer in layers:
        precision = plan.layers[layer.name]
        if precision not in allowed:
            raise PlanFileError(
                f"layer {layer.name!r} cannot be {precision.value} on target {target.name}",
                expected="one of " + ", ".join(p.value for p in Precision if p in allowed),
                found=precision.value,
                do="change the plan, or choose another --target",
            )
        if precision is Precision.INT8 and layer.op_type not in target.int8_layers:
            raise PlanFileError(
                f"layer {layer.name!r} cannot be int8 on target {target.name}, which runs no 8-bit {layer.op_type}",
                expected="one of " + ", ".join(p.value for p in Precision if p in allowed and p is not Precision.INT8),
                found=precision.value,
                do=f"give it {target.wide.value} in the plan",
            )


def wide_precision(target: Target, name: str | None) -> Precision:
    """The 16-bit precision of ``target`` that the user named, or the target's own. Raises UsageError."""
    if name is None:
        return target.wide
    if name not in {kind.value for kind in target.wide_kinds}:
        raise UsageError(
            f"target {target.name} has no such 16-bit precision",
            expected=f"one of {', '.join(kind.value for kind in target.wide_kinds)}",
            found=repr(name),
            do="choose another --wide or another --target",
        )
    return Precision(name)
