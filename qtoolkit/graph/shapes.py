"""The one image that goes in, and the shapes that follow from its size."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx
from onnx import shape_inference

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.fold import fold_constants_
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["NetworkInput", "ShapeChange", "fix_input_shape_", "network_input", "settle_shapes_"]

_IMAGE_CHANNELS = (1, 3)


@dataclass(frozen=True)
class NetworkInput:
    """The image input of a prepared network: its ``name`` and its ``shape`` (1, C, H, W), float32."""

    name: str
    shape: tuple[int, int, int, int]

    @property
    def input_size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.shape[3], self.shape[2]


@dataclass(frozen=True)
class ShapeChange:
    """What ``fix_input_shape_`` did: the input shape ``before`` (None where a dimension was open) and ``after``.

    ``strict`` says that shape inference found nothing to object to before the change, so that what it objects to
    afterwards is due to the change.
    """

    before: tuple[int | None, ...]
    after: tuple[int, int, int, int]
    strict: bool

    @property
    def changed(self) -> bool:
        """Whether the shape after is another than the shape before."""
        return self.before != self.after


def network_input(model: onnx.ModelProto) -> NetworkInput:
    """The image input of a network that ``load_network`` has prepared.

    Raises ModelFileError where there is not exactly one float32 image input, or where its shape is not fixed.
    """
    value, dims = _image_input(model, "the network")
    if any(dim is None for dim in dims):
        raise _open_size("the network", value.name, dims)
    batch, channels, height, width = (dim or 0 for dim in dims)
    return NetworkInput(value.name, (batch, channels, height, width))


def fix_input_shape_(model: onnx.ModelProto, source: str, input_size_wh: tuple[int, int] | None = None) -> ShapeChange:
    """Give the image input the shape (1, C, H, W) with no dimension open; in place.

    Rules: the batch becomes 1; height and width come from ``input_size_wh`` or, without it, from the graph. Where the
    shape changes, all recorded shapes of other tensors are dropped, since they may no longer hold: infer them anew
    with ``settle_shapes_``, which also finds out whether the network can run in the new shape.

    Raises ModelFileError where there is not exactly one float32 NCHW image input of 1 or 3 channels or where height
    or width is open and ``input_size_wh`` not given; UsageError for a size below 1.
    """
    value, dims = _image_input(model, source)
    if input_size_wh is not None and min(input_size_wh) < 1:
        raise UsageError(
            "the input size is not a size",
            expected="width and height of at least one pixel",
            found=f"{input_size_wh[0]}x{input_size_wh[1]}",
            do="give, for example, --input-size 640x640",
        )
    width, height = input_size_wh or (dims[3], dims[2])
    if width is None or height is None:
        raise _open_size(source, value.name, dims)
    after = (1, dims[1] or 0, height, width)
    if dims == after:
        return ShapeChange(dims, after, strict=False)
    change = ShapeChange(dims, after, strict=_infers_strictly(model))
    for dim, size in zip(value.type.tensor_type.shape.dim, after, strict=True):
        dim.Clear()
        dim.dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return change


def settle_shapes_(model: onnx.ModelProto, source: str, change: ShapeChange) -> None:
    """Infer shapes and fold what becomes constant by them, in turn, until nothing new is known; in place.

    Shape inference is strict where ``change.strict``, else strict if possible. Raises ModelFileError where the network
    cannot run in the shape it was changed to: inference says so, or a Reshape would alter the number of elements.
    """
    while True:
        try:
            _infer_(model, strict=True)
        except shape_inference.InferenceError as error:
            if change.strict:
                raise _unfit(source, change, _first_reason(str(error))) from error
            _infer_(model, strict=False)
        if not fold_constants_(model):
            break
    if change.changed:
        _check_reshapes(model, source, change)


def _image_input(model: onnx.ModelProto, source: str) -> tuple[onnx.ValueInfoProto, tuple[int | None, ...]]:
    """The only graph input and its four dimensions, None where one is open."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in initializers]
    if len(values) != 1:
        names = ", ".join(repr(value.name) for value in values)
        raise ModelFileError(
            f"{source} does not take exactly one image",
            expected="one input, (1, 3, H, W) or (1, 1, H, W)",
            found=f"{len(values)} inputs: {names}" if values else "no input",
            do="export the network with the image as its only input",
        )
    return values[0], _image_dims(values[0], source)


def _image_dims(value: onnx.ValueInfoProto, source: str) -> tuple[int | None, ...]:
    """The dimensions of an input that is proved to be a float32 NCHW image."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type != onnx.TensorProto.FLOAT:
        kind = value.type.WhichOneof("value") or "no type"
        if kind == "tensor_type":
            kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelFileError(
            f"input {value.name!r} of {source} is not float32",
            expected="a float32 image scaled to 0–1",
            found=kind,
            do="export the network in float32: qtool makes the 16-bit and 8-bit networks from it",
        )
    if len(tensor.shape.dim) != 4:
        rank = f"{len(tensor.shape.dim)} dimensions" if tensor.HasField("shape") else "an unknown number of dimensions"
        raise ModelFileError(
            f"input {value.name!r} of {source} is not an image",
            expected="four dimensions: (1, 3, H, W) or (1, 1, H, W)",
            found=rank,
            do="export the network with an NCHW image input",
        )
    dims = tuple(int(dim.dim_value) if dim.dim_value > 0 else None for dim in tensor.shape.dim)
    if dims[1] not in _IMAGE_CHANNELS:
        channels_last = dims[3] in _IMAGE_CHANNELS
        raise ModelFileError(
            f"input {value.name!r} of {source} has no image channels where they are expected",
            expected="(1, 3, H, W) or (1, 1, H, W)",
            found=_shape_text(dims) + (": channels last" if channels_last else ""),
            do="export the network with an NCHW image input and a fixed number of channels",
        )
    return dims


def _open_size(source: str, name: str, dims: tuple[int | None, ...]) -> ModelFileError:
    return ModelFileError(
        f"{source} leaves the size of its input {name!r} open",
        expected="a fixed height and width",
        found=_shape_text(dims),
        do="give the size, for example --input-size 640x640",
    )


def _shape_text(dims: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in dims) + ")"


def _infers_strictly(model: onnx.ModelProto) -> bool:
    try:
        shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError:
        return False
    return True


def _infer_(model: onnx.ModelProto, *, strict: bool) -> None:
    model.CopyFrom(shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True))


def _check_reshapes(model: onnx.ModelProto, source: str, change: ShapeChange) -> None:
    view = GraphView(model)
    for node in view.nodes:
        if node.op_type != "Reshape":
            continue
        before, after = view.shape(node.input[0]), view.shape(node.output[0])
        if before is not None and after is not None and prod(before) != prod(after):
            raise _unfit(source, change, f"Reshape {node_name(node)!r} from {before} to {after}")


def _first_reason(message: str) -> str:
    # What follows the first line are nodes that only suffer from it.
    lines = [line.strip() for line in message.splitlines() if "(op_type:" in line] or [message.strip()]
    return lines[0][max(lines[0].find("(op_type:"), 0) :]


def _unfit(source: str, change: ShapeChange, reason: str) -> ModelFileError:
    _, _, height, width = change.after
    if None in change.before[2:]:
        expected = "a size that suits its strides, as a rule a multiple of 32"
        do = "give another --input-size"
    else:
        expected = f"its own input shape, {_shape_text(change.before)}"
        do = "leave out --input-size, or export the network for batch 1 and that size, or with open dimensions"
    return ModelFileError(
        f"{source} cannot run at batch 1 and {width}x{height} pixels", expected=expected, found=reason, do=do
    )
