"""Gradients by parts of a batch."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from qtoolkit.training.shards import ShardedGradients


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


def _images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("count", "part"), [(4, 2), (5, 2), (3, 8)], ids=["even", "a smaller last part", "one part"])
def test_the_mean_over_the_whole_batch(network, count, part):
    def loss_of(images):
        return network(images).square().mean(), len(images)

    images, parameters = _images(count), list(network.parameters())
    wanted = torch.autograd.grad(loss_of(images)[0], parameters)
    with ShardedGradients(loss_of, parameters, 2) as gradients:
        assert sum(gradients(images.split(part))) == count
    for parameter, expected in zip(parameters, wanted, strict=True):
        assert torch.allclose(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_the_number_of_threads_changes_no_bit(network):
    found = []
    for threads in (1, 3):
        with ShardedGradients(lambda x: (network(x).sin().mean(), None), list(network.parameters()), threads) as each:
            each(_images(7).split(1))
        found.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_without_threads_the_calling_one_does_it(network):
    found, callers = [], []

    def loss_of(images):
        callers.append(threading.current_thread())
        return network(images).sin().mean(), None

    for threads in (1, 0):
        with ShardedGradients(loss_of, list(network.parameters()), threads) as gradients:
            gradients([_images(3)])
        found.append([parameter.grad.clone() for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert callers[1] is threading.current_thread() is not callers[0]


def test_a_parameter_without_influence_has_no_gradient(network):
    idle = nn.Parameter(torch.zeros(2))
    with ShardedGradients(lambda x: (network(x).mean(), None), [*network.parameters(), idle], 1) as gradients:
        gradients(_images(4).split(2))
    assert idle.grad is None


def test_an_error_in_a_part_comes_out(network):
    def loss_of(images):
        raise ValueError("broken")

    with (
        ShardedGradients(loss_of, list(network.parameters()), 2) as gradients,
        pytest.raises(ValueError, match="broken"),
    ):
        gradients(_images(4).split(2))
