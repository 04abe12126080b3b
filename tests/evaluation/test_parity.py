import math

import numpy as np
import pytest

from qtoolkit.backends.runner import Runner, Signature, TensorSpec
from qtoolkit.errors import UsageError
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.evaluation.parity import parity

SHAPE = (1, 56, 84)


class Scaled(Runner):
    """Gives its input back as ``output0``, each of the 56 rows times its gain."""

    name = "scaled"

    def __init__(self, gains=1.0, dtype=np.float32, output="output0", rows=56):
        super().__init__()
        self.gains = np.broadcast_to(np.float32(gains), 56).reshape(1, 56, 1)
        self.dtype, self.output, self.rows = np.dtype(dtype), output, rows
        self.seen = None

    def _open(self):
        spec = TensorSpec(SHAPE, self.dtype)
        return Signature({"x": spec}, {self.output: spec})

    def _infer(self, feeds, outputs):
        self.seen = feeds["x"].dtype
        return [(feeds["x"] * self.gains)[:, : self.rows]]

    def _close(self):
        pass

    def conditions(self):
        return {"runtime": "none"}


def inputs(n=3):
    random = np.random.default_rng(0)
    return [{"x": random.uniform(0.1, 60, SHAPE).astype(np.float32)} for _ in range(n)]


def compare(candidate, reference=None, **options):
    with reference or Scaled() as one, candidate as other:
        return parity(one, other, options.pop("inputs", inputs()), **options)


def test_equal_networks():
    (row,) = compare(Scaled())
    assert (row.tensor, row.sqnr_db, row.worst_sqnr_db) == ("output0", math.inf, math.inf)


def test_one_percent_is_40_db():
    (row,) = compare(Scaled(0.99))
    assert row.sqnr_db == pytest.approx(40, abs=1e-3)
    assert row.worst_sqnr_db == pytest.approx(40, abs=1e-3)


def test_blocks_of_the_head_are_judged_apart():
    gains = np.ones(56)
    gains[4], gains[5::3] = 0.9, 0.999
    rows = {row.tensor: row.sqnr_db for row in compare(Scaled(gains), head=detect_head({"output0": SHAPE}, (64, 64)))}
    assert rows["boxes"] == math.inf
    assert rows["scores"] == pytest.approx(20, abs=1e-3)
    # x is 0.1 % off and y is not: 60 dB and about 3 dB more.
    assert rows["keypoints_xy"] == pytest.approx(63, abs=0.2)
    assert rows["keypoint_confidence"] == math.inf


class OffOnce(Scaled):
    """Exact but for the second input, where it gives ``worse`` times the input."""

    calls = 0

    def _infer(self, feeds, outputs):
        self.calls += 1
        return [feeds["x"] * np.float32(0.5 if self.calls == 2 else 1)]


def test_all_inputs_together_and_the_worst_one():
    same = inputs(1) * 4
    (row,) = compare(OffOnce(), inputs=same)
    assert row.worst_input == 1
    assert row.worst_sqnr_db == pytest.approx(20 * math.log10(2))
    # A quarter of the noise over four times the signal: 10·log10(4) above the worst.
    assert row.sqnr_db == pytest.approx(20 * math.log10(2) + 10 * math.log10(4))


def test_each_network_gets_its_own_type():
    candidate = Scaled(dtype=np.float16)
    (row,) = compare(candidate)
    assert candidate.seen == np.float16
    assert 60 < row.sqnr_db < 80


def test_progress():
    steps = []
    compare(Scaled(), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_other_outputs():
    with pytest.raises(UsageError, match=r"output 'output0' of the two networks(.|\n)*found: other"):
        compare(Scaled(output="other"))


def test_other_shapes():
    with pytest.raises(UsageError, match=r"cannot be compared(.|\n)*shape \(1, 56, 84\)(.|\n)*shape \(1, 5, 84\)"):
        compare(Scaled(rows=5))


def test_no_inputs():
    with pytest.raises(UsageError, match="nothing to compare"):
        compare(Scaled(), inputs=[])
