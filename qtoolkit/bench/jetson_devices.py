"""Jetson devices and their power modes: active SMs, GPU clock, memory bandwidth, peak rates.

``data/jetson_devices.csv`` has one row a mode, with its source and whether each value was read there or recalled. The
first mode of a device is its fastest, and the one a name without ``@MODE`` means.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from qtoolkit.artifacts.plan import Precision
from qtoolkit.errors import UsageError

__all__ = [
    "DEFAULT_DEVICE",
    "MACS_PER_SM_CLOCK",
    "JetsonDevice",
    "find_jetson",
    "is_jetson",
    "jetson_devices",
    "read_table",
]

DEFAULT_DEVICE = "jetson-orin-nano-8gb-super"
"""What ``jetson`` alone means."""

_PREFIX = "jetson"

MACS_PER_SM_CLOCK: Mapping[str, Mapping[Precision, int]] = MappingProxyType(
    {
        "ampere": {Precision.FP32: 512, Precision.FP16: 1024, Precision.INT8: 2048},
        "volta": {Precision.FP32: 64, Precision.FP16: 512, Precision.INT8: 1024},
        "pascal62": {Precision.FP32: 128, Precision.FP16: 256},
        "maxwell": {Precision.FP32: 128, Precision.FP16: 256},
        "blackwell110": {Precision.FP32: 2048, Precision.FP16: 4096, Precision.INT8: 8192},
    }
)
"""Generation → dense multiply-adds of one SM in one clock. "fp32" on Orin and Thor is TF32, as TensorRT computes it
there; a precision that is missing does not exist on the device. Source: NVIDIA's architecture briefs, by way of the
peak rates that the sources in ``data/jetson_devices.csv`` state (dense TOPS = 2 · MACs · SMs · clock)."""


@dataclass(frozen=True)
class JetsonDevice:
    """One device in one power mode.

    ``key`` is the name on the command line without the mode, ``generation`` a key of ``MACS_PER_SM_CLOCK``, ``sms`` the
    active streaming multiprocessors, ``gpu_mhz`` the highest GPU clock, ``bandwidth_gbs`` 10⁹ bytes/s of memory.
    ``checked`` says which values were read in ``source`` and which are recalled.
    """

    key: str
    mode: str
    name: str
    generation: str
    sms: int
    gpu_mhz: float
    bandwidth_gbs: float
    source: str
    checked: str

    @property
    def label(self) -> str:
        """Device and mode as they are named on the command line."""
        return f"{self.key}@{self.mode}"

    @property
    def description(self) -> str:
        """Name, mode and what the mode leaves active, in words."""
        return (
            f"{self.name} at {self.mode.upper()} ({self.sms} {'SM' if self.sms == 1 else 'SMs'}, {self.gpu_mhz:g} MHz, "
            f"{self.bandwidth_gbs:g} GB/s)"
        )  # fmt: skip

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions its GPU computes in."""
        return tuple(MACS_PER_SM_CLOCK[self.generation])

    def runs_as(self, precision: Precision) -> Precision:
        """``precision``, or fp16 in place of int8 where the GPU has no int8 (Nano, TX2)."""
        return precision if precision in self.precisions else Precision.FP16

    def macs_per_ms(self, precision: Precision) -> float:
        """Dense peak of all active SMs, multiply-adds per ms; ``precision`` must be one of ``precisions``."""
        return MACS_PER_SM_CLOCK[self.generation][precision] * self.sms * self.gpu_mhz * 1e3


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of this package's ``data``."""
    text = (files("qtoolkit.bench") / "data" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def jetson_devices() -> tuple[JetsonDevice, ...]:
    """Every device in every power mode, as they stand in the table."""
    return tuple(
        JetsonDevice(
            key=row["device"], mode=row["mode"], name=row["name"], generation=row["generation"], sms=int(row["sms"]),
            gpu_mhz=float(row["gpu_mhz"]), bandwidth_gbs=float(row["bandwidth_gbs"]), source=row["source"],
            checked=row["checked"],
        )
        for row in read_table("jetson_devices.csv")
    )  # fmt: skip


def is_jetson(name: str) -> bool:
    """Whether a ``--device`` names a Jetson, known or not."""
    return name == _PREFIX or name.startswith((f"{_PREFIX}-", f"{_PREFIX}@"))


def find_jetson(name: str) -> JetsonDevice:
    """``jetson``, ``jetson-NAME`` or either with ``@MODE``, in any case. Raises UsageError for an unknown one."""
    wanted, _, mode = name.strip().lower().partition("@")
    key = DEFAULT_DEVICE if wanted == _PREFIX else wanted
    modes = [device for device in jetson_devices() if device.key == key]
    if not modes:
        raise UsageError(
            f"the device {name} is not known",
            expected="jetson, or one of " + ", ".join(dict.fromkeys(device.key for device in jetson_devices())),
            found=repr(name),
            do="choose one of them; `qtool bench --list-devices` lists their power modes",
        )
    for device in modes:
        if mode in ("", device.mode):
            return device
    raise UsageError(
        f"{key} has no power mode {mode}",
        expected="one of " + ", ".join(device.label for device in modes),
        found=repr(name),
        do="choose one of them, or leave @MODE out for the first",
    )
