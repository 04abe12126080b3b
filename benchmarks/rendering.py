"""How fast people are rendered: images a second, JPEG files and labels included, in one process and in one per core.

usage: python benchmarks/rendering.py [--size 320] [--images 400] [--processes N] [--turns 3]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np

from qtoolkit.data.synthetic import render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    for processes in sorted({1, options.processes}):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            # Imports and the bank of textures are made once a process, and are not what is measured.
            list(pool.map(_render_some, [(0, 8, options.size)] * 4 * processes))
            rates, cpu_ms, people, size_bytes = [], [], 0, 0
            for turn in range(options.turns):
                firsts = range(turn * options.images, (turn + 1) * options.images, 10)
                started = time.perf_counter()
                results = list(pool.map(_render_some, [(first, 10, options.size) for first in firsts]))
                rates.append(options.images / (time.perf_counter() - started))
                cpu_ms.append(1000 * sum(result[0] for result in results) / options.images)
                people += sum(result[1] for result in results)
                size_bytes += sum(result[2] for result in results)
        images = options.images * options.turns
        print(
            f"{processes} process{'es' if processes > 1 else ''}, {options.size} px: "
            f"{np.median(rates):.0f} images/s ({min(rates):.0f} to {max(rates):.0f}), "
            f"{np.median(cpu_ms):.2f} ms of processor time an image; "
            f"{people / images:.2f} people and {size_bytes / images / 1000:.1f} kB an image"
        )


def _render_some(job: tuple[int, int, int]) -> tuple[float, int, int]:
    """Processor seconds, people and bytes of some images."""
    first, count, size = job
    started = time.process_time()
    rendered = [render(1, index, "train", size) for index in range(first, first + count)]
    seconds = time.process_time() - started
    return seconds, sum(len(each.areas) for each in rendered), sum(len(each.jpeg) for each in rendered)


if __name__ == "__main__":
    main()
