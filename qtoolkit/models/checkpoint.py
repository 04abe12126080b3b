"""Weights of our networks in one file: safetensors, with the network's config and what is known of it in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qtoolkit.artifacts.files import atomic_path
from qtoolkit.errors import CheckpointError, UsageError
from qtoolkit.models.tensor_file import check_tensors, read_safetensors
from qtoolkit.models.yolopose import YoloPose, YoloPoseConfig

__all__ = ["load_weights", "save_weights"]

_KEY = "qtoolkit_weights"
_VERSION = 1


def save_weights(
    path: str | os.PathLike[str], model: YoloPose, metadata: Mapping[str, Any] | None = None, *, half: bool = False
) -> None:
    """Write the weights of ``model`` in the types they have, its config, and ``metadata`` (JSON values).

    ``half``: weights of convolutions as fp16, which halves the file and is a rounding of 2⁻¹¹; all else as it is.
    Through a temporary file and a rename. Equal weights, config and metadata give equal bytes.
    """
    header = {"version": _VERSION, "config": model.config.to_json(), "metadata": dict(metadata or {})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: tensor.half() if tensor.dim() == 4 else tensor for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {_KEY: json.dumps(header, sort_keys=True)})


def load_weights(path: str | os.PathLike[str]) -> tuple[YoloPose, dict[str, Any]]:
    """Read what ``save_weights`` wrote: the network in evaluation mode on the CPU, float32, and the metadata.

    Raises CheckpointError for a file that is missing, no safetensors file (a pickle is not opened), of another
    program or version, or whose tensors are not those of the network that its header names.
    """
    file = Path(path)
    tensors, headers = read_safetensors(file)
    config, metadata = _facts(file, headers)
    with torch.random.fork_rng(devices=[]):
        model = YoloPose(config)
    check_tensors(file, tensors, model.state_dict(), f"a {config.architecture} with {config.keypoint_count} keypoints")
    model.load_state_dict(tensors)
    return model.eval(), metadata


def _facts(file: Path, headers: Mapping[str, str]) -> tuple[YoloPoseConfig, dict[str, Any]]:
    expected = f"a file that `qtool train` wrote (safetensors with the entry {_KEY} in its header)"
    if _KEY not in headers:
        raise CheckpointError(
            f"{file} holds no weights of a network of qtoolkit",
            expected=expected,
            found=f"a safetensors file with {', '.join(sorted(headers)) or 'nothing'} in its header",
            do="for TI's released weights give --architecture, such as s6-lite",
        )
    try:
        header = json.loads(headers[_KEY])
        if header["version"] != _VERSION:
            raise CheckpointError(
                f"{file} is of another version of qtoolkit",
                expected=f"version {_VERSION}",
                found=str(header["version"]),
                do="read it with the version of qtoolkit that wrote it",
            )
        return YoloPoseConfig.from_json(header["config"]), dict(header["metadata"])
    except (ValueError, KeyError, TypeError, UsageError) as error:
        found = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the header of {file} cannot be used", expected=expected, found=found) from error
