"""The learning rate of the fine-tuning, and its average; the rest is tested from end to end in test_retrain."""

from __future__ import annotations

from itertools import pairwise

import onnx
import pytest
import torch

from qtoolkit.errors import QtoolError
from qtoolkit.training import fine_tuning
from qtoolkit.training.fine_tuning import FineTuning, learning_rate_share
from qtoolkit.training.journal import read_journal
from qtoolkit.training.network_pair import NetworkPair
from qtoolkit.training.retrain_folder import RetrainFolder
from qtoolkit.training.retrain_options import RetrainOptions
from qtoolkit.training.tuning_batches import PlainBatches


def test_warm_up_and_cosine():
    shares = [learning_rate_share(step, 1000) for step in range(1000)]
    assert shares[0] == pytest.approx(1 / 50)
    assert shares[24] == pytest.approx(0.5)
    assert max(shares) == shares[50] == pytest.approx(1.0)
    assert shares[525] == pytest.approx((1 + 0.02) / 2, rel=1e-3)
    assert shares[-1] == pytest.approx(0.02, rel=1e-3)
    assert all(first >= second for first, second in pairwise(shares[50:]))


def test_a_run_of_one_step():
    assert learning_rate_share(0, 1) == pytest.approx(1.0)


@pytest.fixture
def tuning(tmp_path, tiny_pose_model, make_people):
    """``tuning(measure, **options)``: a fine-tuning of a small network, and the pair that it works on."""
    onnx.save(tiny_pose_model(), tmp_path / "net.onnx")
    photos = sorted((make_people() / "train").iterdir())

    def make(measure=lambda seen: None, **changes):
        options = RetrainOptions(
            model=tmp_path / "net.onnx", images="unused", train_size=64, batch=2, **{"out": tmp_path / "out", **changes}
        )
        pair, folder = NetworkPair.of(options), RetrainFolder(options, "0" * 64)
        folder.prepare()
        return FineTuning(
            pair, folder, options, PlainBatches(photos, 2, 0, (64, 64)), measure, {}, lambda done, total: None
        ), pair

    return make


def _weights(pair: NetworkPair) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in pair.student.parameters_by_name().values()])


def test_what_is_measured_and_kept_is_the_average(tuning):
    seen = []

    def measure(images):
        seen.append((images, _weights(pair).clone()))

    run, pair = tuning(measure, steps_images=8, eval_every=4, save_every_minutes=1e-9, lr=1e-3)
    start = _weights(pair).clone()
    run.run(lambda: None)
    assert [images for images, _ in seen] == [4, 8]
    assert torch.equal(_weights(pair), seen[-1][1])
    # Decays of 1/10, 2/11, 3/12, 4/13: mostly the last steps, but not the start and not the last step alone.
    assert not torch.equal(seen[0][1], start)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_bfloat16_learns_nearly_the_same(tuning, tmp_path):
    found = {}
    for amp in ("off", "bf16"):
        run, pair = tuning(steps_images=8, amp=amp, lr=1e-3, out=tmp_path / amp)
        start = _weights(pair).clone()
        run.run(lambda: None)
        found[amp] = _weights(pair) - start
    assert found["off"].abs().max() > 0
    assert torch.nn.functional.cosine_similarity(found["off"], found["bf16"], dim=0) > 0.6


def _as_on_a_gpu(run: FineTuning) -> FineTuning:
    """The run, that takes the whole batch at once and looks at the loss only where it writes."""
    run._on_cpu = False
    return run


def test_a_whole_batch_at_once_learns_the_same(tuning, tmp_path):
    found = {}
    for way in ("parts", "whole"):
        run, pair = tuning(steps_images=8, lr=1e-3, amp="off", out=tmp_path / way)
        start = _weights(pair).clone()
        (run if way == "parts" else _as_on_a_gpu(run)).run(lambda: None)
        found[way] = _weights(pair) - start
    assert torch.nn.functional.cosine_similarity(found["parts"], found["whole"], dim=0) > 0.999
    logs = [read_journal(tmp_path / way / "log.jsonl")[-1] for way in found]
    assert logs[0]["rest"] == pytest.approx(logs[1]["rest"], rel=1e-3)


def test_a_loss_that_is_none_ends_the_run_at_the_next_line_of_the_log(tuning, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "_LOG_EVERY", 6)
    run, _ = tuning(steps_images=40, amp="off", save_every_minutes=3.0)
    loss_of, seen = run._loss_of, []

    def broken(batch):
        loss, parts = loss_of(batch)
        seen.append(run._seen)
        return loss, parts * float("nan") if run._seen == 2 else parts

    monkeypatch.setattr(run, "_loss_of", broken)
    with pytest.raises(QtoolError, match="after 6 images"):
        _as_on_a_gpu(run).run(lambda: None)
    assert seen == [0, 2, 4]
    assert not (tmp_path / "out" / "last.safetensors").exists()


@pytest.mark.parametrize(("capability", "bf16"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_bfloat16_by_itself_where_the_gpu_has_it(monkeypatch, capability, bf16):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fine_tuning._multiplies_bf16(torch.device("cuda", 0)) == bf16
