"""From an ONNX file to a network that every other part can rely on: one image in, shapes fixed, nothing superfluous."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from onnx import checker, helper, inliner

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.batch_norm import fold_batch_norms_
from qtoolkit.graph.identity import remove_identities_
from qtoolkit.graph.layers import LAYER_OPS
from qtoolkit.graph.opset import OpsetError, raised_to
from qtoolkit.graph.read import default_opset, read_model
from qtoolkit.graph.shapes import NetworkInput, fix_input_shape_, network_input, settle_shapes_
from qtoolkit.graph.tidy import name_nodes_, remove_unused_, sort_nodes_
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["NetworkInput", "load_network", "network_input", "prepare_network"]

# Quantization per channel (an `axis` of QuantizeLinear) came with opset 13.
_WORKING_OPSET = 13
_LOWERED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)
_WIDE_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED)


def load_network(
    path: str | os.PathLike[str], *, input_size_wh: tuple[int, int] | None = None, allow_quantized: bool = False
) -> onnx.ModelProto:
    """Read an ONNX network of opset 11–23 and prepare it as ``prepare_network`` says. The file is left as it is.

    ``input_size_wh`` is needed where the file leaves height or width open. Raises ModelFileError, with a message of
    its own for each, where the file cannot be read (see ``read_model``) or the network cannot be prepared.
    """
    model = read_model(path)
    name = Path(path).name
    return prepare_network(model, source=name, input_size_wh=input_size_wh, allow_quantized=allow_quantized)


def prepare_network(
    model: onnx.ModelProto,
    *,
    source: str = "the network",
    input_size_wh: tuple[int, int] | None = None,
    allow_quantized: bool = False,
) -> onnx.ModelProto:
    """A copy of ``model`` that computes the same and is easier to work on; ``source`` names it in messages.

    Done, in this order: local functions inlined; nodes sorted; checked by ``onnx.checker``; input fixed to
    (1, C, H, W); opsets below 13 raised to 13; Identity and Dropout removed; shapes inferred and constants folded;
    batch norms folded; unused nodes and initializers dropped, no initializer listed as an input; every node named,
    uniquely; checked again. Names of nodes and tensors that stay are kept.

    Raises ModelFileError for an invalid graph, for more than one input or one that is no float32 NCHW image, for an
    open size without ``input_size_wh``, for a size the network cannot run at, and, unless ``allow_quantized``, for a
    network that is quantized or computes in 16 bit already.
    """
    prepared = onnx.ModelProto()
    prepared.CopyFrom(inliner.inline_local_functions(model) if model.functions else model)
    sort_nodes_(prepared)
    _check(prepared, source)
    if not allow_quantized:
        _refuse_lowered(prepared, source)
    change = fix_input_shape_(prepared, source, input_size_wh)
    prepared = _with_working_opset(prepared, source)
    remove_identities_(prepared)
    settle_shapes_(prepared, source, change)
    # Folded constants turn a Dropout's flag, or a batch norm's parameters, into known values.
    while remove_identities_(prepared) + fold_batch_norms_(prepared):
        pass
    remove_unused_(prepared)
    name_nodes_(prepared)
    _check(prepared, source)
    return prepared


def _check(model: onnx.ModelProto, source: str) -> None:
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise ModelFileError(
            f"{source} is not valid ONNX",
            expected="a graph that passes onnx.checker",
            found=str(error).strip().splitlines()[0],
            do="export the network again",
        ) from error


def _refuse_lowered(model: onnx.ModelProto, source: str) -> None:
    view = GraphView(model)
    for node in view.nodes:
        if node.op_type in _LOWERED_OPS:
            raise ModelFileError(
                f"{source} is quantized already",
                expected="a float network",
                found=f"{node.op_type} {node_name(node)!r}",
                do="start from the float network that it was made of",
            )
        if node.op_type in LAYER_OPS:
            for name in node.input[:2]:
                if view.initializer(name) is not None and view.elem_type(name) not in _WIDE_TYPES:
                    kind = onnx.TensorProto.DataType.Name(view.elem_type(name)).lower()
                    raise ModelFileError(
                        f"{source} does not compute in float32",
                        expected="a float32 network",
                        found=f"{node.op_type} {node_name(node)!r} with a {kind} weight",
                        do="export the network in float32: qtool makes the 16-bit network from it",
                    )


def _with_working_opset(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    opset = default_opset(model)
    if opset is not None and opset < _WORKING_OPSET:
        try:
            model = raised_to(model, _WORKING_OPSET)
        except OpsetError as error:
            raise ModelFileError(
                f"{source} cannot be raised from opset {opset} to {_WORKING_OPSET}",
                expected="operators that have an equal in the newer opset",
                found=str(error),
                do=f"export the network with opset {_WORKING_OPSET} or above",
            ) from error
    # Below IR 4 every initializer has to be listed as an input, which prepared networks do not do.
    lowest = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = max(model.ir_version, lowest)
    return model
