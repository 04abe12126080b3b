"""The kernels of a network, read from its ONNX graph, as TensorRT is assumed to run it.

1. A layer (``graph.layers``) is one kernel. Activation functions, residual Adds and other element-wise operators run in
   the kernel in front of them; a second tensor that they read is read there.
2. Concat, Split, Slice and changes of shape cost nothing. Pooling, Resize, Softmax and products of activations are
   kernels of their own.
3. A layer whose input and weight come out of 8-bit Q/DQ computes in int8, one with fp16 tensors in fp16, any other in
   fp32. Pooling and Resize have the widest precision that their readers want (TensorRT moves a Q in front of them);
   every other kernel has that of the tensor it reads.
4. An int8 kernel writes what its readers want, 8 bits or float. A float kernel writes its own precision, and where a
   reader wants another one a conversion is a kernel of its own, one a tensor and precision. Source: NVIDIA TensorRT
   documentation, "Explicit Quantization": where a convolution computes in floating point, the Q layer behind it is not
   fused. The conversion of the image is not counted: it is within the times that the model was fitted to.
5. Behind the last layers (the decode arithmetic) nothing is counted: many small kernels, of which MACs and bytes tell
   little. ``NetworkWork.decodes`` says whether there is more than a change of shape or a sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

import onnx

from qtoolkit.artifacts.plan import Precision
from qtoolkit.bench.layer_work import CONVERSION, LayerWork, NetworkWork
from qtoolkit.errors import ModelFileError
from qtoolkit.graph.layers import LAYER_OPS, weight_positions
from qtoolkit.graph.macs import node_macs
from qtoolkit.graph.view import GraphView, attribute, node_name

__all__ = ["network_work"]

_SHAPE_OPS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"})
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_ACTIVATIONS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Elu", "Gelu", "Clip", "Tanh", "Softplus", "Mish", "Sigmoid", "HardSigmoid"}
    | {"HardSwish", "Neg", "Erf"}
)
_TWO_TENSORS = frozenset({"Add", "Sub", "Mul", "Div"})
_NO_KERNEL = _SHAPE_OPS | _QDQ | _ACTIVATIONS | _TWO_TENSORS | {"Concat", "Split", "Slice", "Pad", "Expand"}
_NO_DECODING = _SHAPE_OPS | _QDQ | _ACTIVATIONS | {"Concat", "Split", "Mul"}
_MOVING_OPS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Resize"})
_LOWERED = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_8BIT = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_16BIT = (onnx.TensorProto.INT16, onnx.TensorProto.UINT16)


def network_work(model: onnx.ModelProto) -> NetworkWork:
    """The kernels of a network with fixed shapes: float, or with Q/DQ pairs or fp16 layers in it.

    Raises ModelFileError where a shape is not known, and for what TensorRT has not: 16-bit integers, and integer
    operators in place of Q/DQ pairs.
    """
    return _Reader(model).read()


@dataclass
class _Kernel:
    """A kernel while it is read: who wants its output in which precision, and the kernels its input comes out of."""

    work: LayerWork
    is_layer: bool
    roots: frozenset[int]
    residuals: list[tuple[frozenset[int], Precision]] = field(default_factory=list)
    wanted: set[Precision] = field(default_factory=set)


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._view = GraphView(onnx.shape_inference.infer_shapes(model))
        self._kernels: list[_Kernel] = []
        # Tensor → the kernels its values come out of; none for the network's input.
        self._roots: dict[str, frozenset[int]] = dict.fromkeys(self._view.inputs, frozenset())

    def read(self) -> NetworkWork:
        view = self._view
        layers = self._find_layers()
        ahead = _layers_ahead(view, set(layers))
        decodes = False
        for index, node in enumerate(view.nodes):
            data = [tensor for tensor in view.reads(index) if tensor in self._roots]
            if not data:
                continue
            if index not in layers and not ahead[index]:
                self._read_in_tail(data)
                self._roots |= dict.fromkeys((each for each in node.output if each), frozenset[int]())
                decodes = decodes or node.op_type not in _NO_DECODING
            elif index in layers:
                self._add_layer(node, layers[index])
            elif node.op_type in _NO_KERNEL:
                self._pass_on(node, data)
            else:
                self._add_other(node, data)
        self._read_in_tail([each for each in view.outputs if each in self._roots])
        self._settle_precisions()
        names = frozenset(each.work.name for each in self._kernels if each.is_layer)
        batches = [shape[0] for name in view.inputs if (shape := view.shape(name))]
        return NetworkWork(self._with_conversions(), decodes, names, max(batches, default=1))

    def _find_layers(self) -> dict[int, int]:
        """Index of each layer's node → position of its weight, in quantized networks too."""
        view, plain = self._view, weight_positions(self._view)
        found: dict[int, int] = {}
        for index, node in enumerate(view.nodes):
            if node.op_type in _LOWERED:
                raise ModelFileError(
                    f"{node.op_type} {node_name(node)!r} does not exist in TensorRT",
                    expected="Q/DQ pairs (QuantizeLinear, DequantizeLinear) around float operators",
                    found=node.op_type,
                    do="make the network with qtool quantize --target tensorrt",
                )
            if (position := plain.get(node_name(node))) is not None:
                found[index] = position
            elif node.op_type in LAYER_OPS:
                stored = [self._is_stored(tensor) for tensor in node.input[:2]]
                if stored[-1] or (node.op_type == "MatMul" and stored[0]):
                    found[index] = stored.index(True)
        return found

    def _is_stored(self, tensor: str) -> bool:
        """Whether ``tensor`` is a constant behind Q, DQ or a change of shape or type, and no constant itself."""
        producer = self._view.producer(tensor)
        if producer is None or producer.op_type not in _QDQ | _SHAPE_OPS:
            return False
        return self._view.is_constant(producer.input[0]) or self._is_stored(producer.input[0])

    def _size(self, tensor: str) -> int:
        shape = self._view.shape(tensor)
        if shape is None:
            raise ModelFileError(
                f"the size of tensor {tensor!r} is not known",
                expected="a network whose tensor shapes are all fixed",
                found="a free dimension",
                do="give the input size with --input-size",
            )
        return prod(shape)

    def _read_bits(self, tensor: str) -> int:
        """8 or 16 where ``tensor`` comes out of a DQ, directly or through changes of shape, else 0."""
        producer = self._view.producer(tensor)
        while producer is not None and producer.op_type in _SHAPE_OPS:
            producer = self._view.producer(producer.input[0])
        if producer is None or producer.op_type != "DequantizeLinear":
            return 0
        kind = self._view.elem_type(producer.input[0])
        return 8 if kind in _8BIT else 16 if kind in _16BIT else 0

    def _add_layer(self, node: onnx.NodeProto, position: int) -> None:
        weight, data = node.input[position], node.input[1 - position]
        bits = self._read_bits(data), self._read_bits(weight)
        if 16 in bits:
            raise ModelFileError(
                f"layer {node_name(node)!r} is in 16-bit integers, which TensorRT has not",
                expected="int8, fp16 or fp32 layers",
                found="int16",
                do="make the network with qtool quantize --target tensorrt",
            )
        shape = self._view.shape(weight) or ()
        bias = self._size(node.input[2]) if len(node.input) > 2 and node.input[2] else 0
        precision = Precision.INT8 if bits == (8, 8) else self._float_precision(data)
        self._add(
            node, [data], is_layer=True, weights=self._size(weight) + bias, channels=_channels(node, shape),
            precision=precision,
        )  # fmt: skip

    def _add_other(self, node: onnx.NodeProto, data: list[str]) -> None:
        self._add(node, data, is_layer=False, precision=self._float_precision(data[0]))

    def _add(self, node: onnx.NodeProto, data: list[str], *, is_layer: bool, precision: Precision,
             weights: int = 0, channels: int = 0) -> None:  # fmt: skip
        work = LayerWork(
            node_name(node), node.op_type, macs=node_macs(self._view, node), read=sum(map(self._size, data)),
            written=sum(self._size(each) for each in node.output if each), weights=weights, channels=channels,
            precision=precision,
        )  # fmt: skip
        roots = frozenset[int]().union(*(self._roots[each] for each in data))
        kernel = _Kernel(work, is_layer, roots)
        self._roots |= {each: frozenset({len(self._kernels)}) for each in node.output if each}
        self._kernels.append(kernel)

    def _float_precision(self, tensor: str) -> Precision:
        return Precision.FP16 if self._view.elem_type(tensor) == onnx.TensorProto.FLOAT16 else Precision.FP32

    def _pass_on(self, node: onnx.NodeProto, data: list[str]) -> None:
        sources = [self._roots[each] for each in data]
        roots = frozenset[int]().union(*sources)
        if node.op_type in _TWO_TENSORS and len(set(sources)) > 1 and roots:
            # A residual: the kernel that ends later adds what the earlier one left in memory.
            last = max(roots)
            for tensor, source in zip(data, sources, strict=True):
                if last not in source:
                    self._add_residual(last, tensor, source)
            roots = frozenset({last})
        self._roots |= {each: roots for each in node.output if each}

    def _add_residual(self, kernel: int, tensor: str, source: frozenset[int]) -> None:
        adding = self._kernels[kernel]
        adding.work = replace(adding.work, read=adding.work.read + self._size(tensor))
        wanted = Precision.INT8 if self._read_bits(tensor) == 8 else self._float_precision(tensor)
        adding.residuals.append((source, wanted))

    def _read_in_tail(self, data: list[str]) -> None:
        """An int8 kernel writes float for decode arithmetic and outputs; a float one writes what it has."""
        for root in frozenset[int]().union(*(self._roots[each] for each in data)):
            kernel = self._kernels[root]
            if kernel.work.precision is Precision.INT8:
                kernel.wanted.add(Precision.FP32)

    def _settle_precisions(self) -> None:
        """From the last kernel to the first, so that the readers of each are known when its turn comes."""
        for kernel in reversed(self._kernels):
            if kernel.work.op in _MOVING_OPS and kernel.wanted:
                kernel.work = replace(kernel.work, precision=_widest(kernel.wanted))
            for root in kernel.roots:
                self._kernels[root].wanted.add(kernel.work.precision)
            for source, wanted in kernel.residuals:
                for root in source:
                    self._kernels[root].wanted.add(wanted)

    def _with_conversions(self) -> tuple[LayerWork, ...]:
        works: list[LayerWork] = []
        for kernel in self._kernels:
            work, wanted = kernel.work, set(kernel.wanted)
            if work.precision is Precision.INT8 and wanted - {Precision.INT8}:
                work = replace(work, written_as=_widest(wanted))
            works.append(work)
            stored = work.written_as or work.precision
            works += [_conversion(work, stored, each) for each in sorted(wanted - {stored}, key=lambda p: p.value)]
        return tuple(works)


def _widest(wanted: set[Precision]) -> Precision:
    return max(wanted, key=lambda each: each.activation_bits)


def _conversion(work: LayerWork, stored: Precision, wanted: Precision) -> LayerWork:
    name = f"{work.name} to {wanted.value}"
    return LayerWork(name, CONVERSION, 0, work.written, work.written, precision=stored, written_as=wanted)


def _channels(node: onnx.NodeProto, weight_shape: tuple[int, ...]) -> int:
    """The smaller of the input and the output channels of one group."""
    if len(weight_shape) < 2:
        return 0
    if node.op_type in ("Gemm", "MatMul"):
        return min(weight_shape[-2:])
    group = int(attribute(node, "group", 1))
    # Conv: (Cout, Cin / group, …); ConvTranspose: (Cin, Cout / group, …).
    return min(weight_shape[0] // group, weight_shape[1])


def _layers_ahead(view: GraphView, layers: set[int]) -> list[bool]:
    """For each node, whether a layer is reachable from its outputs."""
    ahead = [False] * len(view.nodes)
    for index in range(len(view.nodes) - 1, -1, -1):
        users = {user for name in view.nodes[index].output if name for user in view.consumer_indices(name)}
        ahead[index] = any(user in layers or ahead[user] for user in users)
    return ahead
