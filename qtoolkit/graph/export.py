"""A torch network as an ONNX file: the one door of the graph package to torch.

torch has two exporters. The one used here traces the module and writes opset 17 as well as 21 itself, in about a
second. The other (``dynamo=True``) knows no opset below 18, takes ten times as long for the same graph, and writes
paths of the machine into the file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import nn

from qtoolkit.errors import UsageError
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.view import GraphView

__all__ = ["EXPORT_OPSETS", "export_onnx"]

EXPORT_OPSETS = (17, 21)
"""Lowest and highest opset that is written; int16 Q/DQ is standard from 21."""

_UNNAMED = "constant"


def export_onnx(
    module: nn.Module,
    input_size_wh: tuple[int, int],
    *,
    opset: int = 17,
    input_name: str = "images",
    output_name: str = "output0",
    without_prefix: str = "",
) -> onnx.ModelProto:
    """``module`` in evaluation mode for one image: ``input_name`` (1, 3, H, W) float32 → ``output_name``.

    Shapes are fixed, batch norms folded, what does not depend on the image computed (``prepare_network``). Nodes are
    called by the path of their module, convolutions by the path alone (``backbone.stem.conv.conv``), others with the
    operator behind it; a tensor by the node that makes it. ``without_prefix`` is left out at the start of paths. The
    same weights give the same bytes. The module is left in the mode it was in.

    Raises UsageError for an opset outside 17–21, and what the module raises for this input size.
    """
    lowest, highest = EXPORT_OPSETS
    if not lowest <= opset <= highest:
        raise UsageError(
            "this opset cannot be written",
            expected=f"{lowest} to {highest}",
            found=str(opset),
            do=f"give --opset {lowest}, or {highest} for int16 networks",
        )
    model = _traced(module, input_size_wh, opset, input_name, output_name)
    _read_shared_weights_directly_(model)
    _rename_nodes_(model, without_prefix)
    prepared = prepare_network(model, source="the exported network")
    _rename_tensors_(prepared)
    prepared.producer_name, prepared.producer_version = "qtoolkit", ""
    return prepared


def _traced(
    module: nn.Module, input_size_wh: tuple[int, int], opset: int, input_name: str, output_name: str
) -> onnx.ModelProto:
    width, height = input_size_wh
    first = next(module.parameters(), torch.zeros(()))
    image = torch.zeros((1, 3, height, width), dtype=torch.float32, device=first.device)
    stream = io.BytesIO()
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        # A first run for the module's own objections: within the exporter they come out as something else.
        with torch.no_grad():
            module(image)
        with _quiet():
            # Batch norms are kept, in evaluation form: torch folds them too, but then weights lose their names.
            torch.onnx.export(
                module,
                (image,),
                stream,  # type: ignore[arg-type]  # paths only, says the signature; this exporter takes both
                dynamo=False,
                opset_version=opset,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                input_names=[input_name],
                output_names=[output_name],
            )
    finally:
        for each, mode in modes:
            each.training = mode
    return onnx.load_from_string(stream.getvalue())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about sizes becoming constants, which is what is wanted, nor about the age of the exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read_shared_weights_directly_(model: onnx.ModelProto) -> None:
    """Of equal weights torch keeps one and hands it on through Identity: the readers take it themselves; in place."""
    weights = {tensor.name for tensor in model.graph.initializer}
    kept: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in weights:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _rename_values_(model, renamed)


def _rename_nodes_(model: onnx.ModelProto, without_prefix: str) -> None:
    """Nodes and weights by the path of their module; in place."""
    start = f"{without_prefix}." if without_prefix else ""
    taken: set[str] = set()
    for node in model.graph.node:
        name = _path(node.name).removeprefix(start)
        if node.op_type == "Conv":
            name = name.rpartition(".")[0] or name
        node.name = _free(name, taken)
    weights = {tensor.name: tensor.name.removeprefix(start) for tensor in model.graph.initializer}
    _rename_values_(model, weights)


def _path(name: str) -> str:
    """``/model/stage/m/m.0/conv/Conv_3`` → ``model.stage.m.0.conv.conv_3``."""
    parts = name.strip("/").split("/")
    parts[-1] = parts[-1].lower()
    # Members of a Sequential or a ModuleList come behind its own name, which theirs begins with.
    kept = [part for part, after in zip(parts, [*parts[1:], ""], strict=True) if not after.startswith(f"{part}.")]
    return ".".join(kept)


def _free(name: str, taken: set[str]) -> str:
    candidate, count = name, 2
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    taken.add(candidate)
    return candidate


def _rename_tensors_(model: onnx.ModelProto) -> None:
    """Tensors by the node that makes them, constants without a name of their own by the first that reads them."""
    view = GraphView(model)
    fixed = {*view.inputs, *view.outputs}
    names: dict[str, str] = {}
    taken = set(fixed) | {tensor.name for tensor in model.graph.initializer}
    for node in view.nodes:
        for position, output in enumerate(node.output):
            if output and output not in fixed:
                names[output] = _free(node.name if len(node.output) == 1 else f"{node.name}.{position}", taken)
        for name in node.input:
            if name.startswith(("/", "onnx::")) and view.initializer(name) is not None and name not in names:
                names[name] = _free(f"{node.name}.{_UNNAMED}", taken)
    _rename_values_(model, names)


def _rename_values_(model: onnx.ModelProto, names: dict[str, str]) -> None:
    graph = model.graph
    for node in graph.node:
        for field in (node.input, node.output):
            renamed = [names.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)
    values: list[Any] = [*graph.initializer, *graph.value_info]
    for value in values:
        value.name = names.get(value.name, value.name)
