"""Several processes that train one network: started by torchrun, joined here, one of them writes.

::

    torchrun --nproc-per-node 2 --no-python qtool train RECIPE

Each process takes its share of every batch; gradients are averaged by DistributedDataParallel, and every mean of the
loss is that of the whole batch (``losses.PoseLoss``). What differs from one process with the whole batch is batch norm:
each process normalises by its own share, unless on CUDA, where SyncBatchNorm is used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from qtoolkit.errors import UnavailableError, UsageError

__all__ = ["Processes", "join_processes", "pick_device"]

_LONGEST_WAIT = timedelta(hours=3)
_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process among ``count`` that train together: ``rank`` counts from 0, ``device`` is its own."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process evaluates and writes."""
        return self.rank == 0

    def total_of(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes; every one of them must ask."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every process has come here: while one evaluates, the others have nothing to do."""
        if self.count > 1:
            distributed.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call in training: its gradients come out averaged over the processes."""
        if self.count == 1:
            return model
        if self.device.type == "cuda":
            return DistributedDataParallel(model, device_ids=[self.device.index])
        return DistributedDataParallel(model)

    def share_batch_norm(self, model: nn.Module) -> nn.Module:
        """The model with batch norms over all processes, where there are several and the device can (CUDA)."""
        if self.count == 1 or self.device.type != "cuda":
            return model
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return shared


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of ``auto``, ``cpu`` or ``cuda``. Raises UnavailableError where CUDA is asked for and not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= devices:
        raise UnavailableError(
            "there is no such CUDA device to train on",
            expected=f"at least {local_rank + 1} CUDA devices",
            found=f"{devices}",
            do="compute on the CPU (cpu or auto), or start fewer processes",
        )
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """This process and those that torchrun started with it (alone without torchrun).

    NCCL on CUDA, Gloo on the CPU. Raises UsageError where the variables that torchrun sets are incomplete,
    UnavailableError for a device that is not there.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or distributed.is_initialized():
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        count = distributed.get_world_size() if distributed.is_initialized() else 1
        yield Processes(rank, count, pick_device(device, int(os.environ.get("LOCAL_RANK", "0"))))
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {count}, but the other processes cannot be found",
            expected=f"the variables {', '.join(_VARIABLES)}",
            found=f"without {', '.join(missing)}",
            do=f"start the training with torchrun --nproc-per-node {count}",
        )
    chosen = pick_device(device, int(os.environ["LOCAL_RANK"]))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Processes(distributed.get_rank(), count, chosen)
    finally:
        distributed.destroy_process_group()
