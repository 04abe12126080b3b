"""Removal of nodes that hand their input on unchanged."""

from __future__ import annotations

import onnx

from qtoolkit.graph.view import GraphView, attribute, captured_names

__all__ = ["remove_identities_"]


def remove_identities_(model: onnx.ModelProto) -> int:
    """Take Identity and Dropout nodes out of the graph; in place. Returns how many went.

    Rules:

    - Identity goes; Dropout goes where it does not train (``training_mode`` absent or a constant false) and nothing
      reads its mask;
    - readers of the output read the input instead;
    - where the output is a graph output, it keeps its name: the node that made the input makes the output under
      that name. Where that cannot be (the input is a graph input, a constant or a graph output itself), or where the
      body of an If, Loop or Scan reads one of the two tensors, the node stays.
    """
    removed = 0
    while _remove_one_(model):
        removed += 1
    return removed


def _remove_one_(model: onnx.ModelProto) -> bool:
    view = GraphView(model)
    captured = {name for node in view.nodes for name in captured_names(node)}
    for index, node in enumerate(view.nodes):
        if not _hands_on(view, node) or {node.input[0], node.output[0]} & captured:
            continue
        source, target = node.input[0], node.output[0]
        if target not in view.outputs:
            _rename_reads_(view, target, source)
        elif view.producer(source) is not None and source not in view.outputs:
            _rename_reads_(view, source, target)
            producer = view.producer(source)
            if producer is not None:
                producer.output[list(producer.output).index(source)] = target
        else:
            continue
        del model.graph.node[index]
        return True
    return False


def _hands_on(view: GraphView, node: onnx.NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout" or any(view.consumers(mask) or mask in view.outputs for mask in node.output[1:]):
        return False
    if len(node.input) < 3 or not node.input[2]:
        return not attribute(node, "training_mode", 0)
    training = view.constant(node.input[2])
    return training is not None and not bool(training.any())


def _rename_reads_(view: GraphView, old: str, new: str) -> None:
    for user in view.consumers(old):
        for position, name in enumerate(user.input):
            if name == old:
                user.input[position] = new
