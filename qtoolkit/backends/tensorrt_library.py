"""The one door to ``tensorrt`` and ``tensorrt_rtx``: everybody else gets the module from here.

The modules named ``tensorrt_*`` work with either, and with every version from 8.5 to 11.4 (RTX: 1.7): whatever a
version may lack stands behind ``hasattr``. Nothing here touches a GPU.
"""

from __future__ import annotations

from typing import Any, Literal

from qtoolkit.errors import UnavailableError

__all__ = ["TensorRtName", "can_type_strongly", "can_type_weakly", "load_tensorrt"]

TensorRtName = Literal["tensorrt", "tensorrt_rtx"]

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}


def load_tensorrt(name: TensorRtName) -> Any:
    """The module of that name. Raises UnavailableError where it cannot be imported."""
    try:
        module = _tensorrt() if name == "tensorrt" else _tensorrt_rtx()
    # A missing system library is an OSError in some versions; an unpacked meta package an AttributeError.
    except (ImportError, OSError, AttributeError) as error:
        raise UnavailableError(
            f"the Python package {name!r} cannot be imported",
            expected=f"the optional package {name}",
            found=" ".join(str(error).split())[:200] or type(error).__name__,
            do=f"pip install 'qtoolkit[{_EXTRAS[name]}]' (on a Jetson: the one that JetPack brings)",
        ) from error
    if not hasattr(module, "Builder") or not hasattr(module, "ITimingCache"):
        raise UnavailableError(
            f"{name} {getattr(module, '__version__', 'of an unknown version')} cannot be used",
            expected="TensorRT 8.5 or newer" if name == "tensorrt" else "TensorRT-RTX 1.0 or newer",
            found="a module without Builder and ITimingCache",
            do=f"pip install --upgrade 'qtoolkit[{_EXTRAS[name]}]'",
        )
    return module


def can_type_weakly(trt: Any) -> bool:
    """Whether precision may be chosen by builder flags: up to TensorRT 10, not in 11 and RTX."""
    return hasattr(trt.BuilderFlag, "FP16") and hasattr(trt.BuilderFlag, "INT8")


def can_type_strongly(trt: Any) -> bool:
    """Whether networks can be strongly typed: from TensorRT 10 on (11 and RTX know nothing else)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _tensorrt() -> Any:
    import tensorrt

    return tensorrt


def _tensorrt_rtx() -> Any:
    import tensorrt_rtx

    return tensorrt_rtx
