"""Reading an ONNX file that nobody vouches for: every way in which it can be broken gets its own message."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper

from qtoolkit.errors import ModelFileError

__all__ = ["MAX_OPSET", "MIN_OPSET", "default_opset", "read_model"]

MIN_OPSET = 11
MAX_OPSET = 23
_DEFAULT_DOMAINS = ("", "ai.onnx")
_SNIFF_BYTES = 512


def read_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The network in ``path`` as it stands in the file, external data of its own folder loaded into it.

    Nothing is executed and no file outside the folder of ``path`` is opened. Raises ModelFileError where the file is
    missing, empty, no ONNX, truncated, without nodes, outside opsets 11–23, or refers to external data that is
    missing, too short or outside the folder.
    """
    path = Path(path)
    model = _parse(path, _read_bytes(path))
    if not model.graph.node:
        raise ModelFileError(
            f"{path} holds no network",
            expected="an ONNX graph with nodes",
            found="a graph without any node",
            do="export the network again",
        )
    _check_opset(path, model)
    _load_external_data_(path, model)
    return model


def default_opset(model: onnx.ModelProto) -> int | None:
    """Version of the standard operator set that ``model`` imports; None where it imports none."""
    versions = [int(entry.version) for entry in model.opset_import if entry.domain in _DEFAULT_DOMAINS]
    return max(versions) if versions else None


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(
            f"there is no file {path}", expected="the path of an ONNX network", found="nothing", do="check the path"
        ) from error
    except IsADirectoryError as error:
        raise ModelFileError(
            f"{path} is a folder", expected="an ONNX file", found="a folder", do="name the .onnx file in it"
        ) from error
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read",
            expected="a readable ONNX file",
            found=error.strerror or str(error),
            do="check its permissions",
        ) from error
    if not content:
        raise ModelFileError(
            f"{path} is empty", expected="an ONNX network", found="0 bytes", do="copy or export the file again"
        )
    return content


def _parse(path: Path, content: bytes) -> onnx.ModelProto:
    foreign = _foreign_content(content[:_SNIFF_BYTES])
    if foreign is not None:
        found, do = foreign
        raise ModelFileError(f"{path} is not an ONNX file", expected="an ONNX network (protobuf)", found=found, do=do)
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        # The first field of an ONNX file is its ir_version: tag 1, varint.
        if content.startswith(b"\x08"):
            raise ModelFileError(
                f"{path} is truncated or damaged",
                expected="a whole ONNX file",
                found=f"{len(content)} bytes that begin like ONNX and cannot be parsed to the end",
                do="copy, download or export the file again",
            ) from error
        raise ModelFileError(
            f"{path} is not an ONNX file",
            expected="an ONNX network (protobuf)",
            found="content that cannot be parsed",
            do="give a network exported to ONNX",
        ) from error


def _foreign_content(head: bytes) -> tuple[str, str] | None:
    """What the file is instead of ONNX, and what to do about it; None where it may be ONNX."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file it stands for", "run `git lfs pull`"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive, such as a PyTorch checkpoint", "export the network to ONNX first"
    try:
        # Incremental, since a multi-byte character may be cut where the head ends.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    if all(character.isprintable() or character in "\t\r\n\f" for character in text):
        return f"a text file that begins with {text[:40]!r}", "give a network exported to ONNX"
    return None


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    opset = default_opset(model)
    if opset is None:
        raise ModelFileError(
            f"{path} does not say which operator set it uses",
            expected=f"an opset import from {MIN_OPSET} to {MAX_OPSET}",
            found="none: the file may be truncated",
            do="copy or export the file again",
        )
    installed = min(MAX_OPSET, int(onnx.defs.onnx_opset_version()))
    if not MIN_OPSET <= opset <= installed:
        raise ModelFileError(
            f"{path} uses an ONNX opset that is not supported",
            expected=f"opset {MIN_OPSET} to {installed}",
            found=f"opset {opset}",
            do="export the network with opset 17",
        )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for body in attribute.graphs:
                yield from _tensors(body)


def _load_external_data_(path: Path, model: onnx.ModelProto) -> None:
    tensors = list(_tensors(model.graph))
    for function in model.functions:
        tensors += _node_tensors(function.node)
    external = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    # All places are judged before any is read.
    places = [_external_place(path, tensor) for tensor in external]
    for tensor, (data_path, offset, length) in zip(external, places, strict=True):
        with data_path.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def _external_place(path: Path, tensor: onnx.TensorProto) -> tuple[Path, int, int]:
    """File, offset and byte count of a tensor's external data, proved to lie inside the model's folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.parent.resolve()
    data_path = _resolved(folder, location)
    if data_path is None:
        raise ModelFileError(
            f"{path} keeps tensor {tensor.name!r} in a file outside its own folder, which is not read",
            expected="external data inside the folder of the ONNX file, by a relative path",
            found=f"location {location!r}",
            do="export the network with its data in the same folder, or in the ONNX file itself",
        )
    if not data_path.is_file():
        raise ModelFileError(
            f"the external data of {path} is missing",
            expected=f"the file {data_path.name} beside it, which holds tensor {tensor.name!r}",
            found="no such file",
            do="copy the data file together with the ONNX file",
        )
    try:
        offset = int(entries.get("offset") or 0)
        available = data_path.stat().st_size - offset
        length = int(entries.get("length") or available)
    except ValueError as error:
        raise _bad_external(path, tensor, f"offset {entries.get('offset')!r}, {entries.get('length')!r}") from error
    if offset < 0 or not 0 <= length <= available:
        raise _bad_external(path, tensor, f"{max(available, 0)} bytes from offset {offset}, {length} wanted")
    needed = _raw_size(tensor)
    if needed is not None and needed != length:
        raise _bad_external(path, tensor, f"{length} bytes for a tensor of {needed} bytes")
    return data_path, offset, length


def _resolved(folder: Path, location: str) -> Path | None:
    """The file that ``location`` names, or None where it is not one of a relative path inside ``folder``."""
    if not location or "\0" in location or Path(location).is_absolute():
        return None
    try:
        # resolve() follows symbolic links, so that a link out of the folder is refused as well.
        data_path = (folder / location).resolve()
    except (OSError, RuntimeError):
        return None
    return data_path if data_path.is_relative_to(folder) else None


def _raw_size(tensor: onnx.TensorProto) -> int | None:
    """Bytes that the tensor takes as raw data; None for types that are packed below one byte or unknown."""
    plain = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    whole = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    if tensor.data_type not in (*plain, *whole):
        return None
    return int(prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _bad_external(path: Path, tensor: onnx.TensorProto, found: str) -> ModelFileError:
    return ModelFileError(
        f"the external data of {path} does not fit tensor {tensor.name!r}",
        expected="as many bytes as the tensor's shape and type need",
        found=found,
        do="copy the data file again; it may be truncated or belong to another network",
    )
