"""The networks that come with the package: YOLO-Pose n6 at 320×320, trained on rendered people, SiLU and ReLU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qtoolkit.errors import UnavailableError

__all__ = ["default_network"]

_FOLDER = Path(__file__).resolve().parents[1] / "weights"


def default_network(activation: Literal["silu", "relu"] = "relu") -> Path:
    """The shipped network with this activation function; its weights are stored as fp16 (``half_storage``).

    Raises UnavailableError where the file is not there, as in an installation that left the package's data out.
    """
    path = _FOLDER / f"yolopose_n6_{activation}_320.onnx"
    if not path.is_file():
        raise UnavailableError(
            "the default network is not there",
            expected=f"{path.name} among the files of qtoolkit",
            found=f"no such file in {path.parent}",
            do="install qtoolkit again, or name a network of your own: MODEL --data DIR",
        )
    return path
