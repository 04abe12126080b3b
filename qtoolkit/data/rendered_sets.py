"""Whole sets of rendered people on disk: in the cache, for ``synthetic:N@seed``, or in a folder of the user's.

A set is made under a temporary name and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import cv2

from qtoolkit.artifacts.files import write_bytes, write_text
from qtoolkit.data.images import list_images
from qtoolkit.data.rendered_parts import PartCounts, RenderJob, RenderReport, render_part
from qtoolkit.data.rendering.scene import DIFFICULTIES
from qtoolkit.data.rendering.sheet import contact_sheet, draw_labels
from qtoolkit.data.samples import Split
from qtoolkit.data.synthetic import (
    DEFAULT_DIFFICULTY,
    PARTS,
    RENDERER_VERSION,
    SyntheticSpec,
    checked_size,
    render,
)
from qtoolkit.errors import UsageError

__all__ = [
    "MAX_CALIBRATION_IMAGES",
    "MAX_TRAINING_VAL_IMAGES",
    "cache_folder",
    "cached_parts",
    "write_set",
    "write_sheet",
]

Progress = Callable[[int, int], None]

MAX_CALIBRATION_IMAGES = 200
"""Images of the part calib of ``synthetic:N@seed``, where N is not smaller."""

MAX_TRAINING_VAL_IMAGES = 500
"""Images of the part val where the set is opened to train on, where N is not smaller."""

_LABELS, _IMAGES, _MARK = "annotations.json", "images", "rendered.json"
_HALF_MADE = ".rendering-"
_FORGOTTEN_SECONDS = 24 * 3600.0


def cache_folder() -> Path:
    """Where rendered sets are kept: $QTOOLKIT_CACHE, $XDG_CACHE_HOME/qtoolkit or ~/.cache/qtoolkit."""
    own, shared = os.environ.get("QTOOLKIT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return (Path(shared) if shared else Path.home() / ".cache") / "qtoolkit"


def cached_parts(spec: SyntheticSpec, parts: Collection[str], progress: Progress | None = None) -> dict[str, Split]:
    """The parts of a rendered set, by name; those that are not in the cache yet are rendered into it.

    val has ``spec.count`` images (with train at most 500), calib at most 200, train ``spec.count``. ``progress`` is
    called with (done, total) over the images to render, and not at all where there are none. Raises UsageError for an
    unknown part, or where the cache cannot be written.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise UsageError(
            "rendered people have no such part",
            expected=", ".join(PARTS),
            found=", ".join(sorted(unknown)),
            do="correct the name of the part",
        )
    val = min(spec.count, MAX_TRAINING_VAL_IMAGES) if "train" in parts else spec.count
    counts = {"val": val, "calib": min(spec.count, MAX_CALIBRATION_IMAGES), "train": spec.count}
    root = cache_folder() / "rendered" / f"v{RENDERER_VERSION}"
    kind = f"{spec.size}px" + ("" if spec.difficulty == DEFAULT_DIFFICULTY else f"-{spec.difficulty}")
    folders = {part: root / f"{part}-{counts[part]}@{spec.seed}-{kind}" for part in PARTS if part in parts}
    missing = {part: folder for part, folder in folders.items() if not _is_whole(folder, counts[part])}
    report = RenderReport(sum(counts[part] for part in missing), progress)
    for part, folder in missing.items():
        with _writable(root, "set QTOOLKIT_CACHE to a folder that can be written"):
            root.mkdir(parents=True, exist_ok=True)
            _fill_cache(folder, RenderJob(spec.seed, part, spec.size, spec.options), counts[part], report)
    return {part: Split((folder / _IMAGES).resolve(), (folder / _LABELS).resolve()) for part, folder in folders.items()}


def write_set(
    folder: str | os.PathLike[str],
    images: int,
    seed: int,
    size: int,
    *,
    calib: int = 0,
    train: int = 0,
    difficulty: str = DEFAULT_DIFFICULTY,
    progress: Progress | None = None,
) -> dict[str, PartCounts]:
    """Write a data set (dataset.yaml, images and labels of val, and of calib and train where they are above 0).

    ``difficulty`` is a key of ``scene.DIFFICULTIES``. The folder must be new, empty, or one that this function wrote,
    which is then replaced. ``progress`` is called with (done, total) over all images. Raises UsageError for another
    folder, one that cannot be written, or a wrong size; after any error or interruption the folder is as it was.
    """
    place = Path(folder)
    counts = {part: count for part, count in zip(PARTS, (images, calib, train), strict=True) if count > 0}
    checked_size(size)
    existed = place.exists()
    old = _replaceable(place) if existed else []
    written: dict[str, PartCounts] = {}
    with _writable(place, "give another folder with --out"):
        place.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=_HALF_MADE, dir=place))
        try:
            report = RenderReport(sum(counts.values()), progress)
            for part, count in counts.items():
                job = RenderJob(seed, part, size, DIFFICULTIES[difficulty])
                written[part] = render_part(new / part, new / f"person_keypoints_{part}.json", job, count, report)
            write_text(
                new / _MARK,
                json.dumps(
                    {"renderer": RENDERER_VERSION, "seed": seed, "size": size, "difficulty": difficulty, **counts}
                )
                + "\n",
            )
            write_text(new / "dataset.yaml", _dataset_yaml(counts, seed, size, difficulty))
            _exchange(place, old, new)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            if not existed:
                with contextlib.suppress(OSError):
                    place.rmdir()  # only where nothing was written: it is not empty otherwise
    return written


def write_sheet(
    path: str | os.PathLike[str], images: int, seed: int, size: int, difficulty: str = DEFAULT_DIFFICULTY
) -> None:
    """Write the first images of part val with their labels drawn over them, on one JPEG or PNG file.

    Raises UsageError where the file cannot be written, or its name ends otherwise.
    """
    place = Path(path)
    if place.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise UsageError(
            f"the contact sheet {place} cannot be written",
            expected="a name that ends in .jpg or .png",
            found=place.name,
            do="give another name with --sheet",
        )
    rendered = [render(seed, index, "val", size, DIFFICULTIES[difficulty]) for index in range(images)]
    drawn = [draw_labels(each.image, each.boxes_xywh, each.keypoints) for each in rendered]
    sheet = contact_sheet(drawn, round(0.625 * size), 4 * size)
    with _writable(place, "give another name with --sheet"):
        write_bytes(place, cv2.imencode(place.suffix.lower(), sheet, [cv2.IMWRITE_JPEG_QUALITY, 74])[1].tobytes())


def _exchange(place: Path, old: list[Path], new: Path) -> None:
    for entry in old:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    # dataset.yaml comes last: until then the folder is no data set.
    for entry in sorted(new.iterdir(), key=lambda each: each.name == "dataset.yaml"):
        entry.rename(place / entry.name)


def _replaceable(place: Path) -> list[Path]:
    """What is in a folder that this module wrote, or nothing. Raises UsageError where there is anything else."""
    entries = sorted(place.iterdir()) if place.is_dir() else [place]
    own = {_MARK, "dataset.yaml", *PARTS, *(f"person_keypoints_{part}.json" for part in PARTS)}
    foreign = [entry.name for entry in entries if entry.name not in own and not entry.name.startswith(_HALF_MADE)]
    marked = (place / _MARK).is_file()
    rest = [entry for entry in entries if not entry.name.startswith(_HALF_MADE)]
    if foreign or (rest and not marked):
        raise UsageError(
            f"the folder {place} is not empty",
            expected="a new or empty folder, or a set that qtool data synth wrote",
            found=", ".join(foreign[:5] or [entry.name for entry in rest[:5]]) + (" …" if len(foreign) > 5 else ""),
            do="give another folder with --out",
        )
    return entries


def _dataset_yaml(counts: dict[str, int], seed: int, size: int, difficulty: str) -> str:
    lines = [
        f"# rendered people, renderer {RENDERER_VERSION}, seed {seed}, long side {size} px, difficulty {difficulty}",
        "kind: coco-keypoints",
    ]
    lines += [f"{part}: {{images: {part}, annotations: person_keypoints_{part}.json}}" for part in counts]
    return "\n".join(lines) + "\n"


def _is_whole(folder: Path, count: int) -> bool:
    images = folder / _IMAGES
    return (folder / _LABELS).is_file() and images.is_dir() and len(list_images(images)) == count


def _fill_cache(folder: Path, job: RenderJob, count: int, report: RenderReport) -> None:
    """Render a part into the cache. Who comes second, because another process rendered the same, takes the first's.

    What a killed process left half-made is removed once nobody has written to it for a day.
    """
    for left in folder.parent.glob(f"{_HALF_MADE}*"):
        with contextlib.suppress(OSError):
            if time.time() - max(each.stat().st_mtime for each in (left, *left.iterdir())) > _FORGOTTEN_SECONDS:
                shutil.rmtree(left)
    temporary = Path(tempfile.mkdtemp(prefix=_HALF_MADE, dir=folder.parent))
    try:
        render_part(temporary / _IMAGES, temporary / _LABELS, job, count, report)
        if folder.exists() and not _is_whole(folder, count):  # somebody took files out of the cache
            folder.rename(temporary / "damaged")
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not _is_whole(folder, count):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _writable(folder: Path, do: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written",
            expected="a place that exists or can be made, with write permission and enough space",
            found=error.strerror or str(error),
            do=do,
        ) from error
