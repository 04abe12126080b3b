"""Small networks whose numbers are not all alike, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from qtoolkit.models.yolopose import YoloPose, YoloPoseConfig


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share the cores: threads of torch that wait for each other take longer than one alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_network() -> Callable[..., YoloPose]:
    """``make_network(lite=True, …)``: an n6 in evaluation mode, the same every time.

    Batch norms and heads are drawn so that the outputs differ from place to place, as those of a trained network do.
    """

    def make(seed: int = 0, **config: object) -> YoloPose:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = YoloPose(YoloPoseConfig(**config))
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.weight.data.uniform_(0.8, 1.6)
                    module.bias.data.normal_(0, 0.3)
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.1, 0.4)
        return model.eval()

    return make
