"""Whether an NVIDIA driver answers on this machine, and what its first GPU is: through ``libcuda`` alone.

It is asked before anything else touches the GPU: TensorRT's ``Runtime`` ends the process where no driver answers.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from qtoolkit.errors import UnavailableError

__all__ = ["Gpu", "find_gpu", "gpu_or_none"]

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_ERRORS = {
    34: "a stub of libcuda, without a driver",
    100: "no CUDA device",
    803: "a driver and a libcuda that do not fit each other",
    999: "a driver that failed to start",
}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_LENGTH = 256


@dataclass(frozen=True)
class Gpu:
    """name                such as ``Orin`` or ``NVIDIA H100 80GB HBM3``
    compute_capability     such as ``8.7``
    cuda                   highest CUDA version that the driver knows, such as ``12.6``
    """

    name: str
    compute_capability: str
    cuda: str


def find_gpu() -> Gpu:
    """The first GPU. Raises UnavailableError where there is none, or no driver."""
    library = _library()
    _check(library.cuInit(0))
    device, count = ctypes.c_int(), ctypes.c_int()
    _check(library.cuDeviceGetCount(ctypes.byref(count)))
    if count.value == 0:
        raise _no_gpu("a driver, and no GPU")
    _check(library.cuDeviceGet(ctypes.byref(device), 0))
    name = ctypes.create_string_buffer(_NAME_LENGTH)
    _check(library.cuDeviceGetName(name, _NAME_LENGTH, device))
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _check(library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        capability.append(str(value.value))
    version = ctypes.c_int()
    _check(library.cuDriverGetVersion(ctypes.byref(version)))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode("utf-8", "replace"), ".".join(capability), cuda)


def gpu_or_none() -> Gpu | None:
    """The first GPU, or None."""
    try:
        return find_gpu()
    except UnavailableError:
        return None


def _library() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise _no_gpu(f"no driver ({_LIBRARIES[0]} cannot be loaded)")


def _check(result: int) -> None:
    if result != 0:
        raise _no_gpu(_ERRORS.get(result, f"CUDA error {result}"))


def _no_gpu(found: str) -> UnavailableError:
    return UnavailableError(
        "there is no NVIDIA GPU that could be used",
        expected="an NVIDIA GPU and its driver",
        found=found,
        do="run it on a machine with one; `qtool build --target tensorrt-rtx` needs none",
    )
