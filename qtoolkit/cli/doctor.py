"""``qtool doctor``: what this machine can do, and how to get the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import click

from qtoolkit.cli.options import json_option
from qtoolkit.cli.output import print_json
from qtoolkit.errors import GateFailed, UnavailableError

if TYPE_CHECKING:
    from qtoolkit.artifacts.target import Target

__all__ = ["command", "int8_advice"]

_BASE = {
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "pycocotools": "pycocotools",
    "rich": "rich",
    "pydantic": "pydantic",
    "yaml": "PyYAML",
    "cv2": "opencv-python-headless",
    "jinja2": "jinja2",
    "plotly": "plotly",
    "highspy": "highspy",
}
"""Module → the package that brings it, of what every installation has."""

_OPTIONAL = {
    "torch": ("train", "training, retraining SiLU to ReLU, export, --metric fisher"),
    "tensorrt": ("tensorrt", "engines for NVIDIA devices"),
    "pycuda": ("tensorrt", "running engines; cuda-python does it too"),
    "tensorrt_rtx": ("rtx", "engines for NVIDIA RTX graphics cards"),
    "openvino": ("openvino", "Intel processors"),
}
"""Module → the extra of qtoolkit that brings it, and what it is for. Those of ``_USED`` this release uses."""

_EXTRA_OF = {"openvino-cpu": "openvino"}
"""Backend → the extra that brings its library."""

_USED = frozenset({"torch", "openvino", "tensorrt", "pycuda", "tensorrt_rtx"})

# Broken packages fail on import in more ways than ImportError: a wrong binary interface, a missing system library.
_IMPORT_FAULTS = (ImportError, AttributeError, OSError, RuntimeError, TypeError, ValueError)

_INT8_ADVICE = (
    ({"amx_int8"}, "AMX: 8-bit networks run at the highest rate, and their sums are exact."),
    (
        {"avx_vnni", "avx_vnni_int8", "avx512_vnni"},
        "VNNI: 8-bit networks run at full rate, and their sums are exact.",
    ),
    (
        {"avx2", "avx512bw"},
        "No VNNI: ONNX Runtime adds pairs of 8-bit products in 16 bits here, where large ones saturate. AP of 8-bit"
        " networks may be lower than on processors with VNNI, and they gain less speed. Measure AP on this machine.",
    ),
    ({"asimddp", "i8mm"}, "Dot-product instructions: 8-bit networks run at full rate, and their sums are exact."),
    ({"asimd"}, "No dot-product instructions: 8-bit networks are exact here, and gain little speed."),
)
"""(instructions, what it means to have one of them); the first that fits counts."""

_NO_INT8 = "No instructions for 8-bit arithmetic: expect 8-bit networks to be no faster than float."


@click.command("doctor", epilog="\b\nExamples:\n  qtool doctor\n  qtool doctor --json")
@json_option
def command(as_json: bool) -> None:
    """Say what this machine can do: runtimes, targets, 8-bit instructions, optional packages."""
    faults = {module: fault for module in _BASE if (fault := _import_fault(module))}
    document: dict[str, Any] = {
        "ok": not faults,
        "base": {package: _base_record(module, package, faults) for module, package in _BASE.items()},
        "optional": {module: _optional_record(module) for module in _OPTIONAL},
    }
    if not faults:
        document |= _machine()
    if as_json:
        print_json(document)
    else:
        click.echo("\n".join(_lines(document)))
    if faults:
        raise GateFailed(
            "packages that qtoolkit needs cannot be imported",
            expected=", ".join(_BASE.values()),
            found="; ".join(f"{_BASE[module]}: {fault}" for module, fault in faults.items()),
            do=f"install them again: pip install --force-reinstall {' '.join(_BASE[module] for module in faults)}",
        )


def int8_advice(architecture: str, flags: Collection[str]) -> str:
    """What the processor's instructions mean for 8-bit networks on ort-cpu.

    Without VNNI, ONNX Runtime multiplies unsigned by signed bytes on x86 with VPMADDUBSW, which adds pairs of products
    in 16 bits with saturation (onnxruntime.ai, Quantize ONNX models, "When to use reduce-range").
    """
    has = set(flags)
    if not has:
        return (
            f"The system does not tell the instructions of this processor ({architecture}): measure with qtool bench."
        )
    return next((advice for wanted, advice in _INT8_ADVICE if has & wanted), _NO_INT8)


def _import_fault(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except _IMPORT_FAULTS as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _base_record(module: str, package: str, faults: dict[str, str]) -> dict[str, Any]:
    # Packages that are the same under another name (onnxruntime-gpu, opencv-python) have a version of their own.
    version = _version(package) or getattr(_imported(module), "__version__", None)
    return {"usable": module not in faults, "version": version, "fault": faults.get(module)}


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except _IMPORT_FAULTS:
        return None


def _optional_record(module: str) -> dict[str, Any]:
    """By the list of installed packages, not by importing: torch alone takes seconds."""
    extra, purpose = _OPTIONAL[module]
    return {"version": _version(module), "extra": extra, "for": purpose, "used": module in _USED}


def _machine() -> dict[str, Any]:
    from qtoolkit.backends.targets import TARGETS
    from qtoolkit.bench.environment import capture_environment

    environment = capture_environment()
    return {
        "environment": environment.model_dump(mode="json"),
        "int8": int8_advice(environment.architecture, environment.cpu_flags),
        "targets": [
            {"name": target.name, "description": target.description, **_usability(target)}
            for target in TARGETS.values()
        ],
    }


def _usability(target: Target) -> dict[str, Any]:
    from qtoolkit.backends.table import RUNNERS, runner_class

    backend = target.backend
    if target.needs_engine:
        return _engine_usability(backend)
    if backend not in RUNNERS:
        note = "networks for it are made here, and their AP measured with ONNX Runtime; to run on it comes later"
        return {"usable": False, "note": note, "extra": backend}
    try:
        runner_class(backend)
    except UnavailableError as error:
        extra = _EXTRA_OF.get(backend)
        advice = f"; pip install 'qtoolkit[{extra}]'" if extra else ""
        return {"usable": False, "note": f"{error.found}{advice}", "extra": extra}
    return {"usable": True, "note": "makes, evaluates and measures networks", "extra": None}


def _engine_usability(backend: str) -> dict[str, Any]:
    """Whether engines of TensorRT can be built and run here; AP of their networks is measured with ONNX Runtime."""
    from qtoolkit.backends.nvidia_driver import find_gpu

    module = backend.replace("-", "_")
    extra = _OPTIONAL[module][0]
    fault = _import_fault(module)
    if fault is not None:
        return {"usable": False, "note": f"{fault}; pip install 'qtoolkit[{extra}]'", "extra": extra}
    try:
        return {"usable": True, "note": f"builds and runs engines on {find_gpu().name}", "extra": None}
    except UnavailableError as error:
        builds = "builds engines ahead of time; to run them: " if backend == "tensorrt-rtx" else ""
        return {"usable": False, "note": f"{builds}{error.found}", "extra": None}


def _lines(document: dict[str, Any]) -> Iterator[str]:
    environment = document.get("environment")
    if environment:
        memory = "" if environment["ram_gb"] is None else f", {environment['ram_gb']} GB of memory"
        yield f"machine: {environment['cpu']} ({environment['architecture']})"
        yield f"  {environment['cores_physical']} cores, {environment['cores_logical']} hardware threads{memory}"
        yield f"  {environment['os']}, {environment['python']}, qtoolkit {environment['packages']['qtoolkit']}"
        yield f"  instructions: {' '.join(environment['cpu_flags']) or 'not known'}"
        yield f"8 bit on ort-cpu: {document['int8']}"
        yield "targets:"
        for target in document["targets"]:
            mark = "ready" if target["usable"] else "not here"
            yield f"  {target['name']}: {mark}: {target['note']}"
    yield "packages:"
    for package, found in document["base"].items():
        state = found["version"] or "version unknown"
        yield f"  {package}: {state if found['usable'] else 'broken: ' + found['fault']}"
    yield "optional packages:"
    for module, found in document["optional"].items():
        later = "" if found["used"] else ", in a later release"
        version = found["version"] or "absent"
        yield f"  {module}: {version}; for {found['for']}{later} (extra qtoolkit[{found['extra']}])"
