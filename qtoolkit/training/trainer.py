"""One step of the training after the other: network, average, optimizer, loss; and their state."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qtoolkit.errors import CheckpointError, UsageError
from qtoolkit.models.checkpoint import load_weights
from qtoolkit.models.tensor_file import check_tensors
from qtoolkit.models.yolopose import YoloPose, YoloPoseConfig
from qtoolkit.training.dataset import Batch
from qtoolkit.training.distributed import Processes
from qtoolkit.training.ema import AveragedModel
from qtoolkit.training.loader import batch_to_device
from qtoolkit.training.losses import PoseLoss
from qtoolkit.training.muon import MuonAdamW
from qtoolkit.training.recipe import TrainRecipe
from qtoolkit.training.schedule import Rates

__all__ = ["Trainer", "build_network"]

_NOMINAL_BATCH = 64
_ADAM_KEYS = ("step", "exp_avg", "exp_avg_sq")
_OPTIMIZER_KEYS = {"sgd": ("momentum_buffer",), "adamw": _ADAM_KEYS, "muon": ("momentum_buffer", *_ADAM_KEYS)}
_AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_network(recipe: TrainRecipe) -> YoloPose:
    """The network of a recipe with the weights of ``init``, or random ones by ``seed`` alone.

    Raises CheckpointError where ``init`` is of another network; its activation may differ: that is how a SiLU network
    is retrained to ReLU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = YoloPose(YoloPoseConfig(size=recipe.size, lite=recipe.lite, activation=recipe.activation))
    if recipe.init is not None:
        given, _ = load_weights(recipe.init)
        if _network_name(given.config) != _network_name(model.config):
            raise CheckpointError(
                f"the weights {recipe.init} are of another network",
                expected=_network_name(model.config),
                found=_network_name(given.config),
                do="give the size and --lite of these weights",
            )
        model.load_state_dict(given.state_dict())
    return model


def _network_name(config: YoloPoseConfig) -> str:
    """All that decides names, shapes and meaning of the weights."""
    order = "" if config.head_order == "apart" else f", channels in the order {config.head_order}"
    return f"a {config.size}{' lite' if config.lite else ''} with {config.keypoint_count} keypoints{order}"


class Trainer:
    """The network of a recipe in training, on the device of ``processes``.

    Raises UsageError for fp16 on the CPU, whose gradients nothing there scales.
    """

    def __init__(self, recipe: TrainRecipe, processes: Processes) -> None:
        if recipe.amp == "fp16" and processes.device.type == "cpu":
            raise UsageError(
                "fp16 is for training on CUDA",
                expected="amp off or bf16 on the CPU",
                found="amp fp16",
                do="give --amp off",
            )
        self._recipe = recipe
        self._processes = processes
        model = build_network(recipe).to(processes.device)
        if recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = AveragedModel(model, recipe.ema_decay, recipe.ema_warmup_steps)
        self._model = processes.share_batch_norm(model).train()
        self._optimizer = _optimizer(self._model, recipe, processes)
        self._wrapped = processes.wrap(self._model)
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.amp == "fp16")
        self._loss = PoseLoss(
            self.ema.model.anchors,
            self.ema.model.strides,
            recipe.loss,
            processes.total_of,
            processes.count,
            recipe.gains.model_dump(),
        )

    def run_step(self, batches: Sequence[Batch], rates: Rates, widths: Sequence[float] = (1.0,)) -> Tensor:
        """Update the weights once from the summed loss of ``batches``; the parts of the loss (4,), mean of the batches.

        A step of fp16 whose gradients overflow leaves the weights as they were and lowers the scale of the loss.
        """
        self._set(rates)
        parts: list[Tensor] = []
        for index, batch in enumerate(batches):
            images, targets = batch_to_device(batch, self._processes.device, self._recipe.channels_last)
            with self._gradients_wait(index + 1 < len(batches)):
                with self._autocast():
                    raw = self._wrapped(images)
                loss, part = self._loss(raw, targets, widths)
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            parts.append(part)
        self._scaler.unscale_(self._optimizer)
        if self._recipe.clip_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self.ema.update(self._model)
        return torch.stack(parts).mean(dim=0)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average, the optimizer's state: with ``facts`` all that the next step depends on."""
        named = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        named |= {f"ema.{name}": tensor for name, tensor in self.ema.model.state_dict().items()}
        for name, parameter in self._model.named_parameters():
            for key, value in self._optimizer.state[parameter].items():
                named[f"optimizer.{key}.{name}"] = value
        return named

    def facts(self) -> dict[str, Any]:
        """What is no tensor: updates of the average, scale of the loss."""
        return {"ema_updates": self.ema.updates, "scaler": self._scaler.state_dict()}

    @torch.no_grad()
    def restore(self, file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over a state that was read from ``file``.

        Raises CheckpointError, having changed nothing, where its tensors are of another network or not finite.
        """
        parameters = dict(self._model.named_parameters())
        wanted = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        wanted |= {f"ema.{name}": tensor for name, tensor in self.ema.model.state_dict().items()}
        # A parameter has no state in the optimizer before its first update.
        optimizer = {
            f"optimizer.{key}.{name}": torch.empty(()) if key == "step" else parameter
            for name, parameter in parameters.items()
            for key in _OPTIMIZER_KEYS[self._recipe.optimizer]
            if f"optimizer.{key}.{name}" in tensors
        }
        check_tensors(file, tensors, wanted | optimizer, f"the training of {_network_name(self.ema.model.config)}")
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
        for name, parameter in parameters.items():
            for key in _OPTIMIZER_KEYS[self._recipe.optimizer]:
                saved = tensors.get(f"optimizer.{key}.{name}")
                if saved is not None:
                    copied = saved.clone() if key == "step" else torch.empty_like(parameter).copy_(saved)
                    self._optimizer.state[parameter][key] = copied
        self.ema.updates = int(facts["ema_updates"])
        if facts["scaler"]:
            self._scaler.load_state_dict(dict(facts["scaler"]))

    def _set(self, rates: Rates) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rates.biases if group["kind"] == "biases" else rates.weights
            if "momentum" in group:
                group["momentum"] = rates.momentum

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._recipe.amp == "off":
            return contextlib.nullcontext()
        return torch.autocast(self._processes.device.type, _AMP_TYPES[self._recipe.amp])

    def _gradients_wait(self, wait: bool) -> contextlib.AbstractContextManager[Any]:
        """Average gradients over the processes once per step, behind its last batch."""
        if wait and isinstance(self._wrapped, nn.parallel.DistributedDataParallel):
            return self._wrapped.no_sync()
        return contextlib.nullcontext()


def _optimizer(model: nn.Module, recipe: TrainRecipe, processes: Processes) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; only weights of convolutions decay.

    The loss is summed over the images of a step, so the decay of SGD, meant for 64 of them, is scaled likewise.
    """
    biases: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    weights: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            (biases if name == "bias" else norms if is_norm else weights).append(parameter)
    uses_sgd = recipe.optimizer == "sgd"
    step_images = processes.count * recipe.batch * recipe.accumulate
    decay = recipe.weight_decay * (step_images / _NOMINAL_BATCH if uses_sgd else 1.0)
    groups: list[dict[str, Any]] = [
        {"kind": "biases", "params": biases, "weight_decay": 0.0},
        {"kind": "norms", "params": norms, "weight_decay": 0.0},
        {"kind": "weights", "params": weights, "weight_decay": decay},
    ]
    if uses_sgd:
        return torch.optim.SGD(groups, lr=recipe.base_lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.base_lr, betas=(recipe.momentum, 0.999))
    split = _split_for_muon(model, groups)
    return MuonAdamW(split, recipe.base_lr, recipe.momentum, processes.rank, processes.count, processes.total_of)


def _split_for_muon(model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Weights of convolutions that mix channels go to Muon, but for the outputs (those without a batch norm)."""
    outputs = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d) and module.bias is not None
    }
    *others, weights = groups
    mixing = [each for each in weights["params"] if each.shape[1] > 1 and id(each) not in outputs]
    rest = [each for each in weights["params"] if each.shape[1] == 1 or id(each) in outputs]
    return [*others, {**weights, "params": rest}, {**weights, "params": mixing, "muon": True}]
