"""Released weights against a forward pass written from the released definition alone: names, order, decoding."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as f

from qtoolkit.errors import CheckpointError, UsageError
from qtoolkit.models.ti_checkpoint import load_ti_weights
from qtoolkit.models.yolopose import DeployedYoloPose, YoloPose

ANCHORS = [
    [19, 27, 44, 40, 38, 94],
    [96, 68, 86, 152, 180, 137],
    [140, 301, 303, 264, 238, 542],
    [436, 615, 739, 380, 925, 792],
]
# Rows of the definition: from, module, channels, further arguments. Numbers of repeats are those of n6.
DEFINITION = [
    (-1, "focus", 64), (-1, "conv", 128, 3, 2), (-1, "c3", 128, 1, True), (-1, "conv", 256, 3, 2),
    (-1, "c3", 256, 3, True), (-1, "conv", 512, 3, 2), (-1, "c3", 512, 3, True), (-1, "conv", 768, 3, 2),
    (-1, "c3", 768, 1, True), (-1, "conv", 1024, 3, 2), (-1, "spp", 1024), (-1, "c3", 1024, 1, False),
    (-1, "conv", 768, 1, 1), (-1, "up"), ((-1, 8), "cat"), (-1, "c3", 768, 1, False),
    (-1, "conv", 512, 1, 1), (-1, "up"), ((-1, 6), "cat"), (-1, "c3", 512, 1, False),
    (-1, "conv", 256, 1, 1), (-1, "up"), ((-1, 4), "cat"), (-1, "c3", 256, 1, False),
    (-1, "conv", 256, 3, 2), ((-1, 20), "cat"), (-1, "c3", 512, 1, False),
    (-1, "conv", 512, 3, 2), ((-1, 16), "cat"), (-1, "c3", 768, 1, False),
    (-1, "conv", 768, 3, 2), ((-1, 12), "cat"), (-1, "c3", 1024, 1, False),
]  # fmt: skip


class Released:
    """The released network of n6 size. Tensors are drawn when the forward pass first asks for them, by their names."""

    def __init__(self, lite, keypoints=17, seed=0):
        self.lite, self.keypoints = lite, keypoints
        self.random = torch.Generator().manual_seed(seed)
        self.tensors = {}
        self.act = f.relu if lite else f.silu

    def tensor(self, name, draw):
        if name not in self.tensors:
            self.tensors[name] = draw().float()
        return self.tensors[name].double()

    def normal(self, *shape, scale=1.0):
        return torch.randn(shape, generator=self.random) * scale

    def weight(self, name, out, x, kernel, groups=1):
        shape = (out, x.shape[1] // groups, kernel, kernel)
        return self.tensor(f"{name}.weight", lambda: self.normal(*shape, scale=1.5 / math.sqrt(math.prod(shape[1:]))))

    def conv(self, name, x, out, kernel=1, stride=1, groups=1, act=None):
        y = f.conv2d(x, self.weight(f"{name}.conv", out, x, kernel, groups), None, stride, kernel // 2, 1, groups)
        # Statistics near those of the image, so that the features stay in range and differ from place to place.
        bn = {
            "weight": self.tensor(f"{name}.bn.weight", lambda: 1 + self.normal(out, scale=0.2)),
            "bias": self.tensor(f"{name}.bn.bias", lambda: self.normal(out, scale=0.3)),
            "running_mean": self.tensor(f"{name}.bn.running_mean", lambda: y.mean() + self.normal(out, scale=0.1)),
            "running_var": self.tensor(
                f"{name}.bn.running_var", lambda: y.var() * (0.7 + torch.rand(out, generator=self.random))
            ),
        }
        self.tensors.setdefault(f"{name}.bn.num_batches_tracked", torch.tensor(7))
        y = f.batch_norm(y, bn["running_mean"], bn["running_var"], bn["weight"], bn["bias"], False, 0.03, 1e-3)
        return (act or self.act)(y)

    def focus(self, name, x, out):
        if self.lite:
            return self.conv(f"{name}.conv", self.conv(f"{name}.conv_slice", x, 12, 3, 2), out, 3)
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous().view(n, c * 4, h // 2, w // 2)
        return self.conv(f"{name}.conv", x, out, 3)

    def c3(self, name, x, out, repeats, shortcut):
        y = self.conv(f"{name}.cv1", x, out // 2)
        for i in range(repeats):
            inner = self.conv(f"{name}.m.{i}.cv2", self.conv(f"{name}.m.{i}.cv1", y, out // 2), out // 2, 3)
            y = y + inner if shortcut else inner
        return self.conv(f"{name}.cv3", torch.cat((y, self.conv(f"{name}.cv2", x, out // 2)), 1), out)

    def spp(self, name, x, out):
        x = self.conv(f"{name}.cv1", x, x.shape[1] // 2, act=f.silu)
        pools = [f.max_pool2d(x, k, 1, k // 2) for k in (3, 5, 7)]
        return self.conv(f"{name}.cv2", torch.cat([x, *pools], 1), out, act=f.silu)

    def head(self, level, x):
        def plain(name, x, channels):
            bias = self.tensor(f"{name}.bias", lambda: self.normal(channels))
            return f.conv2d(x, self.weight(name, channels, x, 1), bias)

        box = plain(f"model.33.m.{level}", x, 18)
        name = f"model.33.m_kpt.{level}"
        if self.lite:
            return torch.cat((box, plain(name, x, 9 * self.keypoints)), 1)
        for i in range(11):
            x = self.conv(
                f"{name}.{i}", x, x.shape[1], 1 if i % 2 else 3, groups=1 if i % 2 else x.shape[1], act=f.silu
            )
        return torch.cat((box, plain(f"{name}.11", x, 9 * self.keypoints)), 1)

    def __call__(self, x):
        outputs = []
        for i, (source, kind, *arguments) in enumerate(DEFINITION):
            sources = [outputs[j] if j >= 0 else x for j in (source if isinstance(source, tuple) else (source,))]
            if arguments:
                arguments[0] //= 4
            if kind == "up":
                x = f.interpolate(x, scale_factor=2, mode="nearest")
            elif kind == "cat":
                x = torch.cat(sources, 1)
            else:
                x = getattr(self, kind)(f"model.{i}", x, *arguments)
            outputs.append(x)
        return torch.cat([self.decode(k, self.head(k, outputs[i])) for k, i in enumerate((23, 26, 29, 32))], 1)

    def decode(self, level, x):
        n, _, h, w = x.shape
        anchors = torch.tensor(ANCHORS[level]).view(1, 3, 1, 1, 2)
        stride = 8 * 2**level
        x = x.view(n, 3, 6 + 3 * self.keypoints, h, w).permute(0, 1, 3, 4, 2).contiguous()
        yv, xv = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((xv, yv), 2).view(1, 1, h, w, 2)
        det, kpt = x[..., :6].sigmoid(), x[..., 6:].clone()
        xy = (det[..., 0:2] * 2.0 - 0.5 + grid) * stride
        wh = (det[..., 2:4] * 2) ** 2 * anchors
        kpt[..., 0::3] = (kpt[..., 0::3] * 2.0 - 0.5 + grid[..., 0:1]) * stride
        kpt[..., 1::3] = (kpt[..., 1::3] * 2.0 - 0.5 + grid[..., 1:2]) * stride
        kpt[..., 2::3] = kpt[..., 2::3].sigmoid()
        return torch.cat((xy, wh, det[..., 4:], kpt), -1).view(n, -1, 6 + 3 * self.keypoints)

    def state_dict(self):
        grid = torch.tensor(ANCHORS).float().view(4, 1, 3, 1, 1, 2)
        cells = grid.view(4, 3, 2) / torch.tensor([8, 16, 32, 64]).view(4, 1, 1)
        return {**self.tensors, "model.33.anchors": cells, "model.33.anchor_grid": grid}


IMAGE = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def lite():
    network = Released(lite=True)
    return network, network(IMAGE)


def _save(path, tensors):
    torch.save(tensors, path)
    return path


def _rows(model):
    with torch.inference_mode():
        return DeployedYoloPose(model.double())(IMAGE)


def test_a_lite_network_computes_what_the_released_one_does(lite, tmp_path):
    network, expected = lite
    model = load_ti_weights(_save(tmp_path / "last.pt", network.state_dict()), "n6-lite")
    assert not model.training
    torch.testing.assert_close(_rows(model), expected, rtol=1e-9, atol=1e-9)
    # Outputs that differ from place to place, or an order of channels would prove nothing.
    assert expected[0, :, 4].std() > 0.05 and expected[0, :, 6].std() > 20
    assert (model.config.head_order, model.config.activation, model.config.keypoint_count) == ("ti", "relu", 17)


def test_a_full_network_computes_what_the_released_one_does(tmp_path):
    network = Released(lite=False, keypoints=4, seed=2)
    expected = network(IMAGE)
    save_file(network.state_dict(), tmp_path / "ti.safetensors")
    model = load_ti_weights(tmp_path / "ti.safetensors", "n6")
    assert model.config.keypoint_count == 4
    torch.testing.assert_close(_rows(model), expected, rtol=1e-9, atol=1e-9)


def test_order_and_side_activation_make_a_difference(lite, tmp_path):
    network, expected = lite
    path = _save(tmp_path / "last.pt", network.state_dict())
    model = load_ti_weights(path, "n6-lite")
    apart = YoloPose(type(model.config).from_json({**model.config.to_json(), "head_order": "apart"})).eval()
    apart.load_state_dict(model.state_dict())
    other = load_ti_weights(path, "n6-lite", side_activation=None)
    for changed in (apart, other):
        assert (_rows(changed) - expected).abs().max() > 1


def test_half_weights_a_prefix_and_uncounted_batches(lite, tmp_path):
    network, expected = lite
    tensors = {
        f"module.{name}": tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    model = load_ti_weights(_save(tmp_path / "last.pt", {"model": tensors}), "n6-lite")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (_rows(model)[..., 4:6] - expected[..., 4:6]).abs().max() < 0.05


@pytest.mark.parametrize("left_out", ["anchor_grid", "anchors"])
def test_anchors_of_the_file_count(lite, tmp_path, left_out):
    network, _ = lite
    tensors = {name: tensor * 2 if "anchor" in name else tensor for name, tensor in network.state_dict().items()}
    del tensors[f"model.33.{left_out}"]
    model = load_ti_weights(_save(tmp_path / "last.pt", tensors), "n6-lite")
    torch.testing.assert_close(model.anchors, torch.tensor(ANCHORS).float().view(4, 3, 2) * 2)


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("n6", {}, r"model.33.m_kpt.0.11.weight missing"),
        ("s6-lite", {}, r"expected: \d+ tensors of TI's YOLO-Pose s6-lite with 17 keypoints"),
        ("n6-lite", {"model.2.cv1.conv.weight": None}, "without model.2.cv1.conv.weight"),
        (
            "n6-lite",
            {"model.2.cv9.conv.weight": torch.zeros(1)},
            "with model.2.cv9.conv.weight, which it does not have",
        ),
        ("n6-lite", {"model.1.bn.bias": torch.zeros(7)}, r"model.1.bn.bias of shape \(7,\) where \(32,\) belongs"),
        ("n6-lite", {"model.1.bn.bias": torch.full((32,), torch.inf)}, "NaN or infinity in model.1.bn.bias"),
        ("n6-lite", {"model.33.m_kpt.0.weight": torch.zeros(10, 64, 1, 1)}, "with a multiple of 9 channels"),
        ("n6-lite", {"model.33.anchor_grid": torch.zeros(3, 1, 3, 1, 1, 2)}, "other anchors than YOLO-Pose"),
    ],
    ids=["full", "size", "missing", "unknown", "shape", "infinite", "keypoints", "anchors"],
)
def test_weights_of_another_network(lite, tmp_path, architecture, change, message):
    tensors = {name: tensor for name, tensor in {**lite[0].state_dict(), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message) as error:
        load_ti_weights(_save(tmp_path / "last.pt", tensors), architecture)
    assert error.value.exit_code == 3


def test_an_architecture_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match="no architecture called 's7'"):
        load_ti_weights(tmp_path / "absent.pt", "s7")
