"""Energy meters on a sysfs tree made by hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qtoolkit.bench.energy import RailMeter, RaplMeter, open_energy_meter
from qtoolkit.errors import UnavailableError


def write(root: Path, **files: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name).write_text(f"{content}\n")
    return root


def zone(root: Path, number: str, name: str, energy_uj: int, prefix: str = "intel-rapl") -> Path:
    folder = root / "class/powercap" / f"{prefix}:{number}"
    return write(folder, name=name, energy_uj=energy_uj, max_energy_range_uj=1_000_000)


def test_packages_and_memory_are_summed_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "0", "package-0", 100), zone(tmp_path, "1", "package-1", 50)
    memory = zone(tmp_path, "0:1", "dram", 10)
    core = zone(tmp_path, "0:0", "core", 70)
    again = zone(tmp_path, "0", "package-0", 100, prefix="intel-rapl-mmio")
    meter = open_energy_meter(tmp_path)
    assert isinstance(meter, RaplMeter)
    assert meter.source == "RAPL: dram, package-0, package-1"
    meter.start()
    for folder, energy_uj in ((first, 300_100), (second, 200_050), (memory, 50_010), (core, 900_000), (again, 900_000)):
        (folder / "energy_uj").write_text(str(energy_uj))
    assert meter.stop_j() == pytest.approx(0.55)


def test_a_counter_that_starts_anew(tmp_path: Path) -> None:
    folder = zone(tmp_path, "0", "package-0", 900_000)
    meter = open_energy_meter(tmp_path)
    meter.start()
    (folder / "energy_uj").write_text("100000")
    assert meter.stop_j() == pytest.approx(0.2)


def test_the_whole_boards_rail_is_taken_alone(tmp_path: Path) -> None:
    folder = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write(
        folder,
        in1_label="VDD_IN", in1_input=5000, curr1_input=2000,
        in2_label="VDD_CPU_GPU_CV", in2_input=5000, curr2_input=900,
        in7_label="sum of shunt voltages", in7_input=3,
    )  # fmt: skip
    meter = open_energy_meter(tmp_path)
    assert isinstance(meter, RailMeter)
    assert meter.source == "INA3221: VDD_IN"
    began = time.perf_counter()
    meter.start()
    time.sleep(0.2)
    joules = meter.stop_j()
    assert joules == pytest.approx(10 * (time.perf_counter() - began), rel=0.05)


def test_rails_that_change_are_integrated() -> None:
    began = time.perf_counter()
    meter = RailMeter({"ramp": lambda: 100 * (time.perf_counter() - began)}, sample_s=0.01)
    meter.start()
    start_s = time.perf_counter() - began
    time.sleep(0.3)
    joules = meter.stop_j()
    end_s = time.perf_counter() - began
    assert joules == pytest.approx(50 * (end_s**2 - start_s**2), rel=0.05)


def test_rails_of_an_agx_are_summed(tmp_path: Path) -> None:
    folder = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    write(
        folder,
        in1_label="VDD_GPU_SOC", in1_input=20000, curr1_input=100,
        in2_label="VDD_CPU_CV", in2_input=20000, curr2_input=50,
        in3_label="NC", in3_input=0, curr3_input=0,
    )  # fmt: skip
    assert open_energy_meter(tmp_path).source == "INA3221: VDD_GPU_SOC, VDD_CPU_CV"


def test_milliwatts_of_older_boards(tmp_path: Path) -> None:
    folder = tmp_path / "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(folder, rail_name_0="POM_5V_IN", in_power0_input=4000, rail_name_1="POM_5V_GPU", in_power1_input=900)
    meter = open_energy_meter(tmp_path)
    assert meter.source == "INA3221: POM_5V_IN"
    meter.start()
    time.sleep(0.1)
    assert meter.stop_j() == pytest.approx(0.4, rel=0.3)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="found: neither") as caught:
        open_energy_meter(tmp_path)
    assert caught.value.what == "the energy cannot be measured here"


def test_counters_that_may_not_be_read_are_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "0", "package-0", 100)
    read_text = Path.read_text

    def guarded(path: Path, *args: object, **options: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(UnavailableError, match="found: counters that this user may not read\n  do: run it as root"):
        open_energy_meter(tmp_path)
