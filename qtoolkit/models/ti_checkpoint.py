"""Released weights of Texas Instruments' edgeai-yolov5 (branch yolo-pose) in a network of ours that computes the same.

Their names are places in a list of layers (``model.0.conv.conv.weight`` … ``model.33.m_kpt.3.weight``). Source:
``models/yolo.py``, ``models/common.py`` and ``models/hub/yolov5*6_kpts*.yaml`` of that repository.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from qtoolkit.errors import CheckpointError
from qtoolkit.models.activations import Activation
from qtoolkit.models.tensor_file import check_tensors, read_state_dict
from qtoolkit.models.yolopose import STRIDES, YoloPose
from qtoolkit.models.yolopose_config import YoloPoseConfig, config_of_architecture

__all__ = ["load_ti_weights"]

_LAYERS = {
    "backbone.stem": 0,
    "backbone.down4": 1,
    "backbone.stage4": 2,
    "backbone.down8": 3,
    "backbone.stage8": 4,
    "backbone.down16": 5,
    "backbone.stage16": 6,
    "backbone.down32": 7,
    "backbone.stage32": 8,
    "backbone.down64": 9,
    "backbone.spp": 10,
    "backbone.stage64": 11,
    "neck.lateral64": 12,
    "neck.fuse32": 15,
    "neck.lateral32": 16,
    "neck.fuse16": 19,
    "neck.lateral16": 20,
    "neck.out8": 23,
    "neck.down8": 24,
    "neck.out16": 26,
    "neck.down16": 27,
    "neck.out32": 29,
    "neck.down32": 30,
    "neck.out64": 32,
}
"""Module of ours → place in their list; what is missing of it holds no weights (up-sampling, concatenation)."""
_HEAD = "model.33"
_PER_CELL = 3


def load_ti_weights(
    path: str | os.PathLike[str],
    architecture: str,
    *,
    activation: Activation | None = None,
    side_activation: Activation | None = "silu",
) -> YoloPose:
    """The network of a released state dict: float32, evaluation mode, ``head_order`` "ti".

    path             a state dict as torch.save writes it (read with weights_only) or as safetensors; half is widened
    architecture     s6, m6 or l6, with ``-lite`` for the ti_lite networks; a state dict does not tell
    activation       None: ReLU in lite networks, SiLU in full ones, as released
    side_activation  of the pooling pyramid and the keypoint head. The released code never passes the activation on to
                     them: SiLU also in networks that have ReLU elsewhere. None: the same as elsewhere

    The number of keypoints and the anchors are taken from the file. Raises CheckpointError where the file cannot be
    read without running code, or its tensors are not those of this architecture; UsageError for an unknown
    architecture or activation.
    """
    file = Path(path)
    changes = {"activation": activation} if activation is not None else {}
    asked = config_of_architecture(architecture, head_order="ti", side_activation=side_activation, **changes)
    found = {name.removeprefix("module."): tensor for name, tensor in read_state_dict(file).items()}
    config = YoloPoseConfig.from_json({**asked.to_json(), "keypoint_count": _keypoint_count(file, found, asked)})
    with torch.random.fork_rng(devices=[]):
        model = YoloPose(config)
    own = model.state_dict()
    names = {name: _their_name(name, config.lite) for name in own if name != "anchors"}
    wanted = {their: own[name] for name, their in names.items()}
    # Counts of batches, which some exports leave out, mean nothing to a network that is not trained on.
    counted = {name: tensor for name, tensor in found.items() if not name.endswith("num_batches_tracked")}
    weights = {name: tensor for name, tensor in wanted.items() if not name.endswith("num_batches_tracked")}
    anchors = _anchors(file, counted, own["anchors"])
    check_tensors(file, counted, weights, f"TI's YOLO-Pose {architecture} with {config.keypoint_count} keypoints")
    model.load_state_dict(
        {**{name: found.get(their, wanted[their]) for name, their in names.items()}, "anchors": anchors}
    )
    return model.eval()


def _their_name(name: str, lite: bool) -> str:
    parts = name.split(".")
    if parts[0] != "heads":
        return ".".join(["model", str(_LAYERS[".".join(parts[:2])]), *parts[2:]])
    level, branch, rest = parts[1], parts[2], parts[3:]
    if branch == "box":
        return ".".join([_HEAD, "m", level, *rest])
    # The lite keypoint head is a convolution there, a chain of one here.
    return ".".join([_HEAD, "m_kpt", level, *(rest[1:] if lite else rest)])


def _keypoint_count(file: Path, found: Mapping[str, Tensor], config: YoloPoseConfig) -> int:
    last = f"{_HEAD}.m_kpt.0.weight" if config.lite else f"{_HEAD}.m_kpt.0.11.weight"
    weight = found.get(last)
    if weight is None or weight.ndim != 4 or not weight.shape[0] or weight.shape[0] % (3 * _PER_CELL):
        kind = (
            "a lite network, one convolution as keypoint head" if config.lite else "a full network, keypoint head of 6"
        )
        raise CheckpointError(
            f"the weights {file} do not fit the network",
            expected=f"{last} of {kind}, with a multiple of {3 * _PER_CELL} channels",
            found=f"{len(found)} tensors, {last} " + ("missing" if weight is None else f"of {tuple(weight.shape)}"),
            do="give the right --architecture: s6-lite and m6-lite are TI's ti_lite networks",
        )
    return int(weight.shape[0]) // (3 * _PER_CELL)


def _anchors(file: Path, found: dict[str, Tensor], default: Tensor) -> Tensor:
    """Anchors in pixels, (4, 3, 2), which leave ``found``: stored in pixels, in cells, both, or neither."""
    in_pixels, in_cells = found.pop(f"{_HEAD}.anchor_grid", None), found.pop(f"{_HEAD}.anchors", None)
    if in_pixels is None and in_cells is not None and in_cells.ndim == 3:
        in_pixels = in_cells.float() * torch.tensor(STRIDES, dtype=torch.float32)[: len(in_cells), None, None]
    if in_pixels is None:
        return default
    if in_pixels.numel() != default.numel():
        raise CheckpointError(
            f"the weights {file} have other anchors than YOLO-Pose",
            expected="3 anchors for each of 4 levels",
            found=f"anchors of shape {tuple(in_pixels.shape)}",
            do="give a network with the outputs P3 to P6",
        )
    return in_pixels.float().reshape(default.shape)
