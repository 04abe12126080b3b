"""``qtool data check`` and ``qtool data synth``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtoolkit.cli.options import json_option, quiet_option
from qtoolkit.cli.output import listing, print_json
from qtoolkit.cli.progress import one_stage, show_progress
from qtoolkit.errors import GateFailed

if TYPE_CHECKING:
    from qtoolkit.data.check import DataReport, SplitReport

__all__ = ["command"]

_COUNT = click.IntRange(min=1, max=1_000_000)
_SHEET_IMAGES = 24


@click.group("data")
def command() -> None:
    """Check a data set, or render one."""


@command.command(
    "check",
    short_help="Look at every photo and every label.",
    epilog="\b\nExample:\n  qtool data check coco\n  qtool data check synthetic:50@1\n\n"
    "Exit code 1 where a fault is found.",
)
@click.argument("data", type=click.Path(path_type=Path))
@quiet_option
@json_option
def _check(data: Path, quiet: bool, as_json: bool) -> None:
    """Decode every photo and read every label of DATA, and report all that is wrong or odd."""
    from qtoolkit.data.check import check_data_source
    from qtoolkit.data.sources import open_data_source

    with show_progress(quiet) as progress:
        source = open_data_source(data, progress=one_stage(progress, "rendering people"))
        report = check_data_source(source, one_stage(progress, "checking photos"))
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        click.echo("\n".join(_lines(report)))
    if not report.ok:
        faulty = [part.split for part in report.splits if not part.ok]
        raise GateFailed(
            f"the data set {report.name} has faults",
            expected="every photo readable, sized as labelled, and none both calibrated on and evaluated on",
            found="faults in " + listing([*faulty, *(["the overlap of calib and val"] if report.overlap else [])]),
            do="mend or take out the files listed above",
        )


@command.command(
    "synth",
    short_help="Render people with labels.",
    epilog="\b\nExample:\n  qtool data synth --out people --images 500 --seed 7 --calib 200",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the data set.")
@click.option("--images", type=_COUNT, default=200, show_default=True, metavar="N", help="Images to evaluate on.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S", help="Seed of the set.")
@click.option("--size", type=int, default=320, show_default=True, metavar="PX", help="Long side of the images.")
@click.option(
    "--difficulty",
    type=click.Choice(["usual", "hard"]),
    default="usual",
    show_default=True,
    help="How hard the people are to find.",
)
@click.option("--calib", type=_COUNT, metavar="M", help="Images to calibrate on.  [default: N, at most 200]")
@click.option("--train", type=_COUNT, metavar="T", help="Images to train on.  [default: none]")
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the first 24 images with their labels drawn, on one JPEG or PNG.",
)
@quiet_option
@json_option
def _synth(
    out: Path,
    images: int,
    seed: int,
    size: int,
    difficulty: str,
    calib: int | None,
    train: int | None,
    sheet: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Render people with COCO keypoint labels into DIR: parts val and calib, and train where asked for.

    The same options give the same images on every machine. DIR must be new, empty, or a set this command wrote.
    """
    from qtoolkit.data.rendered_sets import MAX_CALIBRATION_IMAGES, write_set, write_sheet
    from qtoolkit.data.synthetic import RENDERER_VERSION

    calib = min(images, MAX_CALIBRATION_IMAGES) if calib is None else calib
    with show_progress(quiet) as progress:
        report = one_stage(progress, "rendering people")
        parts = write_set(
            out, images, seed, size, calib=calib, train=train or 0, difficulty=difficulty, progress=report
        )
    if sheet:
        write_sheet(sheet, min(images, _SHEET_IMAGES), seed, size, difficulty)
    if as_json:
        counts = {name: part._asdict() for name, part in parts.items()}
        facts = {"renderer": RENDERER_VERSION, "seed": seed, "size": size, "difficulty": difficulty}
        print_json({"folder": str(out), **facts, "parts": counts})
        return
    for name, part in parts.items():
        labelled = f"{part.people} people, {part.people_with_keypoints} of them with keypoints"
        click.echo(f"{name}: {part.images} images; {labelled}")
    click.echo(f"use it with --data {out}")


def _lines(report: DataReport) -> Iterator[str]:
    yield f"{report.name} ({report.kind}): {'good' if report.ok else 'with faults'}"
    for part in report.splits:
        yield f"  {part.split}: {part.images} images, {part.readable} readable{_people(part)}"
        yield from (f"    fault: {line}" for line in _faults(part))
        yield from (f"    note: {line}" for line in _notes(part))
    if report.overlap:
        names = [f"{each.calibration} = {each.evaluation}" for each in report.overlap]
        yield f"  fault: calibrated on and evaluated on ({len(names)}): {listing(names)}"


def _people(part: SplitReport) -> str:
    if not part.people and not part.crowds:
        return ""
    return f"; {part.people} people, {part.people_with_keypoints} of them with keypoints, {part.crowds} crowds"


def _faults(part: SplitReport) -> Iterator[str]:
    if part.annotation_fault:
        yield part.annotation_fault
    if part.missing:
        yield f"labelled, but missing ({len(part.missing)}): {listing(part.missing)}"
    if part.unreadable:
        files = [f"{each.name}: {each.reason}" for each in part.unreadable]
        yield f"unreadable ({len(files)}): {listing(files)}"
    if part.wrong_size:
        yield f"of another size than labelled ({len(part.wrong_size)}): {listing(part.wrong_size)}"


def _notes(part: SplitReport) -> Iterator[str]:
    if part.unlabelled:
        yield f"not in the labels ({len(part.unlabelled)}): {listing(part.unlabelled)}"
    if part.repeated:
        yield f"the same content as another file ({len(part.repeated)}): {listing(part.repeated)}"
    if part.outside:
        yield f"annotations that reach outside their image ({len(part.outside)}): id {listing(part.outside)}"
    if part.miscounted:
        yield f"annotations with a wrong num_keypoints ({len(part.miscounted)}): id {listing(part.miscounted)}"
    if part.images_without_people and part.people:
        yield f"images without people: {part.images_without_people}"
