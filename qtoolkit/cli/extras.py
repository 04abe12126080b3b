"""What a command needs beyond the base install, said before any work is done."""

from __future__ import annotations

import importlib.util
import os

from qtoolkit.errors import UnavailableError

__all__ = ["prepare_torch", "require_torch"]

_TRAIN = ("torch", "safetensors")


def require_torch() -> None:
    """Raise UnavailableError (exit 4) unless the packages of the extra ``train`` are there. Imports none of them."""
    missing = [name for name in _TRAIN if not _is_there(name)]
    if missing:
        raise UnavailableError(
            f"this command needs {' and '.join(missing)}",
            expected=f"the optional packages {', '.join(_TRAIN)}",
            found=f"no {' and no '.join(missing)}",
            do="pip install 'qtoolkit[train]'",
        )


def prepare_torch() -> None:
    """Set up training on this machine's processor; call it before torch is imported. Raises as ``require_torch``."""
    # Waiting threads must not spin while others want the core.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    require_torch()
    from qtoolkit.training.allocator import keep_freed_memory

    keep_freed_memory()


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    # An import hook may refuse by raising; a half-removed package has no spec.
    except (ImportError, ValueError):
        return False
