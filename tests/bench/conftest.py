"""Runners of known behaviour, in a module that worker processes can import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

STAND_INS = '''
"""Runners of known behaviour; the "model" is a text file with a number of seconds."""
import os, time
from pathlib import Path
import numpy as np
from qtoolkit.backends.runner import Runner, Signature, TensorSpec


class Timed(Runner):
    name = "timed"

    def __init__(self, model, *, threads=None, note="none"):
        super().__init__()
        self.seconds = float(Path(model).read_text())
        self.threads, self.note, self.inferences = threads, note, 0

    def _open(self):
        image = TensorSpec((1, 3, 4, 6), np.dtype(np.float32))
        return Signature(inputs={"images": image}, outputs={"y": image})

    def _infer(self, feeds, outputs):
        self.inferences += 1
        deadline = time.perf_counter() + self.seconds
        time.sleep(max(0.0, self.seconds - 0.001))
        while time.perf_counter() < deadline:
            pass
        return [feeds["images"]]

    def _close(self):
        pass

    def conditions(self):
        return {"runtime": "sleep", "version": "1", "provider": "none", "threads": self.threads, "note": self.note}


class Dying(Timed):
    def _infer(self, feeds, outputs):
        if self.inferences == 30:  # in the second turn: 10 to warm up, then 12 per turn
            os.write(2, b"out of luck\\n")
            os._exit(7)
        return super()._infer(feeds, outputs)


class Raising(Timed):
    def _infer(self, feeds, outputs):
        raise ZeroDivisionError("by nothing")


class Hanging(Timed):
    def _infer(self, feeds, outputs):
        time.sleep(600)


class Chatty(Timed):
    def _infer(self, feeds, outputs):
        os.write(1, b"a native library speaks\\n")
        print("and so does Python", flush=True)
        return super()._infer(feeds, outputs)


class Sleeping(Timed):
    """Does not hold the interpreter, as a runtime does not, and writes down how long it really slept.

    What one image takes, a batch takes as a whole.
    """

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.log, self.slept = Path(f"{model}.{id(self)}.slept"), []

    def _open(self):
        image = TensorSpec((2 if self.note == "batch 2" else 1, 3, 4, 6), np.dtype(np.float32))
        return Signature(inputs={"images": image}, outputs={"y": image})

    def _infer(self, feeds, outputs):
        start = time.perf_counter()
        time.sleep(self.seconds)
        self.slept.append(time.perf_counter() - start)
        return [feeds["images"]]

    def _close(self):
        self.log.write_text(" ".join(map(str, self.slept)))


class Restless(Timed):
    """Every block of ten takes another time: 1 to 3 times the seconds."""

    def _infer(self, feeds, outputs):
        self.inferences += 1
        time.sleep(self.seconds * (1 + (self.inferences * 7919 // 12 % 21) / 10))
        return [feeds["images"]]


class Noop(Timed):
    def _infer(self, feeds, outputs):
        return [feeds["images"]]


class Poses(Timed):
    """A pose head of 64×64 with one person; takes the seconds, and writes down how long it really took."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.log, self.slept = Path(f"{model}.{id(self)}.slept"), []

    def _open(self):
        image, rows = TensorSpec((1, 3, 64, 64), np.dtype(np.float32)), TensorSpec((1, 56, 84), np.dtype(np.float32))
        self.rows = np.zeros((1, 56, 84), np.float32)
        self.rows[0, :4] = 30
        self.rows[0, 4, 3] = 0.9
        return Signature(inputs={"images": image}, outputs={"output0": rows})

    def _infer(self, feeds, outputs):
        start = time.perf_counter()
        super()._infer(feeds, outputs)
        self.slept.append(time.perf_counter() - start)
        return [self.rows]

    def _close(self):
        self.log.write_text(" ".join(map(str, self.slept)))
'''


@pytest.fixture(autouse=True)
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stand_ins"
    folder.mkdir()
    (folder / "stand_ins.py").write_text(STAND_INS)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture
def lasting(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """``lasting(a=0.01)``: label → the "model" of a runner that takes so many seconds."""

    def make(**seconds: float) -> dict[str, Path]:
        for name, duration in seconds.items():
            (tmp_path / name).write_text(str(duration))
        return {name: tmp_path / name for name in seconds}

    return make
