"""Render one part of a set: all its JPEG files and the COCO file that labels them.

Images are rendered by several processes, since drawing holds Python's lock.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from qtoolkit.artifacts.files import write_bytes, write_text
from qtoolkit.data.rendering.scene import SceneOptions
from qtoolkit.data.skeletons import COCO17
from qtoolkit.data.synthetic import RENDERER_VERSION, render

__all__ = ["PartCounts", "RenderJob", "RenderReport", "render_part"]

_BATCH = 16
_FEWEST_FOR_PROCESSES = 48
_MOST_PROCESSES = 16


class PartCounts(NamedTuple):
    """What one part of a written set holds."""

    images: int
    people: int
    people_with_keypoints: int


class RenderJob(NamedTuple):
    """What ``synthetic.render`` is told besides the index."""

    seed: int
    part: str
    size: int
    options: SceneOptions


class RenderReport:
    """Counts rendered images over several parts."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0

    def add(self, count: int) -> None:
        """Tell that so many images more are done."""
        self._done += count
        if self._progress:
            self._progress(self._done, self._total)


def render_part(images_dir: Path, labels: Path, job: RenderJob, count: int, report: RenderReport) -> PartCounts:
    """Render images 0 … ``count`` − 1 into the new folder ``images_dir`` and write their COCO file ``labels``.

    In several processes where that pays; ``report`` is told of every batch. Raises OSError where it cannot write.
    """
    images_dir.mkdir()
    batches = [range(first, min(first + _BATCH, count)) for first in range(0, count, _BATCH)]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for records in _in_processes(images_dir, job, batches):
        for image, people in records:
            images.append(image)
            for person in people:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **person})
        report.add(len(records))
    write_text(labels, json.dumps(_document(job, images, annotations), separators=(",", ":")) + "\n")
    return PartCounts(count, len(annotations), sum(each["num_keypoints"] > 0 for each in annotations))


def _document(job: RenderJob, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(COCO17.keypoint_names),
        "skeleton": [[first + 1, second + 1] for first, second in COCO17.links],
    }
    described = f"rendered people, renderer {RENDERER_VERSION}, part {job.part}, seed {job.seed}, {job.size} px"
    return {
        "info": {"description": described},
        "images": images,
        "annotations": annotations,
        "categories": [category],
    }


Records = list[tuple[dict[str, Any], list[dict[str, Any]]]]


def _in_processes(images_dir: Path, job: RenderJob, batches: list[range]) -> Iterator[Records]:
    """The records of every batch, in order; the files are written on the way."""
    processes = min(_cores(), len(batches), _MOST_PROCESSES)
    done = 0
    if processes > 1 and batches[-1].stop >= _FEWEST_FOR_PROCESSES and not multiprocessing.current_process().daemon:
        # Started afresh, not forked: a fork of a process with threads (a runtime's, torch's) may hang.
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start_process)
        try:
            for records in pool.map(_render_batch, *zip(*((images_dir, job, batch) for batch in batches), strict=True)):
                yield records
                done += 1
        # A program without a main guard, or read from standard input, cannot be started again: go on in this process.
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(cancel_futures=True)
    for batch in batches[done:]:
        yield _render_batch(images_dir, job, batch)


def _start_process() -> None:
    # Ctrl-C is for the process that waits for these; the images are too small to share one among threads.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent:  # killed, it cannot stop this process, which would wait for work for ever
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _render_batch(images_dir: Path, job: RenderJob, batch: range) -> Records:
    records: Records = []
    for index in batch:
        rendered = render(job.seed, index, job.part, job.size, job.options)
        name = f"{index:06d}.jpg"
        write_bytes(images_dir / name, rendered.jpeg)
        width, height = rendered.size_wh
        image = {"id": index + 1, "file_name": name, "width": width, "height": height}
        records.append((image, rendered.annotations()))
    return records


def _cores() -> int:
    # Not known everywhere; where it is, it knows of containers and of taskset.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
