"""Parts of a network: the smallest graph between two cuts, and the cut in front of what a change reaches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import onnx
from onnx import helper, shape_inference

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.view import GraphView, node_name

__all__ = ["Cut", "downstream_cut", "extract"]


class Cut(NamedTuple):
    """Names of the tensors that go into a part of a network, and of those that are wanted from it."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def extract(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The smallest network that computes ``outputs`` from the tensors ``inputs``; ``model`` is left as it is.

    Nodes, tensors and initializers keep their names; only what the outputs need comes along. Each of ``inputs`` that
    is needed becomes a graph input with its type and shape, in the order given; one that no kept node reads is left
    out. Initializers need not be named.

    Raises UsageError for a name that is not in the graph or an output that is an input too, and where the outputs
    depend on a graph input that is not behind ``inputs``; ModelFileError where the type of a cut tensor is unknown.
    """
    view = GraphView(model)
    _check_names(view, inputs, outputs)
    indices = sorted(view.ancestors(outputs, stop_at=inputs))
    reads = {name for index in indices for name in view.reads(index)} | set(outputs)
    cut = [name for name in dict.fromkeys(inputs) if name in reads]
    if uncovered := [name for name in view.inputs if name in reads and name not in cut]:
        raise UsageError(
            "the cut does not separate the outputs from the image",
            expected=f"tensors behind which {', '.join(map(repr, outputs))} depend on nothing else",
            found=f"a path from input {uncovered[0]!r}",
            do="add a tensor of that path, or the input itself, to the cut",
        )
    records = _records(model, [*cut, *outputs])
    made = {name for index in indices for name in view.nodes[index].output if name} - set(outputs)
    # Initializers that the nodes kept read; a cut tensor that was one is fed from outside.
    constants = [tensor for tensor in model.graph.initializer if tensor.name in reads and tensor.name not in cut]
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.producer_name = model.producer_name
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = model.graph.name
    part.graph.node.extend(view.nodes[index] for index in indices)
    part.graph.initializer.extend(constants)
    part.graph.input.extend(records[name] for name in cut)
    part.graph.output.extend(records[name] for name in outputs)
    part.graph.value_info.extend(value for value in model.graph.value_info if value.name in made)
    return part


def downstream_cut(model: onnx.ModelProto, changed_nodes: Iterable[str]) -> Cut:
    """What has to be known to run only the nodes named in ``changed_nodes`` and everything behind them.

    ``inputs`` are the tensors those nodes read from the rest of the network (constants apart), in the order in which
    they are made, graph inputs first; ``outputs`` are the graph outputs that the change reaches, in graph order. With
    ``extract(model, *cut)`` a change is tried without running again what stands before it.

    Raises UsageError for a name that no node has.
    """
    view = GraphView(model)
    index_of = {node_name(node): index for index, node in enumerate(view.nodes)}
    changed: set[int] = set()
    for name in changed_nodes:
        if name not in index_of:
            raise UsageError(
                f"the network has no node {name!r}",
                expected="the name of a node of the prepared network",
                found=repr(name),
                do="take the name from `qtool sensitivity` or from the precision plan of this network",
            )
        changed.add(index_of[name])
    rerun = changed | view.descendants(output for index in changed for output in view.nodes[index].output if output)
    made = {name for index in rerun for name in view.nodes[index].output}
    wanted = {name for index in rerun for name in view.reads(index) if not view.is_constant(name)} - made
    order = [*view.inputs, *(name for node in view.nodes for name in node.output)]
    inputs = tuple(name for name in order if name in wanted)
    return Cut(inputs, tuple(name for name in view.outputs if name in made))


def _check_names(view: GraphView, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    for name in (*inputs, *outputs):
        if view.producer(name) is None and name not in view.inputs and view.initializer(name) is None:
            raise UsageError(
                f"the network has no tensor {name!r}",
                expected="the output of a node, a graph input or an initializer",
                found=repr(name),
                do="take the name from the graph of the prepared network",
            )
    if not outputs or (both := [name for name in outputs if name in inputs]):
        raise UsageError(
            "nothing is left between the two cuts",
            expected="at least one output, and none that is an input too",
            found=f"{both[0]!r} on both sides" if outputs else "no output",
            do="take the tensor out of one of the two",
        )


def _records(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, onnx.ValueInfoProto]:
    """Type and shape of each tensor; shapes are inferred only where the graph does not record them."""
    records = _recorded(model)
    if any(name not in records for name in tensors):
        records = _recorded(shape_inference.infer_shapes(model)) | records
    for name in tensors:
        if name not in records:
            raise ModelFileError(
                f"the network cannot be cut at tensor {name!r}",
                expected="a tensor whose type is known",
                found="no record of it, and none that could be inferred",
                do="prepare the network with load_network first",
            )
    return records


def _recorded(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    graph = model.graph
    records = {
        tensor.name: helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
    }
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.WhichOneof("value") is not None:
            records[value.name] = value
    return records
