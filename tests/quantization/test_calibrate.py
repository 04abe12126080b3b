from __future__ import annotations

import warnings
import zipfile

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from qtoolkit.artifacts.plan import Precision
from qtoolkit.backends.targets import TARGETS, find_target
from qtoolkit.errors import DataSetError, ModelFileError
from qtoolkit.graph.activations import is_unit_interval
from qtoolkit.graph.layers import decode_tail, find_layers, last_layers
from qtoolkit.graph.placement import place_qdq
from qtoolkit.graph.view import GraphView, node_name
from qtoolkit.quantization.calibrate import CalibrationStatistics, calibrate, calibration_key, calibration_tensors

ORT_CPU = find_target("ort-cpu")


@pytest.fixture(scope="module")
def tensors(pose):
    return calibration_tensors(pose, ORT_CPU)


@pytest.fixture(scope="module")
def statistics(pose, tensors, photos):
    return calibrate(pose, tensors, photos(3), key="right", sample_size=200, threads=1)


def equal(a, b):
    return all(np.array_equal(value, b.to_arrays()[part]) for part, value in a.to_arrays().items())


def test_extremes_of_every_image_and_tensor_are_exact(pose, tensors, statistics, photos, infer):
    model = onnx.ModelProto()
    model.CopyFrom(pose)
    for name in tensors:
        if name != "images":
            model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    assert statistics.images == 3
    # As the runtime computes them while it measures: fused otherwise, its last bits would differ.
    values = [{**feeds, **infer(model, feeds)} for feeds in photos(3)]
    for name in tensors:
        np.testing.assert_array_equal(statistics.of(name).image_min, [each[name].min() for each in values])
        np.testing.assert_array_equal(statistics.of(name).image_max, [each[name].max() for each in values])
        assert statistics.of(name).total_count == 3 * values[0][name].size


def test_histograms_hold_values_of_the_tensor_another_sample_for_each_image(pose, photos):
    feeds = photos(3)
    found = calibrate(pose, ["images"], feeds, sample_size=100, threads=1).of("images")
    stride = (3 * 64 * 64 // 100) | 1
    sample = np.concatenate([f["images"].ravel()[i * 7919 % stride :: stride] for i, f in enumerate(feeds)])
    counts, _ = np.histogram(sample, found.counts.size, (found.lo, found.hi))
    assert found.counts.sum() == sample.size
    np.testing.assert_array_equal(np.cumsum(found.counts), np.cumsum(counts))


def test_state_does_not_grow_with_the_images_but_for_their_extremes(pose, photos):
    few, many = (
        calibrate(pose, ["stem.act"], photos(n), sample_size=64, threads=1).of("stem.act").to_arrays() for n in (2, 9)
    )
    sizes = {part: (few[part].size, many[part].size) for part in few}
    assert sizes.pop("image_min") == sizes.pop("image_max") == sizes.pop("group_of") == (2, 9)
    # Photos fall into as many groups as their values span powers of four.
    assert sizes["group_energy"][1] < 5
    for part in ("energy", "counts", "span", "zero_count"):
        small, large = sizes.pop(f"group_{part}")
        assert large <= 4 * small
    assert all(a == b for a, b in sizes.values())


@pytest.mark.parametrize("threads", [1, 2])
def test_images_are_taken_as_they_are_needed(pose, photos, threads):
    ahead, reported = [], []

    def stream():
        for index, feeds in enumerate(photos(8)):
            ahead.append(index - len(reported))
            yield feeds

    calibrate(pose, ["images"], stream(), threads=threads, progress=reported.append)
    assert len(ahead) == 8 and max(ahead) <= threads + 1
    assert reported == list(range(1, 9))


def test_threads_change_nothing(pose, tensors, photos):
    one, two = (calibrate(pose, tensors, photos(5), sample_size=64, threads=n) for n in (1, 2))
    assert all(equal(one.of(name), two.of(name)) for name in tensors)


def test_statistics_are_read_as_they_were_written(tmp_path, tensors, statistics):
    statistics.write(tmp_path / "a.npz")
    again = CalibrationStatistics.read(tmp_path / "a.npz", "right")
    assert (again.key, again.images, list(again.tensors)) == ("right", 3, list(tensors))
    assert all(equal(again.of(name), statistics.of(name)) for name in tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_statistics_of_another_key_or_version_are_none(tmp_path, statistics):
    statistics.write(tmp_path / "a.npz")
    assert CalibrationStatistics.read(tmp_path / "a.npz", "wrong") is None
    with np.load(tmp_path / "a.npz") as arrays:
        changed = {**arrays, "version": np.array(0)}
    np.savez(tmp_path / "a.npz", **changed)
    assert CalibrationStatistics.read(tmp_path / "a.npz", "right") is None


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY", b"PK\x03\x04"])
def test_a_file_that_is_none_of_ours_is_none(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    assert CalibrationStatistics.read(tmp_path / "a.npz", "right") is None
    assert CalibrationStatistics.read(tmp_path / "none.npz", "right") is None
    assert CalibrationStatistics.read(tmp_path, "right") is None


def test_an_array_alone_and_a_part_that_is_missing_are_none(tmp_path, statistics):
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert CalibrationStatistics.read(tmp_path / "a.npy", "right") is None
    statistics.write(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        parts = {name: arrays[name] for name in arrays.files}
    for missing in ("key", "names", "0/counts", "1/span"):
        np.savez(tmp_path / "b.npz", **{name: value for name, value in parts.items() if name != missing})
        assert CalibrationStatistics.read(tmp_path / "b.npz", "right") is None
    np.savez(tmp_path / "b.npz", **(parts | {"0/image_min": parts["0/image_max"] + 1}))
    assert CalibrationStatistics.read(tmp_path / "b.npz", "right") is None


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_none_or_still_right(tmp_path_factory, pose, photos, data):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    small = calibrate_once(pose, photos)
    small.write(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with warnings.catch_warnings():
        # zipfile warns of names that appear twice, which a changed byte can bring about.
        warnings.simplefilter("ignore", UserWarning)
        found = CalibrationStatistics.read(path, "right")
    assert found is None or equal(found.of("images"), small.of("images"))


_SMALL: list[CalibrationStatistics] = []


def calibrate_once(pose, photos):
    if not _SMALL:
        _SMALL.append(calibrate(pose, ["images"], photos(2), key="right", sample_size=50, threads=1))
    return _SMALL[0]


def test_the_file_is_compressed(tmp_path, statistics):
    statistics.write(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_without_an_image_there_is_nothing_to_calibrate_on(pose):
    with pytest.raises(DataSetError, match="no image to calibrate on") as caught:
        calibrate(pose, ["images"], [], threads=1)
    assert "--calib" in caught.value.do


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_a_single_infinite_value_is_found(pose, photos, value):
    feeds = photos(1)[0]
    feeds["images"][0, 1, 20, 3] = value
    with pytest.raises(ModelFileError, match=r"tensor 'images' is not finite on a calibration image"):
        calibrate(pose, ["images"], [feeds], sample_size=10, threads=1)


def test_a_layer_that_makes_nan_is_named(pose, photos):
    model = onnx.ModelProto()
    model.CopyFrom(pose)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "c2f.a.weight")
    broken = numpy_helper.to_array(weight).copy()
    broken[3] = np.nan
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    with pytest.raises(ModelFileError, match=r"tensor 'c2f\.a\.bn\.out' is not finite") as caught:
        calibrate(model, calibration_tensors(model, ORT_CPU), photos(1), threads=1)
    assert caught.value.exit_code == 3


def test_a_tensor_that_was_not_calibrated_is_an_error(statistics):
    with pytest.raises(ModelFileError, match="tensor 'unknown' was not calibrated"):
        statistics.of("unknown")


def test_tensors_before_the_decode_tail_are_calibrated_and_none_behind(pose, tensors):
    view, tail = GraphView(pose), decode_tail(pose)
    made_by_tail = {output for node in view.nodes if node_name(node) in tail for output in node.output}
    last = {layer.output for layer in find_layers(pose) if layer.name in last_layers(pose)}
    assert not set(tensors) & made_by_tail
    assert {"images", "c2f.add", "c2f.concat", "stem.bn.out", "stem.act", *last} <= set(tensors)
    assert len(tensors) == len(set(tensors))
    assert all(view.elem_type(name) == onnx.TensorProto.FLOAT and view.shape(name) for name in tensors)


def test_what_needs_no_statistics_is_left_out(tensors):
    # Sigmoids are 0 … 1, and shape operators have the range of what goes in.
    assert not {"stem.sigmoid", "c2f.left", "c2f.right", "sppf.pool1", "sppf.pool2", "up"} & set(tensors)


@pytest.mark.parametrize("target", list(TARGETS))
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_whatever_range_a_plan_needs_was_calibrated(pose, target, data):
    row = find_target(target)
    names = [layer.name for layer in find_layers(pose)]
    kinds = st.sampled_from([Precision.FP32, Precision.INT8, *row.wide_kinds])
    precisions = data.draw(st.lists(kinds, min_size=len(names), max_size=len(names)))
    placed = place_qdq(pose, dict(zip(names, precisions, strict=True)), row)
    view, known = GraphView(pose), set(calibration_tensors(pose, row))
    sources = {pair.range_of for pair in placed.tensors.values()}
    assert {name for name in sources if not is_unit_interval(view, name)} <= known


def test_the_key_depends_on_all_that_the_statistics_do(pose, relu_pose):
    key = calibration_key(pose, ["a", "b"], "photos", 4096)
    assert key == calibration_key(pose, ["b", "a"], "photos", 4096)
    others = {
        calibration_key(relu_pose, ["a", "b"], "photos", 4096),
        calibration_key(pose, ["a"], "photos", 4096),
        calibration_key(pose, ["a", "b"], "other photos", 4096),
        calibration_key(pose, ["a", "b"], "photos", 2048),
    }
    assert len(others) == 4 and key not in others
