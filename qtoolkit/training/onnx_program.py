"""The nodes of an ONNX graph as a list of steps, and which of them a pass has to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import shape_inference
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.layers import weight_positions
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.training.onnx_batch import BatchPlaces, follow_batch
from qtoolkit.training.onnx_operators.site import Operator, Site, UnsupportedNode
from qtoolkit.training.onnx_operators.table import build_operator

__all__ = ["Program", "Step", "compile_graph", "with_shapes"]


@dataclass(frozen=True)
class Step:
    """One node: the tensors it reads ('' for an input left out), the tensors it makes, the function that does it.

    ``frees`` are tensors that nothing reads afterwards. ``weight_position`` is the place of the weight among the inputs
    of a layer, None for a node that is no layer.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operator: Operator
    weight_position: int | None = None
    frees: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled graph: ``steps`` in order, where the batch lies, and pairs (Sigmoid, Mul) of SiLU by node name."""

    steps: tuple[Step, ...]
    batch: BatchPlaces
    silu_pairs: tuple[tuple[str, str], ...]

    def plan(
        self,
        wanted: Collection[str],
        known: Collection[str],
        untouched: Collection[str],
        given: Collection[str] = (),
    ) -> tuple[Step, ...]:
        """The steps that ``wanted`` tensors need, each freeing what is read there last.

        ``known`` tensors are given (inputs and constants) and never freed; so are inner tensors that are ``given``, and
        what they depend on is not run. A Sigmoid and a Mul that are SiLU become one step under the Mul's name, unless
        the sigmoid is wanted or given, or one of the two nodes is in ``untouched``.
        """
        known = {*known, *given}
        needed, steps = set(wanted) - set(given), []
        for step in reversed(self._with_silu({*wanted, *given}, untouched)):
            if needed.intersection(step.outputs):
                steps.append(step)
                needed.update(set(step.inputs) - set(given))
        seen, keep, planned = set[str](), {*wanted, *known, ""}, []
        for step in steps:  # from the last one on: the first reader met is the last one to run
            frees = {name for name in (*step.inputs, *step.outputs) if name not in seen} - keep
            seen.update(step.inputs, step.outputs)
            planned.append(replace(step, frees=tuple(sorted(frees))))
        return tuple(reversed(planned))

    def batch_size(self, fed: Mapping[str, Tensor], plan: Sequence[Step]) -> int:
        """How many images the tensors ``fed`` hold. Raises as ``OnnxModule.forward`` does for a batch that ``plan``
        cannot be run with."""
        places = self.batch
        sizes = {tensor.shape[places.axes[name]] for name, tensor in fed.items() if name in places.axes}
        # Inputs that differ there are no images of one batch.
        batch = sizes.pop() if len(sizes) == 1 else places.fixed_batch
        if batch % places.fixed_batch:
            raise UsageError(
                "the batch size does not fit the network",
                expected=f"a multiple of {places.fixed_batch}, for which it was exported",
                found=str(batch),
            )
        if batch != places.fixed_batch and (mixing := [step.name for step in plan if step.name in places.mixing]):
            raise ModelFileError(
                f"the network cannot be run with a batch of {batch}",
                expected=f"a batch of {places.fixed_batch}, as it was exported, or nodes that keep images apart",
                found="nodes that do not: " + ", ".join(map(repr, mixing)),
                do="export the network with an open batch, or take outputs in front of these nodes",
            )
        return batch

    def _with_silu(self, wanted: Collection[str], untouched: Collection[str]) -> list[Step]:
        by_name = {step.name: step for step in self.steps}
        merged: dict[str, Step] = {}
        dropped: set[str] = set()
        for sigmoid, product in self.silu_pairs:
            if sigmoid in untouched or product in untouched or by_name[sigmoid].outputs[0] in wanted:
                continue
            merged[product] = replace(
                by_name[product], inputs=by_name[sigmoid].inputs, operator=lambda inputs, run: F.silu(inputs[0])
            )
            dropped.add(sigmoid)
        return [merged.get(step.name, step) for step in self.steps if step.name not in dropped]


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` with what shape inference finds out."""
    return shape_inference.infer_shapes(model, data_prop=True)


def compile_graph(view: GraphView, needed: Sequence[str]) -> Program:
    """Build every node that the tensors ``needed`` depend on.

    Raises ModelFileError, naming all nodes that cannot be run in torch and why.
    """
    batch, layers = follow_batch(view), weight_positions(view)
    opsets = {entry.domain or "ai.onnx": int(entry.version) for entry in view.model.opset_import}
    steps: list[Step] = []
    failures: list[tuple[str, str]] = []
    names = Counter(node_name(node) for node in view.nodes)
    for index in sorted(view.ancestors(needed)):
        node = view.nodes[index]
        if node.op_type == "Constant":
            continue
        name = node_name(node) if names[node_name(node)] == 1 else node.output[0]
        site = Site(node, view, opsets.get(node.domain or "ai.onnx", 1), batch.of(node))
        try:
            operator = build_operator(site)
        except UnsupportedNode as reason:
            failures.append((f"{node.op_type} {name!r}", str(reason)))
            continue
        steps.append(Step(name, tuple(node.input), tuple(node.output), operator, layers.get(name)))
    if failures:
        raise ModelFileError(
            "the network cannot be run as a torch module",
            expected="operators that qtoolkit has in torch",
            found="; ".join(f"{node}: {reason}" for node, reason in failures),
            do="export the network without them, or cut them off by naming outputs in front of them",
        )
    return Program(tuple(steps), batch, _silu_pairs(view))


def _silu_pairs(view: GraphView) -> tuple[tuple[str, str], ...]:
    pairs = []
    for node in view.nodes:
        if node.op_type != "Sigmoid" or node.output[0] in view.outputs:
            continue
        readers = view.consumers(node.output[0])
        factors = {node.input[0], node.output[0]}
        if len(readers) == 1 and readers[0].op_type == "Mul" and set(readers[0].input) == factors:
            pairs.append((node_name(node), node_name(readers[0])))
    return tuple(pairs)
