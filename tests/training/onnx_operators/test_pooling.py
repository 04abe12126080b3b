from __future__ import annotations

import onnxruntime
import pytest

ORT = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
MAX = [
    ("plain", (2, 3, 8, 9), {"kernel_shape": [2, 2], "strides": [2, 2]}, 8),
    ("spp", (1, 3, 8, 9), {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}, 12),
    ("uneven pads", (1, 3, 8, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0]}, 12),
    ("dilated", (1, 3, 8, 9), {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 1, 1, 1]}, 12),
    ("ceil", (1, 3, 8, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 12),
    ("ceil, stride 3", (1, 3, 8, 9), {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}, 22),
    ("ceil, padded", (1, 3, 7, 8), {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1] * 4, "ceil_mode": 1}, 22),
    ("same upper", (1, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, 12),
    ("same lower", (1, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}, 12),
    ("valid", (1, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"}, 12),
    ("1d", (2, 3, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, 12),
    ("3d", (1, 2, 5, 6, 5), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}, 12),
]


@pytest.mark.parametrize(("shape", "attributes", "opset"), [c[1:] for c in MAX], ids=[c[0] for c in MAX])
def test_max_pool(same_in_torch, noise, shape, attributes, opset):
    same_in_torch("MaxPool", {"x": noise(*shape)}, opset=opset, **attributes)


AVERAGE = [(*case[:3], 19 if "dilations" in case[2] else max(case[3], 11)) for case in MAX]


@pytest.mark.parametrize(("shape", "attributes", "opset"), [c[1:] for c in AVERAGE], ids=[c[0] for c in AVERAGE])
@pytest.mark.parametrize("with_pads", [0, 1], ids=["pads left out", "pads counted"])
def test_average_pool(same_in_torch, noise, shape, attributes, opset, with_pads):
    if with_pads and "ceil_mode" in attributes and ORT < (1, 24):
        pytest.skip("ONNX Runtime before 1.24 counts pads beyond the image there")
    same_in_torch("AveragePool", {"x": noise(*shape)}, opset=opset, count_include_pad=with_pads, **attributes)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_lp_pool(same_in_torch, noise, order):
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 0, 1]}
    same_in_torch("LpPool", {"x": noise(2, 3, 8, 9)}, p=order, **attributes)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4)])
def test_global_pools(same_in_torch, noise, op_type, shape):
    same_in_torch(op_type, {"x": noise(*shape)})
