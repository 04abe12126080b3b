import cv2
import numpy as np
import onnx
import pytest
from child import Feeds, Job, Photos, Reader, with_opset
from peer_inputs import letterboxed, named_network, open_inputs, tail_tensors, write_photos

from qtoolkit.data.images import read_image
from qtoolkit.data.letterbox import Letterbox
from qtoolkit.data.sources import open_data_source
from qtoolkit.errors import DataSetError, UsageError
from qtoolkit.graph.load import prepare_network


@pytest.fixture(scope="module")
def model(tiny_pose_model):
    return tiny_pose_model()


@pytest.fixture
def model_file(model, tmp_path):
    onnx.save(model, tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


def test_all_read_the_same_photos(model_file, make_data_set, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    inputs = open_inputs(model_file, make_data_set(tmp_path / "data"), out, 2, None)
    photos = Photos(str(inputs.photos))
    assert len(photos) == 3 and len(inputs.samples) == 2
    for photo, path in zip(photos, inputs.calibration.paths, strict=True):
        image = read_image(path)
        expected = Letterbox.to_tensor(Letterbox.fit(image.shape[1::-1], (64, 64)).apply(image))
        np.testing.assert_array_equal(photo, expected)
        assert photo.dtype == np.float32
    copies = sorted(path.name for path in inputs.calibration_folder.iterdir())
    assert copies == [path.name for path in inputs.calibration.paths]
    assert len(list(inputs.evaluation_folder.iterdir())) == 1
    assert np.load(inputs.latency_feeds).shape == (3, 3, 64, 64)
    # Written once: the second opening leaves the files as they are.
    before = inputs.photos.stat().st_mtime_ns
    open_inputs(model_file, tmp_path / "data", out, 2, None)
    assert inputs.photos.stat().st_mtime_ns == before


def test_photos_without_labels_get_ids_of_their_own_and_are_looked_at_once(
    model_file, make_data_set, add_unlabelled, tmp_path
):
    data = make_data_set(tmp_path / "data")
    calibrated = (data / "calib" / "11.png").read_bytes()
    evaluated = (data / "val" / "1.png").read_bytes()
    new = [cv2.imencode(".png", np.full((30, 40, 3), shade, np.uint8))[1].tobytes() for shade in (10, 200, 90)]
    add_unlabelled(data, [evaluated, *new])
    out = tmp_path / "out"
    assert open_inputs(model_file, data, out, None, None).unlabelled is None
    inputs = open_inputs(model_file, data, out, None, None, None)
    assert [sample.path.name for sample in inputs.unlabelled] == ["1.png", "2.png", "3.png"]
    assert min(inputs.unlabelled.image_ids) > max(inputs.samples.image_ids)
    assert len(set(inputs.unlabelled.image_ids)) == 3 and inputs.unlabelled.annotations is None
    assert len(open_inputs(model_file, data, out, None, None, 3).unlabelled) == 2
    (data / "more" / "0.png").write_bytes(calibrated)
    with pytest.raises(DataSetError, match="evaluation images too"):
        open_inputs(model_file, data, out, None, None, None)


def test_further_folders_of_photos_are_looked_at_too(model_file, make_data_set, add_unlabelled, tmp_path):
    data, folder = make_data_set(tmp_path / "data"), tmp_path / "further"
    images = [cv2.imencode(".png", np.full((30, 40, 3), shade, np.uint8))[1].tobytes() for shade in (10, 200, 90)]
    add_unlabelled(data, images[:2])
    folder.mkdir()
    for name, image in zip(("a.png", "b.png"), (images[1], images[2]), strict=True):
        (folder / name).write_bytes(image)
    inputs = open_inputs(model_file, data, tmp_path / "out", None, None, None, [folder])
    # a.png is in the part unlabeled as well.
    assert [sample.path.name for sample in inputs.unlabelled] == ["0.png", "1.png", "b.png"]
    assert len(set(inputs.unlabelled.image_ids) - set(inputs.samples.image_ids)) == 3
    alone = open_inputs(model_file, data, tmp_path / "out", None, None, 0, [folder]).unlabelled
    assert [sample.path.name for sample in alone] == ["a.png", "b.png"]
    (folder / "c.png").write_bytes((data / "calib" / "11.png").read_bytes())
    with pytest.raises(DataSetError, match="evaluation images too"):
        open_inputs(model_file, data, tmp_path / "out", None, None, 0, [folder])


def test_photos_of_both_parts_are_refused(model_file, make_data_set, tmp_path):
    data = make_data_set(tmp_path / "data")
    (data / "calib" / "11.png").write_bytes((data / "val" / "1.png").read_bytes())
    with pytest.raises(DataSetError, match="evaluation images too"):
        open_inputs(model_file, data, tmp_path, None, None)


def test_evaluation_photos_are_those_that_qtoolkit_evaluates(make_data_set, tmp_path):
    data = make_data_set(tmp_path)
    (data / "val" / "3.png").write_bytes((data / "val" / "3.png").read_bytes()[:200])  # torn
    samples = open_data_source(data).evaluation_samples(None)
    photos = dict(letterboxed(samples, (64, 64)))
    assert [int(name) for name in photos] == [1, 2, 4]
    image = read_image(data / "val" / "2.png")
    expected = Letterbox.to_tensor(Letterbox.fit((80, 60), (64, 64)).apply(image))
    np.testing.assert_array_equal(photos["000000000002"][None].astype(np.float32) / np.float32(255), expected)


def test_nodes_without_a_name_get_one(model, tmp_path):
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for node in bare.graph.node[3:]:
        node.name = ""
    bare.graph.node[0].name = f"{bare.graph.node[5].op_type}_5"  # taken
    onnx.save(bare, tmp_path / "bare.onnx")
    names = [node.name for node in named_network(tmp_path / "bare.onnx").graph.node]
    assert all(names) and len(set(names)) == len(names)
    assert names[1:3] == [node.name for node in model.graph.node[1:3]]


def test_an_open_shape_is_refused(dynamic_pose_model, tmp_path):
    onnx.save(dynamic_pose_model(), tmp_path / "open.onnx")
    with pytest.raises(UsageError, match="no fixed shape"):
        named_network(tmp_path / "open.onnx")


def test_the_tail_is_found_again_where_a_tool_renamed_nodes(model):
    tail, last = tail_tensors(prepare_network(model))
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for index, node in enumerate(renamed.graph.node):
        node.name = f"node{index}"
    job = Job("", "images", "", "", "", list(tail), list(last), "", "")
    by_name = {node.name: node for node in renamed.graph.node}
    excluded = [by_name[name] for name in job.tail_nodes(renamed)]
    assert "output0" in {output for node in excluded for output in node.output}
    # The DFL's convolution is arithmetic, no layer; no other convolution stands in the tail.
    assert [node.output[0] for node in excluded if node.op_type == "Conv"] == ["dfl.conv"]
    with_last = [by_name[name] for name in job.tail_nodes(renamed, last_layers=True)]
    added = {node.output[0] for node in with_last} - {node.output[0] for node in excluded}
    assert added == {f"head.{branch}.{level}.1.out" for branch in ("box", "score", "keypoints") for level in range(3)}


def test_feeds_can_be_read_again_and_limited(tmp_path):
    arrays = [np.full((1, 3, 2, 2), value, np.float32) for value in range(12)]
    write_photos(tmp_path / "photos.npz", ((f"{index:06}", array) for index, array in enumerate(arrays)))
    feeds = Feeds("x", Photos(str(tmp_path / "photos.npz")), 11)
    assert len(feeds) == 11
    for _ in range(2):
        assert [feed["x"].flat[0] for feed in feeds] == list(range(11))
    reader = Reader(feeds)
    assert len(reader) == 11
    for _ in range(2):
        assert [reader.get_next()["x"].flat[0] for _ in range(11)] == list(range(11))
        assert reader.get_next() is None
        reader.rewind()


def test_opset_is_raised_and_never_lowered(tiny_pose_model):
    assert with_opset(tiny_pose_model(opset=13), 21).opset_import[0].version == 21
    assert with_opset(tiny_pose_model(opset=17), 13).opset_import[0].version == 17
