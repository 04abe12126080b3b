"""Energy of a stretch of work, where the machine measures it: Intel and AMD processors (RAPL), Jetson boards (INA3221).

- RAPL: counters of microjoules in /sys/class/powercap. The packages and their memory are summed; what lies inside a
  package (core, uncore) is in it already. Source: Linux, Documentation/power/powercap/powercap.rst.
- INA3221: millivolts and milliamperes of a rail in hwmon (JetPack 5 and later), or milliwatts in iio (JetPack 4). They
  are read 20 times a second and integrated. Source: NVIDIA Jetson Linux Developer Guide, Software-Based Power
  Consumption Modeling.

Where neither can be read there is no meter and no figure.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from qtoolkit.errors import UnavailableError

__all__ = ["EnergyMeter", "RailMeter", "RaplMeter", "open_energy_meter"]

_SAMPLE_S = 0.05
# The rail that feeds the whole module, by board: Orin Nano/NX and Xavier NX; Orin/Xavier AGX sum theirs.
_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN")


class EnergyMeter(ABC):
    """``start()``, then ``stop_j()``: joules used in between. ``source`` says what they were read from and cover."""

    source: str

    @abstractmethod
    def start(self) -> None:
        """Begin to count."""

    @abstractmethod
    def stop_j(self) -> float:
        """Joules since ``start``."""


class RaplMeter(EnergyMeter):
    """Counters of a processor's packages and memory; each starts anew at its ``max_energy_range_uj``."""

    def __init__(self, zones: tuple[Path, ...]) -> None:
        self._zones = zones
        names = sorted(_text(zone / "name") or zone.name for zone in zones)
        self.source = f"RAPL: {', '.join(names)}"
        self._began: list[int] = []

    def start(self) -> None:
        """Note every counter."""
        self._began = [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def stop_j(self) -> float:
        """Joules of all zones since ``start``; one wrap of a counter is allowed for."""
        total_uj = 0
        for zone, began in zip(self._zones, self._began, strict=True):
            used = int((zone / "energy_uj").read_text()) - began
            total_uj += used if used >= 0 else used + int((zone / "max_energy_range_uj").read_text())
        return total_uj / 1e6


class RailMeter(EnergyMeter):
    """Power of a board's rails, read every ``sample_s`` seconds in a thread and integrated by trapezoids."""

    def __init__(self, rails: dict[str, Callable[[], float]], *, sample_s: float = _SAMPLE_S) -> None:
        self._rails = rails
        self._sample_s = sample_s
        self.source = f"INA3221: {', '.join(rails)}"
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._joules = 0.0

    def start(self) -> None:
        """Read the rails from now on."""
        self._stopped.clear()
        self._joules = 0.0
        self._last = (time.perf_counter(), self._watts())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop_j(self) -> float:
        """Joules of the rails since ``start``."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self._add()
        return self._joules

    def _watch(self) -> None:
        while not self._stopped.wait(self._sample_s):
            self._add()

    def _add(self) -> None:
        now, watts = time.perf_counter(), self._watts()
        before, watts_before = self._last
        self._joules += (now - before) * (watts + watts_before) / 2
        self._last = (now, watts)

    def _watts(self) -> float:
        return sum(read() for read in self._rails.values())


def open_energy_meter(root: Path = Path("/sys")) -> EnergyMeter:
    """The meter of this machine. Raises UnavailableError where there is none, or where it may not be read."""
    rails = _hwmon_rails(root) or _iio_rails(root)
    if rails:
        whole = {name: read for name, read in rails.items() if name in _WHOLE_BOARD}
        return RailMeter(whole or rails)
    zones = _rapl_zones(root)
    readable = tuple(zone for zone in zones if _text(zone / "energy_uj") is not None)
    if zones and len(readable) == len(zones):
        return RaplMeter(zones)
    raise UnavailableError(
        "the energy cannot be measured here",
        expected="readable counters in /sys/class/powercap (RAPL), or the rails of a Jetson board (INA3221)",
        found="counters that this user may not read" if zones else "neither, as in most virtual machines",
        do="run it as root, or let your group read energy_uj" if zones else "measure on the machine itself",
    )


def _rapl_zones(root: Path) -> tuple[Path, ...]:
    """Packages, and the memory beside them; zones of the same hardware seen through MMIO would count it twice."""
    found = []
    for zone in sorted((root / "class/powercap").glob("*rapl:*")):
        name = _text(zone / "name") or ""
        if (name.startswith("package") or name == "dram") and "mmio" not in zone.name:
            found.append(zone)
    return tuple(found)


def _hwmon_rails(root: Path) -> dict[str, Callable[[], float]]:
    rails: dict[str, Callable[[], float]] = {}
    for label in sorted((root / "bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in[1-9]_label")):
        number = label.name[2]
        volts, current = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        name = _text(label)
        if name not in (None, "NC") and _text(volts) is not None and _text(current) is not None:
            rails[str(name)] = _Product(volts, current)
    return rails


def _iio_rails(root: Path) -> dict[str, Callable[[], float]]:
    rails: dict[str, Callable[[], float]] = {}
    for label in sorted((root / "bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        power = label.with_name(f"in_power{label.name.rpartition('_')[2]}_input")
        name = _text(label)
        if name is not None and _text(power) is not None:
            rails[name] = _Product(power)
    return rails


class _Product:
    """Watts from one file of milliwatts, or from one of millivolts and one of milliamperes."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths

    def __call__(self) -> float:
        value = 1.0
        for path in self._paths:
            value *= float(path.read_text()) / 1e3
        return value


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None
