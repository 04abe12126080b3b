"""Two processes that train one network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qtoolkit.data.sources import open_data_source
from qtoolkit.errors import UnavailableError, UsageError
from qtoolkit.training.distributed import join_processes, pick_device
from qtoolkit.training.journal import read_journal
from qtoolkit.training.loop import train
from qtoolkit.training.recipe import build_train_recipe

_ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = """
import sys
from qtoolkit.data.sources import open_data_source
from qtoolkit.training.loop import train
from qtoolkit.training.recipe import build_train_recipe

train(build_train_recipe({fields!r}), source=open_data_source({data!r}))
"""
_FIELDS = {
    "data": "people",
    "lite": True,
    "image_size": 128,
    "images": 96,
    "log_every": 16,
    "workers": 0,
    "device": "cpu",
    "threads": 1,
    "warmup_images": 0,
    "lr": 0.02,
    # The same 16 images in every interval, so that the loss falls by learning and not by chance.
    "augmentation": dict.fromkeys(("mosaic", "scale", "translate", "flip", "hue", "saturation", "value"), 0.0),
}


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes("cpu") as processes:
        assert (processes.rank, processes.count, processes.is_main) == (0, 1, True)
        assert processes.total_of(torch.tensor(3)).item() == 3
        processes.wait()


def test_incomplete_variables_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match=r"WORLD_SIZE is 2[\s\S]*MASTER_ADDR[\s\S]*torchrun"), join_processes("cpu"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_an_error():
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UnavailableError, match="no such CUDA device"):
        pick_device("cuda")


def test_two_processes_have_the_loss_curve_of_one_with_the_whole_batch(make_people, tmp_path):
    # Batch norm is the one difference: each of the two normalises by its 4 images. At the coarsest level of a 128-pixel
    # image that is 16 values per channel instead of 32, so the curves agree within 10 %, not to the last digit.
    data = make_people(train=16, val=1)
    alone = build_train_recipe({**_FIELDS, "batch": 8, "out": str(tmp_path / "alone")})
    train(alone, source=open_data_source(data))
    fields = {**_FIELDS, "batch": 4, "out": str(tmp_path / "both")}
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(fields=fields, data=str(data)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    curves = [
        [line["loss"] for line in read_journal(tmp_path / name / "log.jsonl") if line["event"] == "train"]
        for name in ("alone", "both")
    ]
    assert len(curves[0]) == len(curves[1]) == 6
    for one, both in zip(*curves, strict=True):
        assert sum(both.values()) == pytest.approx(sum(one.values()), rel=0.1)
    assert sum(curves[0][-1].values()) < 0.95 * sum(curves[0][0].values())
