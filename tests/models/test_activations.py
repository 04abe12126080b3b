import math

import pytest
import torch

from qtoolkit.errors import UsageError
from qtoolkit.models.activations import ACTIVATIONS, activation_module


@pytest.mark.parametrize(
    ("name", "expected"), [("silu", [-1 / (1 + math.e), 0.0, 2 / (1 + math.exp(-2))]), ("relu", [0.0, 0.0, 2.0])]
)
def test_values(name, expected):
    y = activation_module(name)(torch.tensor([-1.0, 0.0, 2.0]))
    torch.testing.assert_close(y, torch.tensor(expected))


def test_each_call_makes_a_module_of_its_own():
    assert all(activation_module(name) is not activation_module(name) for name in ACTIVATIONS)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="no activation called 'mish'") as error:
        activation_module("mish")
    assert "silu or relu" in str(error.value)
