"""Layer lists of the networks whose Jetson latencies were published, built from their public descriptions.

YOLOv8, YOLO11 and YOLO26 (Ultralytics: cfg/models/{v8,11,26}/*.yaml and nn/modules of each), YOLOv5s
(ultralytics/yolov5, release 6), YOLOv7 (WongKinYiu/yolov7, deploy form) and ResNet (He et al., 2015). No weights: a
layer is its multiply-adds and the numbers of elements it reads and writes, which is all that
``qtoolkit.bench.roofline`` asks for. Parameters and GMACs that come out are compared with the published ones by
tests/benchmarks/test_published_networks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qtoolkit.bench.layer_work import LayerWork

__all__ = ["NETWORKS", "Builder", "Map", "published_network"]


@dataclass(frozen=True)
class Map:
    """A feature map: channels, height, width."""

    c: int
    h: int
    w: int

    @property
    def size(self) -> int:
        return self.c * self.h * self.w


class Builder:
    """Collects layers. Activation functions and residual adds run in the layer before them; a Concat costs nothing."""

    def __init__(self) -> None:
        self.layers: list[LayerWork] = []

    def conv(self, x: Map, c: int, k: int = 1, s: int = 1, g: int = 1, add: Map | None = None) -> Map:
        out = Map(c, -(-x.h // s), -(-x.w // s))
        extra = add.size if add else 0
        weights = c * (x.c // g) * k * k
        self.layers.append(
            LayerWork(
                f"conv{len(self.layers)}", "Conv", macs=out.h * out.w * weights, read=x.size + extra, written=out.size,
                weights=weights + c, channels=min(x.c, c) // g,
            )
        )  # fmt: skip
        return out

    def other(self, op: str, x: Map, out: Map, macs: int = 0, read: int | None = None) -> Map:
        name = f"{op.lower()}{len(self.layers)}"
        self.layers.append(LayerWork(name, op, macs=macs, read=x.size if read is None else read, written=out.size))
        return out

    def pool(self, x: Map, s: int = 1) -> Map:
        return self.other("MaxPool", x, Map(x.c, -(-x.h // s), -(-x.w // s)))

    def upsample(self, x: Map) -> Map:
        return self.other("Resize", x, Map(x.c, 2 * x.h, 2 * x.w))

    def attention(self, x: Map, heads: int) -> Map:
        """Attention of C2PSA: qkv, two products of activations, softmax, position by a depthwise conv, projection."""
        n, head = x.h * x.w, x.c // heads
        key = head // 2
        self.conv(x, x.c + 2 * key * heads)
        scores = Map(heads, n, n)
        self.other("MatMul", x, scores, macs=heads * n * n * key, read=2 * key * heads * n)
        self.other("Softmax", scores, scores)
        self.other("MatMul", x, x, macs=heads * n * n * head, read=scores.size + x.size)
        self.conv(x, x.c, 3, g=x.c, add=x)
        return self.conv(x, x.c, add=x)

    def psa_block(self, x: Map, heads: int) -> Map:
        x = self.attention(x, heads)
        return self.conv(self.conv(x, 2 * x.c), x.c, add=x)


def cat(*maps: Map) -> Map:
    return Map(sum(each.c for each in maps), maps[0].h, maps[0].w)


def _bottleneck(b: Builder, x: Map, k: tuple[int, int], hidden: int, add: bool) -> Map:
    return b.conv(b.conv(x, hidden, k[0]), x.c, k[1], add=x if add else None)


def _c2f(b: Builder, x: Map, c: int, n: int, block: Callable[[Map], Map], e: float = 0.5) -> Map:
    hidden = int(c * e)
    y = b.conv(x, 2 * hidden)
    parts = [Map(hidden, y.h, y.w)] * 2
    for _ in range(n):
        parts.append(block(parts[-1]))
    return b.conv(cat(*parts), c)


def _c3(b: Builder, x: Map, c: int, n: int, k: tuple[int, int], add: bool) -> Map:
    hidden = c // 2
    y = b.conv(x, hidden)
    for _ in range(n):
        y = _bottleneck(b, y, k, hidden, add)
    return b.conv(cat(y, b.conv(x, hidden)), c)


def _sppf(b: Builder, x: Map, c: int) -> Map:
    y = b.conv(x, x.c // 2)
    for _ in range(3):
        b.pool(y)
    return b.conv(Map(4 * y.c, y.h, y.w), c)


def _psa(b: Builder, x: Map, n: int) -> Map:
    half = x.c // 2
    y = b.conv(x, x.c)
    y = Map(half, y.h, y.w)
    for _ in range(n):
        y = b.psa_block(y, half // 64)
    return b.conv(cat(y, y), x.c)


@dataclass(frozen=True)
class Scale:
    """Depth, width and the highest number of channels before the width is applied."""

    depth: float
    width: float
    most: int

    def c(self, channels: int) -> int:
        return -(-int(min(channels, self.most) * self.width) // 8) * 8

    def n(self, repeats: int) -> int:
        return max(round(repeats * self.depth), 1) if repeats > 1 else repeats


def _detect(
    b: Builder, maps: Sequence[Map], *, bins: int = 16, classes: int = 80, light: bool = False, keypoints: int = 0
) -> None:
    c2, c3, c4 = max(16, maps[0].c // 4, 4 * bins), max(maps[0].c, min(classes, 100)), max(maps[0].c // 4, keypoints)
    for x in maps:
        if keypoints:
            b.conv(b.conv(b.conv(x, c4, 3), c4, 3), keypoints)
        b.conv(b.conv(b.conv(x, c2, 3), c2, 3), 4 * bins)
        if light:
            y = b.conv(b.conv(x, x.c, 3, g=x.c), c3)
            y = b.conv(b.conv(y, c3, 3, g=c3), c3)
        else:
            y = b.conv(b.conv(x, c3, 3), c3, 3)
        b.conv(y, classes)


def _yolov8(b: Builder, x: Map, scale: Scale, *, classes: int = 80, keypoints: int = 0) -> None:
    c, n = scale.c, scale.n

    def c2f(x: Map, channels: int, repeats: int, add: bool) -> Map:
        return _c2f(b, x, c(channels), n(repeats), lambda y: _bottleneck(b, y, (3, 3), y.c, add))

    x = c2f(b.conv(b.conv(x, c(64), 3, 2), c(128), 3, 2), 128, 3, True)
    p3 = c2f(b.conv(x, c(256), 3, 2), 256, 6, True)
    p4 = c2f(b.conv(p3, c(512), 3, 2), 512, 6, True)
    p5 = _sppf(b, c2f(b.conv(p4, c(1024), 3, 2), 1024, 3, True), c(1024))
    n4 = c2f(cat(b.upsample(p5), p4), 512, 3, False)
    n3 = c2f(cat(b.upsample(n4), p3), 256, 3, False)
    m4 = c2f(cat(b.conv(n3, n3.c, 3, 2), n4), 512, 3, False)
    m5 = c2f(cat(b.conv(m4, m4.c, 3, 2), p5), 1024, 3, False)
    _detect(b, (n3, m4, m5), classes=classes, keypoints=keypoints)


def _yolo11(b: Builder, x: Map, scale: Scale, *, v26: bool = False) -> None:
    c, n, large = scale.c, scale.n, scale.depth == 1.0 or scale.width >= 1.0

    def c3k2(x: Map, channels: int, deep: bool, e: float = 0.5) -> Map:
        def block(y: Map) -> Map:
            if deep or large:
                return _c3(b, y, y.c, 2, (3, 3), True)
            return _bottleneck(b, y, (3, 3), y.c // 2, True)

        return _c2f(b, x, c(channels), n(2), block, e)

    x = c3k2(b.conv(b.conv(x, c(64), 3, 2), c(128), 3, 2), 256, False, 0.25)
    p3 = c3k2(b.conv(x, c(256), 3, 2), 512, False, 0.25)
    p4 = c3k2(b.conv(p3, c(512), 3, 2), 512, True)
    p5 = c3k2(b.conv(p4, c(1024), 3, 2), 1024, True)
    p5 = _psa(b, _sppf(b, p5, c(1024)), n(2))
    n4 = c3k2(cat(b.upsample(p5), p4), 512, v26)
    n3 = c3k2(cat(b.upsample(n4), p3), 256, v26)
    m4 = c3k2(cat(b.conv(n3, c(256), 3, 2), n4), 512, v26)
    y = cat(b.conv(m4, c(512), 3, 2), p5)
    if v26:
        m5 = _c2f(b, y, c(1024), 1, lambda z: b.psa_block(_bottleneck(b, z, (3, 3), z.c // 2, True), max(z.c // 64, 1)))
    else:
        m5 = c3k2(y, 1024, True)
    _detect(b, (n3, m4, m5), bins=1 if v26 else 16, light=True)


def _yolov5s(b: Builder, x: Map) -> None:
    def c3(x: Map, c: int, n: int, add: bool) -> Map:
        return _c3(b, x, c, n, (1, 3), add)

    x = c3(b.conv(b.conv(x, 32, 6, 2), 64, 3, 2), 64, 1, True)
    p3 = c3(b.conv(x, 128, 3, 2), 128, 2, True)
    p4 = c3(b.conv(p3, 256, 3, 2), 256, 3, True)
    p5 = _sppf(b, c3(b.conv(p4, 512, 3, 2), 512, 1, True), 512)
    h5 = b.conv(p5, 256)
    h4 = b.conv(c3(cat(b.upsample(h5), p4), 256, 1, False), 128)
    n3 = c3(cat(b.upsample(h4), p3), 128, 1, False)
    m4 = c3(cat(b.conv(n3, 128, 3, 2), h4), 256, 1, False)
    m5 = c3(cat(b.conv(m4, 256, 3, 2), h5), 512, 1, False)
    for each in (n3, m4, m5):
        b.conv(each, 255)


def _elan(b: Builder, x: Map, hidden: int, c: int, *, head: bool = False) -> Map:
    """ELAN: two 1×1 convs and four 3×3; the head's keeps every second of them at half the channels (W)."""
    first = [b.conv(x, hidden), b.conv(x, hidden)]
    y, parts = first[1], []
    for _ in range(4):
        y = b.conv(y, hidden // 2 if head else hidden, 3)
        parts.append(y)
    kept = parts if head else parts[1::2]
    return b.conv(cat(*first, *kept), c)


def _down(b: Builder, x: Map, c: int) -> Map:
    pooled = b.conv(b.pool(x, 2), c)
    return cat(pooled, b.conv(b.conv(x, c), c, 3, 2))


def _yolov7(b: Builder, x: Map) -> None:
    x = b.conv(b.conv(b.conv(b.conv(x, 32, 3), 64, 3, 2), 64, 3), 128, 3, 2)
    x = _elan(b, x, 64, 256)
    p3 = _elan(b, _down(b, x, 128), 128, 512)
    p4 = _elan(b, _down(b, p3, 256), 256, 1024)
    x = _elan(b, _down(b, p4, 512), 256, 1024)
    y = b.conv(b.conv(b.conv(x, 512), 512, 3), 512)
    for _ in range(3):
        b.pool(y)
    y = b.conv(b.conv(Map(2048, y.h, y.w), 512), 512, 3)
    p5 = b.conv(cat(y, b.conv(x, 512)), 512)
    h4 = _elan(b, cat(b.conv(p4, 256), b.upsample(b.conv(p5, 256))), 256, 256, head=True)
    h3 = _elan(b, cat(b.conv(p3, 128), b.upsample(b.conv(h4, 128))), 128, 128, head=True)
    m4 = _elan(b, cat(_down(b, h3, 128), h4), 256, 256, head=True)
    m5 = _elan(b, cat(_down(b, m4, 256), p5), 512, 512, head=True)
    for each in (h3, m4, m5):
        b.conv(b.conv(each, 2 * each.c, 3), 255)


def _resnet(b: Builder, x: Map, blocks: Sequence[int], *, wide: bool = False) -> None:
    x = b.pool(b.conv(x, 64, 7, 2), 2)
    for stage, repeats in enumerate(blocks):
        c = 64 << stage
        out = 4 * c if wide else c
        for place in range(repeats):
            s = 2 if stage and place == 0 else 1
            short = x if x.c == out and s == 1 else b.conv(x, out, 1, s)
            y = b.conv(b.conv(x, c), c, 3, s) if wide else b.conv(x, c, 3, s)
            x = b.conv(y, out, 1 if wide else 3, add=short)
    b.other("GlobalAveragePool", x, Map(x.c, 1, 1))
    b.conv(Map(x.c, 1, 1), 1000)


_V8 = {
    "n": (0.33, 0.25, 1024),
    "s": (0.33, 0.5, 1024),
    "m": (0.67, 0.75, 768),
    "l": (1.0, 1.0, 512),
    "x": (1.0, 1.25, 512),
}
_V11 = {"n": (0.5, 0.25, 1024), "s": (0.5, 0.5, 1024), "m": (0.5, 1.0, 512), "l": (1.0, 1.0, 512), "x": (1.0, 1.5, 512)}

NETWORKS: Mapping[str, Callable[[Builder, Map], None]] = {
    **{f"YOLOv8{size}": lambda b, x, s=Scale(*each): _yolov8(b, x, s) for size, each in _V8.items()},
    **{f"YOLO11{size}": lambda b, x, s=Scale(*each): _yolo11(b, x, s) for size, each in _V11.items()},
    **{f"YOLO26{size}": lambda b, x, s=Scale(*each): _yolo11(b, x, s, v26=True) for size, each in _V11.items()},
    "YOLOv8n-pose": lambda b, x: _yolov8(b, x, Scale(*_V8["n"]), classes=1, keypoints=51),
    "YOLOv5s": _yolov5s,
    "YOLOv7": _yolov7,
    "ResNet18": lambda b, x: _resnet(b, x, (2, 2, 2, 2)),
    "ResNet34": lambda b, x: _resnet(b, x, (3, 4, 6, 3)),
    "ResNet50": lambda b, x: _resnet(b, x, (3, 4, 6, 3), wide=True),
}
"""Name as in jetson_points.csv → what builds it on an input."""


def published_network(name: str, resolution: int) -> tuple[LayerWork, ...]:
    """The layers of a published network on one square image of ``resolution`` pixels, in fp32; no decode arithmetic."""
    builder = Builder()
    NETWORKS[name](builder, Map(3, resolution, resolution))
    return tuple(builder.layers)
