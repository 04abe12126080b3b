from __future__ import annotations

import ctypes

import pytest

from qtoolkit.backends import nvidia_driver
from qtoolkit.backends.nvidia_driver import Gpu, find_gpu, gpu_or_none
from qtoolkit.errors import UnavailableError


class Driver:
    """libcuda with one Orin."""

    def __init__(self, init=0, count=1):
        self.init, self.count = init, count

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, target):
        target._obj.value = self.count
        return 0

    def cuDeviceGet(self, target, index):
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, target, attribute, device):
        target._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def cuDriverGetVersion(self, target):
        target._obj.value = 12060
        return 0


def with_driver(monkeypatch, driver):
    monkeypatch.setattr(nvidia_driver.ctypes, "CDLL", lambda name: driver)


def test_the_first_gpu_is_described(monkeypatch):
    with_driver(monkeypatch, Driver())
    assert find_gpu() == Gpu("Orin", "8.7", "12.6")


@pytest.mark.parametrize(
    ("driver", "found"),
    [
        (Driver(init=100), "no CUDA device"),
        (Driver(init=34), "a stub of libcuda, without a driver"),
        (Driver(init=12345), "CUDA error 12345"),
        (Driver(count=0), "a driver, and no GPU"),
    ],
    ids=["no device", "stub", "unknown", "none counted"],
)
def test_what_is_missing_is_said(driver, found, monkeypatch):
    with_driver(monkeypatch, driver)
    with pytest.raises(UnavailableError, match="no NVIDIA GPU") as caught:
        find_gpu()
    assert caught.value.found == found and gpu_or_none() is None


def test_no_driver_at_all(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(UnavailableError) as caught:
        find_gpu()
    assert caught.value.found == "no driver (libcuda.so.1 cannot be loaded)"
