from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import parser, shape_inference

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.graph.view import GraphView
from qtoolkit.training.onnx_batch import follow_batch
from qtoolkit.training.onnx_module import OnnxModule


def parse(body, shape="1,6,4,4", constants="", opset=17):
    """x → y; constants that are written without values get noise, small numbers where they are whole."""
    held = f"<{constants}>" if constants else ""
    text = f"net (float[{shape}] x) => (float[A] y) {held} {{ {body} }}"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    random = np.random.default_rng(0)
    for value in model.graph.value_info:
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim]
        whole = kind.elem_type == onnx.TensorProto.INT64
        filled = random.integers(0, 4, dims) if whole else random.normal(0, 1, dims).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(filled, value.name))
    del model.graph.value_info[:]
    return shape_inference.infer_shapes(model, data_prop=True)


KEEPS = [
    ("elementwise", "y = Relu(x)", "", 0),
    ("transpose", "y = Transpose <perm = [1, 0, 3, 2]> (x)", "", 1),
    ("flatten", "y = Flatten(x)", "", 0),
    ("flatten further in", "y = Flatten <axis = 2> (x)", "", 0),
    ("flatten in front", "y = Flatten <axis = 0> (x)", "", 1),
    ("reshape", "y = Reshape(x, s)", "int64[3] s = {1, 6, 16}", 0),
    ("reshape, rest open", "y = Reshape(x, s)", "int64[3] s = {1, -1, 4}", 0),
    ("reshape, batch copied", "y = Reshape(x, s)", "int64[3] s = {0, 6, 16}", 0),
    ("reshape, batch open", "y = Reshape(x, s)", "int64[2] s = {-1, 96}", 0),
    ("reshape into heads", "y = Reshape(x, s)", "int64[3] s = {2, 3, 16}", 0),
    ("heads and back", "h = Reshape(x, s) y = Reshape(h, t)", "int64[3] s = {2, 3, 16}, int64[4] t = {1, 6, 4, 4}", 0),
    (
        "sequence first, heads",
        "f = Reshape(x, f3) t = Transpose <perm = [2, 0, 1]> (f) y = Reshape(t, s)",
        "int64[3] f3 = {1, 6, 16}, int64[3] s = {16, 2, 3}",
        1,
    ),
    (
        "sequence first, rows",
        "f = Reshape(x, f3) t = Transpose <perm = [2, 0, 1]> (f) r = Reshape(t, s) m = MatMul(r, w) y = Reshape(m, u)",
        "int64[3] f3 = {1, 6, 16}, int64[2] s = {16, 6}, float[6,5] w, int64[3] u = {16, 1, 5}",
        1,
    ),
    (
        "channel shuffle",
        "a = Reshape(x, s) b = Transpose <perm = [0, 2, 1, 3, 4]> (a) y = Reshape(b, t)",
        "int64[5] s = {1, 2, 3, 4, 4}, int64[4] t = {1, 6, 4, 4}",
        0,
    ),
    ("token in front", "f = Reshape(x, s) y = Concat <axis = 1> (k, f)", "int64[3] s = {1,3,32}, float[1,1,32] k", 0),
    ("expanded", "m = ReduceMean <axes = [2, 3]> (x) y = Expand(m, s)", "int64[4] s = {1, 6, 4, 4}", 0),
    ("sum of one image's constant", "y = Add(x, k)", "float[1,6,4,4] k", 0),
    ("channels picked", "y = Gather <axis = 1> (x, i)", "int64[3] i = {5, 0, 1}", 0),
    ("a channel picked", "y = Gather <axis = 1> (x, i)", "int64 i = {5}", 0),
    ("elements picked", "y = GatherElements <axis = 1> (x, i)", "int64[1,2,4,4] i", 0),
    ("slice over all axes", "y = Slice(x, s, e)", "int64[4] s = {0, 1, 0, 0}, int64[4] e = {1, 3, 9, 9}", 0),
    ("split", "y, z = Split <axis = 1> (x)", "", 0),
    ("mean without its axes", "y = ReduceMean <axes = [2, 3], keepdims = 0> (x)", "", 0),
    (
        "index of the largest",
        "t = Transpose <perm = [1, 0, 2, 3]> (x) i = ArgMax <axis = 0, keepdims = 0> (t) y = Cast <to = 1> (i)",
        "",
        0,
    ),
    ("squeeze", "m = ReduceMean <axes = [2, 3]> (x) y = Squeeze(m, a)", "int64[2] a = {2, 3}", 0),
    ("unsqueeze", "y = Unsqueeze(x, a)", "int64[1] a = {0}", 1),
    ("attention", "t = Transpose <perm = [0, 1, 3, 2]> (x) m = MatMul(x, t) y = Softmax <axis = -1> (m)", "", 0),
    ("weight on the left", "y = MatMul(w, x)", "float[5,4] w", 0),
    ("einsum", 'y = Einsum <equation = "bchw,cd->bdhw"> (x, w)', "float[6,5] w", 0),
    ("resize to sizes", "y = Resize(x, , , s)", "int64[4] s = {1, 6, 8, 8}", 0),
    ("pad", "y = Pad(x, p)", "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}", 0),
    ("tile", "y = Tile(x, r)", "int64[4] r = {1, 2, 1, 1}", 0),
    ("largest three", "y, i = TopK(x, k)", "int64[1] k = {3}", 0),
    ("shape of itself", "s = Shape(x) y = Reshape(x, s)", "", 0),
]


@pytest.mark.parametrize(("body", "constants", "axis"), [c[1:] for c in KEEPS], ids=[c[0] for c in KEEPS])
def test_a_batch_is_each_image_by_itself(body, constants, axis):
    model = parse(body, constants=constants)
    x = np.random.default_rng(1).normal(0, 1, (3, 6, 4, 4)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    alone = [session.run(["y"], {"x": x[place : place + 1]})[0] for place in range(3)]
    found = OnnxModule(model).eval()(torch.from_numpy(x))["y"].detach().numpy()
    assert follow_batch(GraphView(model)).axes["y"] == axis
    np.testing.assert_allclose(found, np.concatenate(alone, axis), rtol=1e-4, atol=1e-5)


MIXES = [
    ("mean over the batch", "y = ReduceMean <axes = [0]> (x)", ""),
    ("first image", "y = Gather <axis = 0> (x, i)", "int64 i = {0}"),
    ("squeezed batch", "y = Squeeze(x, a)", "int64[1] a = {0}"),
    ("softmax over the batch", "y = Softmax <axis = 0> (x)", ""),
    ("joined along the batch", "y = Concat <axis = 0> (x, x)", ""),
    ("no image", "y = Slice(x, s, e)", "int64[1] s = {1}, int64[1] e = {2}"),
    ("a constant of three images", "y = Add(x, k)", "float[3,1,1,1] k"),
    ("one head's constant", "h = Reshape(x, s) y = Add(h, k)", "int64[3] s = {2, 3, 16}, float[2,1,1] k"),
    ("where something is", "n = NonZero(x) y = Cast <to = 1> (n)", ""),
    ("across the batch", "t = Transpose <perm = [1, 0, 2, 3]> (x) y = Reshape(t, s)", "int64[3] s = {4, 6, 4}"),
    ("scattered by index", "y = ScatterND(x, i, u)", "int64[1,1] i = {0}, float[1,6,4,4] u"),
]


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in MIXES], ids=[c[0] for c in MIXES])
def test_nodes_that_mix_images_run_with_the_batch_of_the_export_only(body, constants):
    module = OnnxModule(parse(body, constants=constants))
    module(torch.rand(1, 6, 4, 4))
    with pytest.raises(ModelFileError, match=r"batch of 2\n.*\n  found: nodes that do not: 'y'|'n'"):
        module(torch.rand(2, 6, 4, 4))


def test_a_network_exported_for_two_images():
    model = parse("y = Reshape(x, s)", "2,6,4,4", "int64[3] s = {2, 6, 16}")
    module = OnnxModule(model)
    assert module(torch.rand(6, 6, 4, 4))["y"].shape == (6, 6, 16)
    with pytest.raises(UsageError, match="expected: a multiple of 2"):
        module(torch.rand(3, 6, 4, 4))


def test_an_open_batch_counts_as_one():
    module = OnnxModule(parse("y = Reshape(x, s)", "N,6,4,4", "int64[3] s = {1, 6, -1}"))
    x = torch.rand(3, 6, 4, 4)
    assert torch.equal(module(x)["y"], x.reshape(3, 6, 16))
