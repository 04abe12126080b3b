from __future__ import annotations

import onnx
import pytest
import torch

from qtoolkit.graph.view import GraphView
from qtoolkit.training.onnx_operators.site import Pass, Site, UnsupportedNode, elementwise, torch_dtype


@pytest.fixture
def site(parse_network):
    """A node with a constant, a computed and a missing input."""
    model = parse_network(
        """net (float[2,3] x, int64[2] i) => (float[2,3] y) <int64[2] k = {4, 5}, float f = {1.5}>
        { y = Some <mode = "edge", size = 3> (x, k, , i, f) }"""
    )
    return Site(model.graph.node[0], GraphView(model), 13)


def test_attributes_and_inputs(site):
    assert (site.attribute("mode"), site.attribute("size"), site.attribute("other", 7)) == ("edge", 3, 7)
    assert [site.has(place) for place in range(6)] == [True, True, False, True, True, False]
    assert site.constant(0) is None and site.constant(2) is None
    assert site.constant(1).tolist() == [4, 5]
    assert site.rank(0) == 2


def test_whole_numbers_are_read_from_constants_or_in_the_pass(site):
    inputs = [torch.empty(0), torch.empty(0), torch.empty(0), torch.tensor([7, 8]), torch.empty(0)]
    assert site.integers(1)(inputs) == [4, 5]
    assert site.integers(3)(inputs) == [7, 8]
    assert site.numbers(4)(inputs) == [1.5]
    reader = site.integers(1)
    reader(inputs).append(6)
    assert reader(inputs) == [4, 5]


def test_axes_move_from_attribute_to_input(site):
    assert site.axes(18) is None
    assert site.axes(13)([]) == [4, 5]
    assert site.axes(13, position=2) is None
    assert site.axes(18, name="size") is not None


def test_types_that_torch_lacks():
    assert torch_dtype(onnx.TensorProto.UINT16) == torch.int32
    with pytest.raises(UnsupportedNode, match=r"^type string$"):
        torch_dtype(onnx.TensorProto.STRING)


def test_constants_are_repeated_for_each_image_of_the_batch():
    constant = torch.tensor([[1, 2], [3, 4]])
    assert Pass(batch=4, fixed_batch=2).repeated(constant, 0).tolist() == [[1, 2], [3, 4]] * 2


def test_elementwise(site):
    assert elementwise(torch.abs)(site)([torch.tensor(-2.0)], Pass()) == 2
