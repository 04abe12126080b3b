"""What the ablations share: train a grid of recipes and seeds, keep each result, print mean ± sd as a table."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtoolkit.artifacts.files import sha256_json, write_text
from qtoolkit.training.loop import train
from qtoolkit.training.recipe import TrainRecipe, build_train_recipe

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class Row:
    """One line of the table: its name, and what it changes in the recipe."""

    name: str
    changes: dict[str, Any]


def parser_of(text: str | None, out: str, size: int) -> argparse.ArgumentParser:
    """The options of every ablation."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--people", default=f"synthetic:4000@0/{size}", help="what is trained and evaluated on")
    parser.add_argument("--images", type=int, default=12000, help="images seen by each run")
    parser.add_argument("--eval-images", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--amp", choices=["off", "bf16"], default="off")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--jobs", type=int, default=2, help="runs beside each other")
    parser.add_argument("--init", type=Path, default=None, help="weights that every run starts from; none: at random")
    parser.add_argument("--widening", type=float, default=16.0, help="of the OKS loss; 1: exactly the published one")
    parser.add_argument("--widening-kind", choices=["shrink", "ladder"], default="ladder")
    return parser


def recipe_of(options: argparse.Namespace, row: Row, seed: int, folder: Path) -> TrainRecipe:
    """The recipe of one run: the smallest lite network, Muon, no mosaics: what gets furthest in a short run."""
    fields: dict[str, Any] = {
        "data": options.people,
        "out": str(folder),
        "lite": True,
        "images": options.images,
        "batch": options.batch,
        "optimizer": "muon",
        "lr": options.lr,
        "lr_final": 0.02,
        "widening": options.widening,
        "widening_kind": options.widening_kind,
        "widening_share": 0.9,
        "gains": {"box": 0.2, "keypoints": 0.5, "confidence": 0.1},
        "augmentation": {"mosaic": 0.0, "scale": 0.3},
        "amp": options.amp,
        "ema_decay": 0.998,
        "ema_warmup_steps": 200,
        "eval_images": options.eval_images,
        "threads": options.threads,
        "seed": seed,
        "init": None if options.init is None else str(options.init),
    }
    return build_train_recipe({**fields, **row.changes})


def run_grid(options: argparse.Namespace, rows: Sequence[Row]) -> dict[str, list[float]]:
    """AP of every row for every seed; a run that is there is not run again, one that was stopped goes on."""
    file = options.out / RESULTS_FILE
    options.out.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    aps: dict[str, list[float]] = {row.name: [] for row in rows}
    runs: dict[str, tuple[Row, int, TrainRecipe]] = {}
    # All rows of one seed first: a grid that is stopped can be compared as far as it is.
    for seed in options.seeds:
        for row in rows:
            recipe = recipe_of(options, row, seed, options.out / f"{row.name}-{seed}")
            runs[f"{row.name}-{seed}-{sha256_json(recipe.outcome_fields())[:12]}"] = row, seed, recipe
    missing = {key: recipe for key, (_, _, recipe) in runs.items() if key not in known}
    for key, (ap, seconds) in _trained(missing, options.jobs):
        row, seed, _ = runs[key]
        known[key] = {"row": row.name, "seed": seed, "ap": ap, "seconds": seconds}
        write_text(file, json.dumps(known, indent=1) + "\n")
    for key, (row, _, _) in runs.items():
        aps[row.name].append(known[key]["ap"])
    return aps


def _trained(recipes: dict[str, TrainRecipe], jobs: int) -> Iterator[tuple[str, tuple[float | None, float]]]:
    """(AP, seconds) of each recipe as it is finished, ``jobs`` of them in processes of their own at a time."""
    # Not forked: a fork of a process in which torch has started threads may hang.
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_train, recipes.items())


def _train(named: tuple[str, TrainRecipe]) -> tuple[str, tuple[float | None, float]]:
    name, recipe = named
    result = train(recipe, _show(name))
    return name, (result.ap, result.seconds)


def print_table(heading: str, aps: dict[str, list[float]], options: argparse.Namespace) -> None:
    """A Markdown table with the differences to the first row, and the conditions below it."""
    base = statistics.mean(next(iter(aps.values())))
    print(f"| {heading} | AP mean ± sd | to the first | AP by seed |\n|---|---|---|---|")
    for name, values in aps.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.mean(values)
        print(f"| {name} | {mean:.2f} ± {spread:.2f} | {mean - base:+.2f} | {', '.join(f'{v:.2f}' for v in values)} |")
    print(
        f"\nn6 lite, {options.people}, {options.images} images seen, batch {options.batch}, Muon {options.lr:g}, "
        f"autocast {options.amp}, OKS widening {options.widening:g} ({options.widening_kind}), seeds {options.seeds}, "
        f"{options.eval_images} images evaluated, start: {'random' if options.init is None else options.init.name}."
    )


def _show(name: str) -> Any:
    def show(stage: str, done: int, total: int) -> None:
        if done == total or done % 2048 < 16:
            print(f"{name}: {stage} {done}/{total}", file=sys.stderr, flush=True)

    return show
