"""What a target can do, as data: the record whose rows stand in ``backends/targets.py``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from qtoolkit.artifacts.plan import Precision
from qtoolkit.corrections import Correction

__all__ = ["GridSpec", "Target"]


class GridSpec(BaseModel):
    """The fields of ``numerics.affine.IntegerGrid``, as data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bit_width: int
    signed: bool
    symmetric: bool
    narrow_range: bool = False
    power_of_two: bool = False


class Target(BaseModel):
    """Device, runtime, allowed precisions and the places where Q/DQ may stand.

    - ``int8_layers``: operators of layers that can run with 8-bit tensors.
    - ``activation_8bit``, ``activation_16bit``, ``weight_8bit``, ``weight_16bit``: integer grids;
      ``per_channel_weights``.
    - ``wide_kinds``: the 16-bit precisions it takes, its own default first.
    - ``quantize_layer_outputs``: a Q must stand behind an integer layer too, or the runtime runs it in float; behind
      one of ``fused_activations`` where such an operator follows, because the runtime fuses the two.
    - ``int8_ops``: operators with 8-bit kernels that read and write tensors of different scales; ``shape_ops``:
      operators that pass 8-bit values on, so that input and output share their quantization parameters.
    - ``float_last_inputs``: an 8-bit last layer reads its input in float, its weights alone are on a grid: no Q stands
      behind it, so the runtime computes it in float whatever it reads.
    - ``slow_softmax``: a Softmax over an inner axis of the decode tail is written out (``graph/softmax.py``);
      ``slow_upsampling``: so is upsampling that repeats 8-bit values (``graph/upsample.py``); ``slow_broadcasts``:
      constants of the tail that are spread in short runs are spread beforehand (``graph/broadcast.py``).
    - ``channel_multiple``: its fast integer kernels take channels in so many at a time (``graph/pad_channels.py``).
    - ``quantize_residual_adds``: both inputs of a residual Add carry Q/DQ, though the Add itself is no layer.
    - ``integer_only``: no tensor in front of the decode tail is float: those between 16-bit layers lie on a 16-bit
      grid, and the width of a tensor is that of its readers (rules in ``graph/integer_flow.py``).
    - ``unsigned_where_nonnegative``: a tensor that calibration never saw below 0 takes the unsigned form of its grid.
    - ``corrections``: those that every effort takes here (``qtoolkit.corrections``).
    - ``concat_forces_inputs``: a Concat that is read at 16 bit forces the layers behind its inputs to 16 bit (TIDL).
    - ``strongly_typed``: each tensor is computed in the type the graph gives it, so networks are built from the form
      that ``graph/strongly_typed.py`` makes, with fp16 tensors; ``half_scales``: and fp16 scales.
    - ``needs_engine``: its runtime opens engines that ``qtool build`` makes, on a GPU; not ONNX networks.
    - ``opsets``: lowest and highest opset of a quantized network there; None where any will do.
    - ``wide_is_slower_note``: what a table must say of 16-bit latency on this target.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    backend: str
    description: str
    activation_8bit: GridSpec
    activation_16bit: GridSpec
    weight_8bit: GridSpec
    weight_16bit: GridSpec
    per_channel_weights: bool
    int8_layers: frozenset[str]
    wide_kinds: tuple[Precision, ...]
    quantize_layer_outputs: bool
    fused_activations: frozenset[str] = frozenset()
    int8_ops: frozenset[str] = frozenset()
    shape_ops: frozenset[str] = frozenset()
    float_last_inputs: bool = False
    slow_softmax: bool = False
    slow_upsampling: bool = False
    slow_broadcasts: bool = False
    channel_multiple: int = 1
    quantize_residual_adds: bool = False
    integer_only: bool = False
    unsigned_where_nonnegative: bool = False
    corrections: tuple[Correction, ...] = ()
    concat_forces_inputs: bool = False
    strongly_typed: bool = False
    half_scales: bool = False
    needs_engine: bool = False
    opsets: tuple[int, int] | None = None
    wide_is_slower_note: str = ""

    @property
    def wide(self) -> Precision:
        """The target's own 16-bit precision."""
        return self.wide_kinds[0]
