from __future__ import annotations

import numpy as np
import onnx
import pytest

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.targets import find_target
from qtoolkit.graph.load import prepare_network
from qtoolkit.quantization.ptq import Quantizer
from qtoolkit.quantization.trials import LayerTrial, prepare_trials, run_trials

INT8, FP16, INT16, FP32 = Precision.INT8, Precision.FP16, Precision.INT16, Precision.FP32


@pytest.fixture(scope="module")
def int8_trials(quantizer, tmp_path_factory):
    names = [layer.name for layer in quantizer.layers]
    return prepare_trials(quantizer, names, INT8, tmp_path_factory.mktemp("trials"))


def collect(model, trials, feeds, **options):
    """Every call of the judge in order: (photo, layer, outputs)."""
    calls = []
    count = run_trials(
        model, trials, feeds, lambda *call: calls.append((*call[:2], dict(call[2]))), threads=1, **options
    )
    return count, calls


def test_a_trial_gives_what_the_network_with_that_layer_quantized_gives(quantizer, int8_trials, photos, infer):
    feeds = photos(2, seed=5)
    count, calls = collect(quantizer.model, int8_trials, feeds)
    assert count == 2
    assert len(calls) == 2 * (1 + len(quantizer.layers))
    for photo, layer, outputs in calls:
        model = quantizer.model if layer is None else quantizer.quantize_only({layer: INT8})
        expected = infer(model, feeds[photo])["output0"]
        # Float rounding before the cut may move a value to the next step of the grid; noise is far larger.
        noise = np.linalg.norm(expected - infer(quantizer.model, feeds[photo])["output0"])
        assert np.linalg.norm(outputs["output0"] - expected) <= 1e-3 * noise + 1e-3, layer


@pytest.mark.parametrize("precision", [FP16, INT16], ids=lambda p: p.value)
def test_16_bit_trials_too(quantizer, photos, infer, tmp_path, precision):
    feeds, names = photos(1, seed=5), ["stem", "c2f.b", "head.box.2.1"]
    trials = prepare_trials(quantizer, names, precision, tmp_path)
    _, calls = collect(quantizer.model, trials, feeds)
    for _, layer, outputs in calls[1:]:
        expected = infer(quantizer.quantize_only({layer: precision}), feeds[0])["output0"]
        np.testing.assert_allclose(outputs["output0"], expected, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("photos_held", [1, 2, 3, 100])
def test_groups_of_any_size_give_the_same(quantizer, int8_trials, photos, photos_held):
    chosen = int8_trials[::7]
    feeds = photos(5, seed=6)
    count, together = collect(quantizer.model, chosen, feeds)
    bytes_each = 4 * held_values(quantizer.model, chosen)
    also, calls = collect(quantizer.model, chosen, feeds, cache_bytes=photos_held * bytes_each + 3)
    assert count == also == 5
    known = {call[:2]: call[2]["output0"] for call in together}
    assert {call[:2] for call in calls} == set(known) and len(calls) == len(known)
    for photo, layer, outputs in calls:
        np.testing.assert_array_equal(outputs["output0"], known[photo, layer])
    # Float runs of a group come first, then its trials, layer by layer.
    group = min(photos_held, 5)
    order = [call[:2] for call in calls[: group * (1 + len(chosen))]]
    assert order == [(i, layer) for layer in (None, *(t.layer for t in chosen)) for i in range(group)]


def held_values(model, trials):
    """Numbers that one photo keeps in memory: image, output and what the trials start from."""
    shapes = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    names = {"images", "output0"} | {name for trial in trials for name in trial.inputs}
    return sum(int(np.prod([dim.dim_value for dim in shapes[name].type.tensor_type.shape.dim])) for name in names)


def test_no_memory_at_all_still_takes_one_photo_at_a_time(quantizer, int8_trials, photos):
    count, calls = collect(quantizer.model, int8_trials[:1], photos(2), cache_bytes=0)
    assert count == 2
    assert [call[:2] for call in calls] == [(0, None), (0, "stem"), (1, None), (1, "stem")]


def test_the_part_holds_only_what_the_layer_changes(quantizer, int8_trials):
    parts = {trial.layer: onnx.load(trial.part) for trial in int8_trials}
    names = {layer: {node.name for node in part.graph.node} for layer, part in parts.items()}
    assert "stem" in names["stem"] and "stem" not in names["c2f.b"]
    assert "c2f.a" not in names["c2f.b"]
    assert len(names["head.box.2.1"]) < len(names["stem"]) / 2
    by_layer = {trial.layer: trial for trial in int8_trials}
    assert by_layer["stem"].inputs == ("images",)
    # The quantized layer starts from its input, the skip of the residual add and the Concat's other halves.
    assert {"c2f.a.act", "c2f.right", "c2f.left"} <= set(by_layer["c2f.b"].inputs)


def test_a_layer_that_nothing_changes_for_gives_the_float_outputs(quantizer, photos, tmp_path):
    trials = prepare_trials(quantizer, ["stem", "c2f.b"], FP32, tmp_path)
    assert trials == (LayerTrial("stem", None), LayerTrial("c2f.b", None))
    _, calls = collect(quantizer.model, trials, photos(1))
    assert [layer for _, layer, _ in calls] == [None, "stem", "c2f.b"]
    for _, _, outputs in calls[1:]:
        np.testing.assert_array_equal(outputs["output0"], calls[0][2]["output0"])


def test_outputs_that_a_trial_does_not_reach_are_the_float_ones(network_builder, calibrated, photos, tmp_path):
    net = network_builder(seed=2, activation="relu")
    left = net.plain_conv("left", "images", 3, 4, kernel=3)
    right = net.plain_conv("right", "images", 3, 4, kernel=3)
    net.node("Sigmoid", [left], "a")
    net.node("Tanh", [right], "b")
    model = prepare_network(net.model({"images": (1, 3, 8, 8)}, {"a": (1, 4, 8, 8), "b": (1, 4, 8, 8)}))
    quantizer = Quantizer(model, find_target("ort-cpu"), calibrated(model))
    trials = prepare_trials(quantizer, ["left", "right"], INT8, tmp_path)
    _, ((_, _, clean), (_, _, left), (_, _, right)) = collect(model, trials, photos(1, size=8))
    assert list(clean) == ["a", "b"]
    np.testing.assert_array_equal(left["b"], clean["b"])
    np.testing.assert_array_equal(right["a"], clean["a"])
    assert (left["a"] != clean["a"]).any() and (right["b"] != clean["b"]).any()


def test_progress_counts_trials_and_ends_with_all(quantizer, int8_trials, photos):
    seen = []
    collect(quantizer.model, int8_trials[:3], photos(2), progress=seen.append)
    assert seen == [2, 4, 6]


def test_without_a_photo_nothing_runs(quantizer, int8_trials):
    assert collect(quantizer.model, int8_trials[:2], []) == (0, [])
