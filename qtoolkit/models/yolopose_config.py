"""What distinguishes one YOLO-Pose network from another, as data that checkpoints carry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from qtoolkit.errors import UsageError
from qtoolkit.models.activations import ACTIVATIONS, Activation

__all__ = ["HEAD_ORDERS", "SIZES", "HeadOrder", "Size", "YoloPoseConfig", "config_of_architecture"]

Size = Literal["n6", "s6", "m6", "l6"]
HeadOrder = Literal["apart", "ti"]

SIZES: Mapping[str, tuple[float, float]] = {"n6": (0.33, 0.25), "s6": (0.33, 0.5), "m6": (0.67, 0.75), "l6": (1.0, 1.0)}
"""Size → multiples of depth and width."""
HEAD_ORDERS: tuple[str, ...] = ("apart", "ti")
"""How the two heads' channels make the rows of an anchor; see ``YoloPoseConfig``."""


@dataclass(frozen=True)
class YoloPoseConfig:
    """One YOLO-Pose network.

    size            n6, s6, m6, l6: multiples of depth and width, ``SIZES``
    lite            TI's embedded variant: a convolution as stem, one 1×1 convolution as keypoint head
    activation      of every convolution with a batch norm
    keypoint_count  K
    head_order      "apart": each anchor's box comes from the box head, its keypoints from the keypoint head. "ti": as
                    in TI's released networks the channels of both are joined and cut into three anchors' rows behind
                    that, so that anchors 1 and 2 take even their boxes from the keypoint head
    side_activation of the pooling pyramid and the keypoint head where it is another one: the released code leaves SiLU
                    there, whatever the rest of the network has. None: the same as ``activation``

    Raises UsageError naming the field, what it may be and what it was.
    """

    size: Size = "n6"
    lite: bool = False
    activation: Activation = "silu"
    keypoint_count: int = 17
    head_order: HeadOrder = "apart"
    side_activation: Activation | None = None

    def __post_init__(self) -> None:
        _check("size", self.size, tuple(SIZES))
        _check("lite", self.lite, (False, True))
        _check("activation", self.activation, ACTIVATIONS)
        _check("head_order", self.head_order, HEAD_ORDERS)
        _check("side_activation", self.side_activation, (None, *ACTIVATIONS))
        if isinstance(self.keypoint_count, bool) or not isinstance(self.keypoint_count, int) or self.keypoint_count < 1:
            raise _error("keypoint_count", "a whole number of at least 1", self.keypoint_count)

    @property
    def architecture(self) -> str:
        """Short name, such as ``n6`` or ``s6-lite``; ``config_of_architecture`` is the way back."""
        return f"{self.size}-lite" if self.lite else self.size

    @property
    def row_length(self) -> int:
        """Numbers per anchor: 6 + 3K."""
        return 6 + 3 * self.keypoint_count

    def channels(self, base: int) -> int:
        """``base`` channels times the width multiple, rounded up to a multiple of 8, as YOLOv5 does."""
        return math.ceil(base * SIZES[self.size][1] / 8) * 8

    def repeats(self, base: int) -> int:
        """``base`` bottlenecks times the depth multiple, rounded, at least 1, as YOLOv5 does."""
        return max(round(base * SIZES[self.size][0]), 1)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> YoloPoseConfig:
        """The way back. Raises UsageError for an unknown field or value."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise _error(unknown[0], f"fields among {', '.join(known)}", values[unknown[0]])
        return cls(**values)


def config_of_architecture(name: str, **changes: Any) -> YoloPoseConfig:
    """The network called ``name``: n6, s6, m6 or l6, with ``-lite`` behind it for TI's embedded variant.

    A lite network has ReLU, a full one SiLU, as the released ones; ``changes`` are other fields of the config. Raises
    UsageError for another name.
    """
    size, _, variant = name.partition("-")
    if size not in SIZES or variant not in ("", "lite") or name.endswith("-"):
        names = [f"{each}{ending}" for each in SIZES for ending in ("", "-lite")]
        raise UsageError(
            f"there is no architecture called {name!r}", expected=", ".join(names), found=name, do="give one of these"
        )
    lite = variant == "lite"
    values = {"size": size, "lite": lite, "activation": "relu" if lite else "silu", **changes}
    return YoloPoseConfig.from_json(values)


def _check(field: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value is each or (isinstance(value, str) and value == each) for each in allowed):
        raise _error(field, " or ".join(map(str, allowed)), value)


def _error(field: str, expected: str, found: object) -> UsageError:
    return UsageError(
        f"no YOLO-Pose network has this {field}", expected=expected, found=repr(found), do="correct this field"
    )
