"""What the bench harness itself costs: runners that do nothing and that sleep, through real worker processes.

    python benchmarks/harness_overhead.py

Prints the p50 that a runner doing nothing is charged with (it is inside every latency), and how far known durations
are off, as latency and as images per second.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from qtoolkit.bench.latency import measure_run
from qtoolkit.bench.throughput import measure_throughput

RUNNER = '''
import time
from pathlib import Path
import numpy as np
from qtoolkit.backends.runner import Runner, Signature, TensorSpec

class Sleeper(Runner):
    """Sleeps, then polls the clock for the last millisecond; 0 seconds do nothing at all."""
    name = "sleeper"

    def __init__(self, model, *, threads=None):
        super().__init__()
        self.seconds = float(Path(model).read_text())

    def _open(self):
        image = TensorSpec((1, 3, 4, 6), np.dtype(np.float32))
        return Signature(inputs={"images": image}, outputs={"y": image})

    def _infer(self, feeds, outputs):
        if self.seconds:
            deadline = time.perf_counter() + self.seconds
            time.sleep(max(0.0, self.seconds - 0.001))
            while time.perf_counter() < deadline:
                pass
        return [feeds["images"]]

    def _close(self):
        pass

    def conditions(self):
        return {"runtime": "sleep", "version": "1", "provider": "none", "threads": 1}
'''
DURATIONS_S = (0.002, 0.005, 0.02)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sleeper.py").write_text(RUNNER)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (name, os.environ.get("PYTHONPATH", ""))))
        for seconds in (0.0, *DURATIONS_S):
            (folder / f"{seconds:g}").write_text(str(seconds))
        settings = {"backend": "sleeper:Sleeper", "warmup_s": 0.2}
        idle = measure_run({"nothing": folder / "0"}, runs=1000, block=50, **settings).results["nothing"]
        print(f"overhead of an inference: p50 {1e3 * idle.p50_ms:.2f} us, p99 {1e3 * idle.p99_ms:.2f} us")
        variants = {f"{1e3 * seconds:g} ms": folder / f"{seconds:g}" for seconds in DURATIONS_S}
        run = measure_run(variants, runs=100, **settings)
        rates = measure_throughput(variants, seconds=3.0, threads=1, **settings)
        for seconds, label in zip(DURATIONS_S, variants, strict=True):
            latency = 100 * (run.results[label].p50_ms / (1e3 * seconds) - 1)
            rate = 100 * (rates[label].images_per_second * seconds - 1)
            print(f"{label}: p50 off by {latency:+.2f} %, images/s off by {rate:+.2f} %")
        others = run.noise.others_pct
        print(f"other processes used {'?' if others is None else f'{others:.0f}'} % of the machine")


if __name__ == "__main__":
    main()
