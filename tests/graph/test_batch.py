import numpy as np
import onnx
import pytest

from qtoolkit.bench.batching import checked_batch
from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.batch import with_batch
from qtoolkit.graph.load import prepare_network


@pytest.fixture(scope="module")
def network(tiny_pose_model):
    return prepare_network(tiny_pose_model(seed=1))


def test_each_image_gives_what_it_gives_alone(network, run_network):
    before = network.SerializeToString(deterministic=True)
    widened = with_batch(network, 3)
    assert network.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(widened, full_check=True)
    images = np.random.default_rng(0).random((3, 3, 64, 64), dtype=np.float32)
    found = run_network(widened, {"images": images})["output0"]
    assert found.shape == (3, 56, 84)
    for place in range(3):
        alone = run_network(network, {"images": images[place : place + 1]})["output0"]
        np.testing.assert_allclose(found[place], alone[0], rtol=1e-4, atol=1e-3)
    checked_batch(network, 3)


def test_a_network_that_mixes_its_images_is_refused():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> net (float[1,3,8,8] images) => (float[1,3,8,8] y) '
        "<int64[1] zero = {0}> { mean = ReduceMean <axes = [0], keepdims = 1> (images) \n y = Mul(images, mean) }"
    )
    with pytest.raises(ModelFileError, match="cannot be run at batch 3"):
        checked_batch(prepare_network(model), 3)


def test_a_network_whose_shapes_do_not_fit():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> net (float[1,3,8,8] images) => (float[3,64] y) '
        "<int64[2] shape = {3, 64}> { y = Reshape(images, shape) }"
    )
    with pytest.raises(ModelFileError, match="at batch 2"):
        checked_batch(prepare_network(model), 2)


def test_no_batch(network):
    assert checked_batch(network, 1) is network
    with pytest.raises(UsageError, match="the batch cannot be used"):
        with_batch(network, 0)
