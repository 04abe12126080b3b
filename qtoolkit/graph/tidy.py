"""Order, names and leftovers of a graph; nothing here changes what the network computes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.view import GraphView, captured_names, node_name

__all__ = ["name_nodes_", "remove_unused_", "rewrite_graph_", "sort_nodes_", "with_graph"]


def sort_nodes_(model: onnx.ModelProto) -> None:
    """Order the nodes so that every tensor is made before it is read; in place.

    Rules: a graph in order is left as it is; otherwise a node stands at the earliest place that its inputs allow,
    nodes that are free at the same time keeping their order. Raises ModelFileError where a tensor is read that
    nothing makes, and where nodes wait for one another.
    """
    graph = model.graph
    ready = {""} | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    ready |= {tensor.values.name for tensor in graph.sparse_initializer}
    made = ready | {output for node in graph.node for output in node.output}
    waiting = [(node, {*node.input, *captured_names(node)}) for node in graph.node]
    for node, reads in waiting:
        if missing := sorted(reads - made):
            raise ModelFileError(
                f"node {node_name(node)!r} ({node.op_type}) reads a tensor that nothing in the graph makes",
                expected="an input, an initializer or the output of another node",
                found=repr(missing[0]),
                do="export the network again",
            )
    ordered: list[onnx.NodeProto] = []
    while waiting:
        blocked = []
        for node, reads in waiting:
            if reads <= ready:
                ordered.append(node)
                ready.update(node.output)
            else:
                blocked.append((node, reads))
        if len(blocked) == len(waiting):
            raise ModelFileError(
                "the graph has a cycle",
                expected="nodes that can be put in an order",
                found=f"{len(blocked)} nodes that wait for one another, {node_name(blocked[0][0])!r} among them",
                do="export the network again",
            )
        waiting = blocked
    _replace_nodes_(model, ordered)


def remove_unused_(model: onnx.ModelProto) -> None:
    """Drop what no graph output depends on; in place.

    Rules: nodes that no output depends on go; initializers and shape records of tensors that are no longer there go;
    initializers are not listed as graph inputs. Graph inputs proper stay, read or not.
    """
    view = GraphView(model)
    needed = view.ancestors(view.outputs)
    reads = {name for index in needed for name in view.reads(index)} | set(view.outputs)
    made = {name for index in needed for name in view.nodes[index].output}
    graph = model.graph
    _replace_nodes_(model, [node for index, node in enumerate(view.nodes) if index in needed])
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in reads:
            del graph.initializer[index]
    for index in reversed(range(len(graph.input))):
        if view.initializer(graph.input[index].name) is not None:
            del graph.input[index]
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name not in made:
            del graph.value_info[index]


def rewrite_graph_(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto]
) -> None:
    """Give the graph ``nodes`` instead of its own, and ``initializers`` more; in place.

    Rules: nodes may be the graph's own; initializers and shape records of tensors that no node needs any more go.
    """
    graph = model.graph
    # Copies, because clearing the field below empties the graph's own nodes.
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    used = {name for node in copies for name in (*node.input, *captured_names(node))}
    used |= {value.name for value in graph.output}
    made = {name for node in copies for name in node.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    known = [value for value in graph.value_info if value.name in made]
    for field, values in ((graph.node, copies), (graph.initializer, [*kept, *initializers]), (graph.value_info, known)):
        del field[:]
        field.extend(values)


def with_graph(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto]
) -> onnx.ModelProto:
    """A copy of ``model`` on which ``rewrite_graph_`` was called."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rewrite_graph_(copy, nodes, initializers)
    return copy


def name_nodes_(model: onnx.ModelProto) -> None:
    """Give every node a name of its own; in place.

    Rules: a given name stays, with its first node; a node without one, or with one that is taken, gets the name of
    its first output; where that is taken too, ``_2``, ``_3`` … is added.
    """
    taken: set[str] = set()
    nameless: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name and node.name not in taken:
            taken.add(node.name)
        else:
            nameless.append(node)
    for node in nameless:
        base = next((output for output in node.output if output), node.op_type)
        name, count = base, 2
        while name in taken:
            name, count = f"{base}_{count}", count + 1
        node.name = name
        taken.add(name)


def _replace_nodes_(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    if len(nodes) == len(model.graph.node) and all(a is b for a, b in zip(nodes, model.graph.node, strict=True)):
        return
    del model.graph.node[:]
    model.graph.node.extend(nodes)
