"""Engine files and the record beside each, ``NAME.engine.json``: an engine that does not fit is refused before loading.

TensorRT refuses an engine of another version itself, but not always one of another GPU, and says little either way.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qtoolkit.artifacts.files import sha256_bytes, write_bytes, write_text
from qtoolkit.errors import ModelFileError, UsageError

__all__ = [
    "EngineRecord",
    "check_engine",
    "check_engine_size",
    "engine_backend",
    "is_engine",
    "machine_name",
    "read_engine",
    "sidecar_path",
    "write_engine",
]

_SCHEMA = 1
_SUFFIX = ".engine"


class EngineRecord(BaseModel):
    """What an engine was made of, with and for. ``onnx_sha256`` is that of the ONNX file it was built from.

    ``gpu`` is None and ``compute_capabilities`` name GPUs, for an engine that was built ahead of time; otherwise it is
    for that very GPU. ``input_shapes`` and ``gmacs`` (10⁹ multiply-adds of one inference) are the network's, None in
    records of older releases; ``optimization_level`` is TensorRT's own where it is None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    schema_version: int = _SCHEMA
    target: str
    library: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    machine: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    dialect: Literal["weak", "strong"]
    precision: str
    nms: Literal["host", "onnx"]
    tf32: bool
    workspace_mb: int | None
    onnx_sha256: str
    engine_sha256: str
    engine_bytes: int
    qtoolkit: str
    input_shapes: dict[str, tuple[int, ...]] | None = None
    gmacs: float | None = None
    optimization_level: int | None = None


def machine_name() -> str:
    """Operating system and architecture, such as ``linux-x86_64``: engines do not cross them."""
    return f"{platform.system()}-{platform.machine()}".lower()


def is_engine(path: Path) -> bool:
    """Whether a file is taken for an engine rather than a network: by its name, which ends in ``.engine``."""
    return path.suffix.lower() == _SUFFIX


def engine_backend(record: EngineRecord) -> str:
    """Name of the backend that opens an engine with this record, see ``backends.table``."""
    return record.library.replace("_", "-")


def check_engine_size(path: Path, input_size_wh: tuple[int, int] | None) -> None:
    """Raise UsageError where an input size is asked of an engine, which has the one that it was built for."""
    if input_size_wh is not None:
        raise UsageError(
            "an engine has one input size, which it was built for",
            expected=f"{path.name} without --input-size",
            found="--input-size {}x{}".format(*input_size_wh),
            do="leave it out, or build the engine for that size: qtool build MODEL.onnx --input-size",
        )


def sidecar_path(engine: Path) -> Path:
    """The file of an engine's record."""
    return engine.with_name(f"{engine.name}.json")


def write_engine(path: Path, plan: bytes, record: EngineRecord) -> None:
    """Write an engine and its record; the record last, so that an engine without one is an unfinished one."""
    sidecar_path(path).unlink(missing_ok=True)
    write_bytes(path, plan)
    write_text(sidecar_path(path), record.model_dump_json(indent=1) + "\n")


def read_engine(path: Path) -> tuple[bytes, EngineRecord]:
    """An engine and its record. Raises ModelFileError where one of them is missing, broken, or not the other's."""
    try:
        plan = path.read_bytes()
        record = EngineRecord.model_validate_json(sidecar_path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(
            f"{error.filename} cannot be read",
            expected="an engine file and, beside it, its record",
            found=error.strerror or str(error),
            do="build it again with `qtool build`",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelFileError(
            f"{sidecar_path(path)} is no record of an engine",
            expected="the file that `qtool build` wrote beside the engine",
            found=f"{where}: {first['msg']}",
            do="build it again with `qtool build`",
        ) from error
    if sha256_bytes(plan) != record.engine_sha256:
        raise ModelFileError(
            f"{path} is not the engine that its record describes",
            expected=f"SHA-256 {record.engine_sha256[:16]}…",
            found=f"{sha256_bytes(plan)[:16]}…",
            do="build it again with `qtool build`",
        )
    return plan, record


def check_engine(
    path: Path, record: EngineRecord, *, library: str, version: str, gpu: str, compute_capability: str,
    onnx_sha256: str | None = None,
) -> None:  # fmt: skip
    """Raise ModelFileError where the engine is for another library, version, machine or GPU, or of another network."""
    expected = {"library": library, "version": version, "machine": machine_name()}
    if record.gpu is not None:
        expected["gpu"] = gpu
    if onnx_sha256 is not None:
        expected["onnx_sha256"] = onnx_sha256
    wrong = [name for name, value in expected.items() if getattr(record, name) != value]
    if wrong:
        raise _mismatch(path, wrong[0], expected[wrong[0]], str(getattr(record, wrong[0])))
    if record.compute_capabilities and compute_capability not in record.compute_capabilities:
        raise _mismatch(path, "compute capability", compute_capability, ", ".join(record.compute_capabilities))


def _mismatch(path: Path, what: str, here: str, there: str) -> ModelFileError:
    names = {"onnx_sha256": "network (SHA-256)", "gpu": "GPU", "version": "TensorRT version"}
    return ModelFileError(
        f"the engine {path} does not fit: another {names.get(what, what)}",
        expected=here,
        found=there,
        do="build it again here with `qtool build`",
    )
