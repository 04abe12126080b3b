"""Muon for convolutions, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["MuonAdamW", "orthogonalize", "share_out"]

_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_RMS = 0.2
_EPSILON = 1e-8


def orthogonalize(matrices: Tensor) -> Tensor:
    """(N, R, C) float → the same with singular values near 1 (0.7 to 1.2): five Newton-Schulz steps in bfloat16.

    X ← a·X + (b·XXᵀ + c·(XXᵀ)²)·X with a, b, c = 3.4445, −4.7750, 2.0315, from X / ‖X‖. Source: K. Jordan et al.,
    "Muon: an optimizer for hidden layers in neural networks" (2024). All-zero matrices stay zero.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).bfloat16()
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.mT if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Muon where a group's ``muon`` is true: the momentum of each weight, as a matrix (out, in·kh·kw), orthogonalized.

    - Muon: m ← μ·m + g; u = g + μ·m (Nesterov); w ← w·(1 − lr·decay) − lr · 0.2·√max(R, C) · orthogonalize(u). The
      factor gives the update the root mean square of a typical AdamW step (J. Liu et al., "Muon is scalable for LLM
      training", 2025), so that one learning rate serves both.
    - AdamW: betas (momentum, 0.999), ε 1e-8, decoupled decay.

    Group keys: ``lr``, ``momentum``, ``weight_decay``, ``muon``. Of ``count`` processes with the same gradients each
    orthogonalizes its share of the matrices; ``total_of`` sums a tensor over them.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        rank: int = 0,
        count: int = 1,
        total_of: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "muon": False})
        self._rank, self._count = rank, count
        self._total_of = total_of or (lambda values: values)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [(each, each.grad) for each in group["params"] if each.grad is not None]
            if not given:
                continue
            if group["muon"]:
                self._muon(given, group)
            else:
                self._adamw(given, group)
        return loss

    def _muon(self, given: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, gradient in given:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            state["momentum_buffer"].mul_(momentum).add_(gradient)
            update = gradient.add(state["momentum_buffer"], alpha=momentum).reshape(parameter.shape[0], -1)
            alike[(update.shape[0], update.shape[1])].append((parameter, update))
        owners = share_out(
            [(min(shape) * max(shape) * min(shape) * len(pairs)) for shape, pairs in alike.items()], self._count
        )
        sizes = [parameter.numel() for pairs in alike.values() for parameter, _ in pairs]
        flat = torch.zeros(sum(sizes), device=given[0][0].device)
        places = iter(torch.split(flat, sizes))
        moves: list[tuple[Tensor, Tensor, float]] = []
        for (shape, pairs), owner in zip(alike.items(), owners, strict=True):
            slots = [next(places) for _ in pairs]
            if owner == self._rank:
                found = orthogonalize(torch.stack([update for _, update in pairs]))
                for slot, one in zip(slots, found, strict=True):
                    slot.copy_(one.reshape(-1))
            scale = lr * _RMS * max(shape) ** 0.5
            moves += [(parameter, slot, scale) for (parameter, _), slot in zip(pairs, slots, strict=True)]
        self._total_of(flat)
        for parameter, slot, scale in moves:
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.sub_(slot.reshape(parameter.shape), alpha=scale)

    def _adamw(self, given: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        lr, beta1, beta2 = group["lr"], group["momentum"], 0.999
        for parameter, gradient in given:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            count = float(state["step"])
            state["exp_avg"].lerp_(gradient, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(_EPSILON)
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.addcdiv_(state["exp_avg"], root, value=-lr / (1 - beta1**count))


def share_out(costs: list[int], count: int) -> list[int]:
    """An owner 0 … count − 1 for each cost, so that the sums are about equal: the largest first, to whom has least."""
    owners, loads = [0] * len(costs), [0] * count
    for index in sorted(range(len(costs)), key=lambda each: -costs[each]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners
