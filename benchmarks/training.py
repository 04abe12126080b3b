"""Training beside a bare PyTorch loop: the same network, batch, loss and optimizer on tensors that lie ready, in turns.

usage: python benchmarks/training.py DATA [--image-size 320] [--batch 16] [--lite] [--steps 8] [--turns 5] [--workers 1]

The training augments, moves bytes, clips gradients and averages weights besides; its share of the bare loop's images a
second should be 0.9 at least. Each turn starts a new loader: none has a batch ready from the turn before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

# Before torch is imported; see qtoolkit/cli/train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from qtoolkit.data.sources import open_data_source
from qtoolkit.training.dataset import TrainingSet, read_labelled_images
from qtoolkit.training.distributed import join_processes
from qtoolkit.training.image_cache import ImageCache
from qtoolkit.training.loader import batch_to_device, load_batches
from qtoolkit.training.losses import PoseLoss
from qtoolkit.training.recipe import TrainRecipe, build_train_recipe
from qtoolkit.training.schedule import Schedule
from qtoolkit.training.trainer import Trainer, build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", default="n6")
    parser.add_argument("--lite", action="store_true")
    parser.add_argument("--amp", default="off")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    fields = {name: getattr(options, name) for name in ("data", "image_size", "batch", "size", "lite", "amp")}
    recipe = build_train_recipe({**fields, "out": "unused", "images": 10**9})
    with tempfile.TemporaryDirectory() as folder, join_processes(recipe.device) as processes:
        data = read_labelled_images(open_data_source(recipe.data, parts=("train",)), 512)
        with ImageCache(data.samples, recipe.image_size, Path(folder)) as cache:
            for index in range(len(cache)):
                _ = cache[index]
            images = TrainingSet(cache, data.labels, recipe.augmentation, recipe.image_size, 0)
            schedule = Schedule(recipe, len(images), 1)
            trainer = Trainer(recipe, processes)
            bare = _bare_loop(recipe, images, schedule, processes.device)
            next(bare)
            rates: dict[str, list[float]] = {f"training, workers {n}": [] for n in options.workers}
            rates["bare loop"] = []
            for turn in range(options.turns):
                for workers in options.workers:
                    started = time.perf_counter()
                    _train(trainer, images, schedule, workers, 1000 * (turn + 1), options.steps)
                    rates[f"training, workers {workers}"].append(_rate(options, started))
                started = time.perf_counter()
                for _ in range(options.steps):
                    next(bare)
                rates["bare loop"].append(_rate(options, started))
    print(
        f"{options.size}{' lite' if options.lite else ''}, {options.image_size} px, batch {options.batch}, "
        f"{recipe.data}, "
        f"{processes.device}, torch {torch.__version__}, {torch.get_num_threads()} threads, amp {options.amp}"
    )
    for name, values in rates.items():
        ratios = [one / other for one, other in zip(values, rates["bare loop"], strict=True)]
        print(
            f"{name}: {statistics.median(values):.1f} images/s (median of {len(values)}), "
            f"{statistics.median(ratios):.3f} of the bare loop ({min(ratios):.3f} to {max(ratios):.3f})"
        )


def _rate(options: argparse.Namespace, started: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return float(options.steps * options.batch / (time.perf_counter() - started))


def _train(trainer: Trainer, images: TrainingSet, schedule: Schedule, workers: int, first: int, steps: int) -> None:
    tasks = islice(schedule.batches(images, 0, first), steps)
    with contextlib.closing(load_batches(images, tasks, workers)) as loader:
        for step, batch in enumerate(loader):
            trainer.run_step([batch], schedule.rates(first + step))


def _bare_loop(recipe: TrainRecipe, images: TrainingSet, schedule: Schedule, device: torch.device) -> Iterator[None]:
    """A step each time it is asked, over four batches of ready float tensors."""
    model = build_network(recipe).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    loss_of = PoseLoss(model.anchors, model.strides)
    tasks = list(islice(schedule.batches(images, 0), 4))
    ready = [batch_to_device(images.batch(*task), device, True) for task in tasks]
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    yield
    while True:
        for pixels, targets in ready:
            with torch.autocast(device.type, kinds.get(recipe.amp), enabled=recipe.amp != "off"):
                raw = model(pixels)
            loss, _ = loss_of(raw, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield


if __name__ == "__main__":
    main()
