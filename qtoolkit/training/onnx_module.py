"""An ONNX graph as a torch module: its initializers are parameters, its layers have places for transforms.

Names are those of the graph throughout: of layers and nodes for the places, of initializers for the parameters, of
tensors for what is captured. So retraining, quantization-aware training and learned rounding work on any ONNX network,
without the Python code that it was made by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import onnx
import torch
from torch import Tensor, nn

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.view import GraphView
from qtoolkit.training.onnx_operators.linear_quantization import is_quantized
from qtoolkit.training.onnx_operators.shaping import to_tensor
from qtoolkit.training.onnx_operators.site import Pass, UnsupportedNode, torch_dtype
from qtoolkit.training.onnx_parameters import batch_norm_statistics, choose_parameters, write_constants_
from qtoolkit.training.onnx_program import Step, compile_graph, with_shapes

__all__ = ["Feeds", "OnnxModule", "Transform"]

Feeds: TypeAlias = "Tensor | Mapping[str, Tensor]"
Transform: TypeAlias = Callable[[Tensor], Tensor]


def _key(kind: str, name: str) -> str:
    """A name that torch accepts for a parameter or a submodule, another for each ``name``."""
    return f"{kind}:{name.replace('%', '%25').replace('.', '%2E')}"


class OnnxModule(nn.Module):
    """Runs an ONNX network in torch, with gradients, for any batch size.

    ``outputs`` names the tensors that ``forward`` returns by default, the graph's outputs without it; only nodes that
    they or its inner tensors need are built, so that a tail torch has no operators for, or one written for another
    image size, can be left off. ``trainable`` names the initializers that become parameters (see
    ``onnx_parameters.choose_parameters`` for the default); all other constants are buffers. An initializer that several
    nodes share is one parameter. ``channels_last`` stores weights and images so, which CPUs with wide registers and
    GPUs with tensor cores compute faster.

    Constants written for a batch of one (Reshape targets, class tokens) serve every batch. In training mode batch norms
    use and update the statistics of the batch; call ``eval()`` for what the graph computes.

    Raises ModelFileError, naming every node that cannot be run, and UsageError for unknown names.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        outputs: Sequence[str] | None = None,
        trainable: Collection[str] | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        view = GraphView(with_shapes(self._model))
        self._known_tensors = {name for node in view.nodes for name in node.output if name} | set(view.inputs)
        self._check_tensors(outputs or ())
        self.inputs: tuple[str, ...] = view.inputs
        self.outputs: tuple[str, ...] = tuple(view.outputs if outputs is None else outputs)
        self.channels_last = channels_last
        self._program = compile_graph(view, self.outputs)
        self._statistics = batch_norm_statistics(view)
        self._integer_outputs = {
            node.output[0]: torch_dtype(view.elem_type(node.output[0])) for node in view.nodes if is_quantized(node)
        }
        self._keys: dict[str, str] = {}
        self._add_constants(view, choose_parameters(view, trainable))
        self._layers = {step.name: step for step in self._program.steps if step.weight_position is not None}
        self._input_transforms: dict[str, Transform] = {}
        self._weight_transforms: dict[str, Transform] = {}
        self._node_functions: dict[str, Callable[..., Tensor]] = {}
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[Step, ...]] = {}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        some = next(self.parameters(), None)
        return torch.device("cpu") if some is None else some.device

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers that are run, as ``graph.layers.find_layers`` gives them, in graph order."""
        return tuple(self._layers)

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the nodes that are run, in graph order."""
        return tuple(step.name for step in self._program.steps)

    def weight_name(self, layer: str) -> str:
        """Name of the initializer that holds the layer's weight. Raises UsageError for an unknown layer."""
        step = self._layer(layer)
        return step.inputs[step.weight_position or 0]

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Initializer name → parameter, for all that are trained."""
        pairs = {name: self._parameters.get(key) for name, key in self._keys.items()}
        return {name: parameter for name, parameter in pairs.items() if parameter is not None}

    def statistics_by_name(self) -> dict[str, Tensor]:
        """Initializer name → buffer, for the running means and variances of batch norms."""
        buffers = {name: self._buffers.get(self._keys.get(name, "")) for name in self._statistics}
        return {name: buffer for name, buffer in buffers.items() if buffer is not None}

    def set_input_transform(self, layer: str, function: Transform | None) -> None:
        """Pass the layer's input activation through ``function``; None takes it away.

        A torch module is registered, so that its parameters are trained and moved with the rest.
        Raises UsageError for an unknown layer.
        """
        self._layer(layer)
        self._place(self._input_transforms, "input", layer, function)

    def set_weight_transform(self, layer: str, function: Transform | None) -> None:
        """Pass the layer's weight through ``function`` before it is used; else as ``set_input_transform``."""
        self._layer(layer)
        self._place(self._weight_transforms, "weight", layer, function)

    def set_node_function(self, node: str, function: Callable[..., Tensor] | None) -> None:
        """Compute the node by ``function``, called with the node's inputs in order, those left out skipped; None gives
        the node its own operator back. It returns the node's first output; a node of several keeps its operator.

        Raises UsageError for an unknown node or one of several outputs.
        """
        steps = {step.name: step for step in self._program.steps}
        if node not in steps or len(steps[node].outputs) != 1:
            raise UsageError(
                "the function of a node cannot be replaced",
                expected="the name of a node with one output",
                found=repr(node),
            )
        self._place(self._node_functions, "node", node, function)
        self._plans.clear()

    def forward(
        self, feeds: Feeds, capture: Sequence[str] = (), outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Run the network; returns tensors by name: ``outputs`` (the module's own without it) and ``capture``.

        ``feeds`` are the inputs by name, or the only one: float images (B, C, H, W). Inner tensors may be fed in their
        place: what they depend on is not run. Nodes that no returned tensor depends on are not run either. Raises
        UsageError for names that do not exist or inputs that are missing, and ModelFileError where a node that is run
        mixes the images of a batch or is written for a batch of its own.
        """
        wanted = tuple(dict.fromkeys((*(self.outputs if outputs is None else outputs), *capture)))
        inner = () if isinstance(feeds, Tensor) else tuple(self._inner(feeds))
        if (wanted, inner) not in self._plans:
            self._check_tensors(wanted)
            known = (*self._keys, *self.inputs)
            self._plans[wanted, inner] = self._program.plan(wanted, known, self._node_functions, inner)
        return self._run(feeds, wanted, self._plans[wanted, inner], None)

    def visit_layers(self, feeds: Feeds) -> Iterator[tuple[str, Tensor]]:
        """Run the network for its default outputs, stopping in front of each layer: its name, and what it reads.

        The layer itself is computed when the caller comes back, with the weights that it has then.
        """
        known = (*self._keys, *self.inputs)
        plan = self._program.plan(self.outputs, known, self._node_functions)
        values, batch = self._start(feeds, plan)
        run = Pass(self.training, batch, self._program.batch.fixed_batch)
        for step in plan:
            if step.weight_position is not None:
                yield step.name, values[step.inputs[1 - step.weight_position]]
            self._run_step_(step, values, run)

    @torch.no_grad()
    def live_bytes(self, feeds: Feeds) -> int:
        """The most bytes that activations hold at once in a run for the default outputs; operators may need more."""
        plan = self._program.plan(self.outputs, (*self._keys, *self.inputs), self._node_functions)
        values, batch = self._start(feeds, plan)
        run, most = Pass(self.training, batch, self._program.batch.fixed_batch), 0
        for step in plan:
            self._run_step_(step, values, run)
            held = (value.untyped_storage() for name, value in values.items() if name not in self._keys)
            most = max(most, sum({storage.data_ptr(): storage.nbytes() for storage in held}.values()))
        return most

    def estimate_statistics(self, batches: Iterable[Feeds]) -> int:
        """Set the running statistics of all batch norms to the mean over ``batches``; returns their number.

        Each batch is run with its own statistics, as in training, and without gradients. With no batch, or in a
        network without batch norms, nothing changes.
        """
        count, statistics = 0, self.statistics_by_name()
        if not statistics:
            return 0
        needed = [name for step in self._program.steps if set(step.inputs) & set(statistics) for name in step.outputs]
        plan = self._program.plan(needed, (*self._keys, *self.inputs), self._node_functions)
        with torch.no_grad():
            for feeds in batches:
                count += 1
                self._run(feeds, (), plan, 1.0 / count)
        return count

    def to_onnx(self) -> onnx.ModelProto:
        """The graph as it came, with the parameters and batch-norm statistics of now."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        write_constants_(model, {**self.parameters_by_name(), **self.statistics_by_name()})
        return model

    def _run(
        self, feeds: Feeds, wanted: Sequence[str], plan: Sequence[Step], statistics_momentum: float | None
    ) -> dict[str, Tensor]:
        values, batch = self._start(feeds, plan)
        training = self.training or statistics_momentum is not None
        run = Pass(training, batch, self._program.batch.fixed_batch, statistics_momentum)
        for step in plan:
            self._run_step_(step, values, run)
        return {
            name: values[name].to(self._integer_outputs[name]) if name in self._integer_outputs else values[name]
            for name in wanted
        }

    def _run_step_(self, step: Step, values: dict[str, Tensor], run: Pass) -> None:
        inputs = [values[name] for name in step.inputs]
        if step.weight_position is not None:
            self._transform_(step.name, step.weight_position, inputs)
        replaced = self._node_functions.get(step.name)
        if replaced is not None:
            result: Tensor | tuple[Tensor, ...] = replaced(
                *(value for value, name in zip(inputs, step.inputs, strict=True) if name)
            )
        else:
            result = step.operator(inputs, run)
        if isinstance(result, Tensor):
            values[step.outputs[0]] = result
        else:
            values.update(zip(step.outputs, result, strict=False))
        for name in step.frees:
            values.pop(name, None)

    def _transform_(self, layer: str, weight_position: int, inputs: list[Tensor]) -> None:
        if (on_weight := self._weight_transforms.get(layer)) is not None:
            inputs[weight_position] = on_weight(inputs[weight_position])
        if (on_input := self._input_transforms.get(layer)) is not None:
            inputs[1 - weight_position] = on_input(inputs[1 - weight_position])

    def _inner(self, feeds: Mapping[str, Tensor]) -> list[str]:
        return [name for name in feeds if name in self._known_tensors and name not in self.inputs]

    def _start(self, feeds: Feeds, plan: Sequence[Step]) -> tuple[dict[str, Tensor], int]:
        """Tensors by name before the first step, and the batch: what is fed, all constants, '' for inputs left out."""
        given = {self.inputs[0]: feeds} if isinstance(feeds, Tensor) else dict(feeds)
        expected = set(self.inputs)
        if inner := self._inner(given):
            # Of the inputs, only those count that are still read.
            expected = {name for step in plan for name in step.inputs} & expected | {*inner}
        if set(given) != expected:
            raise UsageError(
                "the inputs are not those of the network",
                expected=", ".join(map(repr, self.inputs)),
                found=", ".join(map(repr, given)) or "none",
            )
        device = next((tensor.device for tensor in given.values()), None)
        values: dict[str, Tensor] = {"": torch.empty(0, device=device)}
        for name, key in self._keys.items():
            held = self._parameters.get(key, self._buffers.get(key))
            if held is not None:
                values[name] = held
        for name, tensor in given.items():
            image = self.channels_last and tensor.dim() == 4
            values[name] = tensor.contiguous(memory_format=torch.channels_last) if image else tensor
        return values, self._program.batch_size(given, plan)

    def _add_constants(self, view: GraphView, trained: Collection[str]) -> None:
        read = {name for step in self._program.steps for name in step.inputs} | set(self.outputs)
        for name in sorted(name for name in read if name and view.is_constant(name)):
            array = view.constant(name)
            if array is None:
                continue
            try:
                tensor = to_tensor(array)
            except UnsupportedNode as reason:
                raise ModelFileError(
                    f"the constant {name!r} cannot be held by torch", expected="numbers", found=str(reason)
                ) from reason
            if self.channels_last and tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self._keys[name] = _key("onnx", name)
            if name in trained:
                self.register_parameter(self._keys[name], nn.Parameter(tensor))
            else:
                self.register_buffer(self._keys[name], tensor)

    def _place(
        self, places: dict[str, Callable[..., Tensor]], kind: str, name: str, function: Callable[..., Tensor] | None
    ) -> None:
        places.pop(name, None)
        self._modules.pop(_key(kind, name), None)
        if function is not None:
            places[name] = function
            if isinstance(function, nn.Module):
                self.add_module(_key(kind, name), function)

    def _layer(self, name: str) -> Step:
        if name not in self._layers:
            raise UsageError(
                "there is no layer of that name",
                expected="the name of a layer that is run",
                found=repr(name),
                do="see layer_names",
            )
        return self._layers[name]

    def _check_tensors(self, names: Sequence[str]) -> None:
        if missing := [name for name in names if name not in self._known_tensors]:
            raise UsageError(
                "there is no tensor of that name in the network",
                expected="names of inputs, outputs or inner tensors",
                found=", ".join(map(repr, missing)),
            )
