"""The table of backends: name → runner class, imported when it is first asked for.

A new backend is one module and one line here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from qtoolkit.backends.runner import Runner
from qtoolkit.errors import UnavailableError, UsageError

__all__ = ["RUNNERS", "open_runner", "runner_class"]

RUNNERS: Mapping[str, str] = MappingProxyType(
    {
        "ort-cpu": "qtoolkit.backends.onnxruntime_cpu:OnnxRuntimeCpu",
        "openvino-cpu": "qtoolkit.backends.openvino_cpu:OpenVinoCpu",
        "tensorrt": "qtoolkit.backends.tensorrt_gpu:TensorRtGpu",
        "tensorrt-rtx": "qtoolkit.backends.tensorrt_rtx:TensorRtRtx",
    }
)
"""Backend name → ``module:Class``."""


def runner_class(name: str) -> Callable[..., Runner]:
    """The class of a backend. ``name`` is a key of :data:`RUNNERS`, or ``module:Class`` for one outside it.

    Raises UsageError for an unknown name, UnavailableError where the backend's library is not installed.
    """
    path = RUNNERS.get(name, name)
    module_name, separator, class_name = path.partition(":")
    if not separator:
        raise _unknown(name)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        # In the last case the path was ours to get right, so nothing is missing but the backend itself.
        if isinstance(error, ModuleNotFoundError) and error.name == module_name:
            raise _unknown(name) from error
        raise UnavailableError(
            f"backend {name!r} needs a library that cannot be imported",
            expected=f"the Python package {error.name!r}" if error.name else "its library",
            found=str(error),
            do="install it (`qtool doctor` names the extra), or choose another target",
        ) from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Runner)):
        raise _unknown(name)
    return found


def open_runner(name: str, model: Any, **options: Any) -> Runner:
    """An open runner of backend ``name`` on ``model`` (what the backend takes: a path, bytes or a ModelProto).

    Use it as ``with open_runner("ort-cpu", path, threads=2) as runner``. Raises UsageError for an unknown name or
    option, UnavailableError for a missing library, ModelFileError where the runtime refuses the network.
    """
    kind = runner_class(name)
    accepted = inspect.signature(kind)
    try:
        accepted.bind(model, **options)
    except TypeError as error:
        known = [each for each in accepted.parameters if each != "model"]
        raise UsageError(
            f"backend {name!r} does not take these options",
            expected=f"some of {', '.join(known)}",
            found=str(error),
            do="leave the unknown option out",
        ) from error
    return kind(model, **options).open()


def _unknown(name: str) -> UsageError:
    return UsageError(
        f"there is no backend {name!r}",
        expected=f"one of {', '.join(RUNNERS)}, or module:Class naming a Runner",
        found=repr(name),
        do="choose a backend of the list",
    )
