"""Muon: what it does to a matrix, against the singular value decomposition, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qtoolkit.training.muon import MuonAdamW, orthogonalize, share_out


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 20), (2, 20, 4), (1, 1, 9)], ids=str)
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices)
    assert found.shape == shape
    for before, after in zip(matrices, found, strict=True):
        left, _, right = torch.linalg.svd(before, full_matrices=False)
        values = left.T @ after @ right.T
        assert values.diagonal().min() > 0.4
        assert values.diagonal().max() < 1.3
        # bfloat16 has 8 bits: what is off the diagonal is rounding.
        assert (values - torch.diag(values.diagonal())).abs().max() < 0.1


def test_a_gradient_of_zeros_moves_nothing():
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_the_step_by_hand():
    weight = nn.Parameter(torch.ones(2, 2, 1, 1))
    optimizer = MuonAdamW([{"params": [weight], "muon": True, "weight_decay": 0.5}], lr=0.1, momentum=0.9)
    weight.grad = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).reshape(2, 2, 1, 1)
    optimizer.step()
    moved = orthogonalize(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))[0]
    expected = 1 - 0.1 * 0.5 - 0.1 * 0.2 * 2**0.5 * moved
    assert torch.allclose(weight.detach().reshape(2, 2), expected, atol=1e-6)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], weight.grad)


def test_other_parameters_are_adamw():
    start = torch.randn(5, generator=torch.Generator().manual_seed(1))
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"weight_decay": 0.1}
    ours = MuonAdamW([{"params": [mine], **group}], lr=0.01, momentum=0.9)
    reference = torch.optim.AdamW([{"params": [theirs], **group}], lr=0.01, betas=(0.9, 0.999))
    for step in range(5):
        for parameter in (mine, theirs):
            parameter.grad = torch.sin(start * (step + 1))
        ours.step()
        reference.step()
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_it_learns_a_linear_map():
    generator = torch.Generator().manual_seed(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layer = nn.Conv2d(6, 4, 1, bias=False)
    inputs = torch.randn(32, 6, 2, 2, generator=generator)
    wanted = torch.einsum("oc,bchw->bohw", torch.randn(4, 6, generator=generator), inputs)
    optimizer = MuonAdamW([{"params": [layer.weight], "muon": True}], lr=0.1, momentum=0.9)
    losses = []
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 150)
        loss = (layer(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_processes_share_the_work_evenly():
    owners = share_out([9, 1, 5, 5, 1, 1], 2)
    assert sorted(set(owners)) == [0, 1]
    loads = [
        sum(cost for cost, owner in zip([9, 1, 5, 5, 1, 1], owners, strict=True) if owner == rank) for rank in (0, 1)
    ]
    assert abs(loads[0] - loads[1]) <= 2
    assert share_out([3, 4], 1) == [0, 0]


def test_two_processes_take_the_step_of_one():
    start = [torch.randn(4, 3, 1, 1), torch.randn(3, 8, 1, 1)]
    gradients = [torch.randn_like(each) for each in start]

    def stepped(rank: int, count: int, total_of=None) -> list[torch.Tensor]:
        parameters = [nn.Parameter(each.clone()) for each in start]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        MuonAdamW([{"params": parameters, "muon": True}], 0.1, 0.9, rank, count, total_of).step()
        return [parameter.detach() for parameter in parameters]

    shares: list[torch.Tensor] = []
    for rank in (0, 1):
        stepped(rank, 2, lambda flat: shares.append(flat.clone()) or flat)
    both = stepped(0, 2, lambda flat: flat.copy_(shares[0] + shares[1]))
    for one, other in zip(stepped(0, 1), both, strict=True):
        assert torch.equal(one, other)
