import cv2
import numpy as np
import pytest

from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.runner import Runner, Signature, TensorSpec
from qtoolkit.data.letterbox import Letterbox
from qtoolkit.data.samples import Sample, Split, collect_samples
from qtoolkit.errors import HeadError, ModelFileError, UsageError
from qtoolkit.evaluation.coco_ap import coco_keypoint_ap
from qtoolkit.evaluation.heads import detect_head
from qtoolkit.evaluation.pose_network import PoseNetwork, people_in_image, predict_set

SIZE = (64, 64)
HEAD = detect_head({"output0": (1, 56, 84)}, SIZE)


class FixedAnswer(Runner):
    """A network of 64×64 that gives one and the same output for every image."""

    name = "fixed"

    def __init__(self, rows, input_shape=(1, 3, 64, 64), dtype=np.float32, **more_inputs):
        super().__init__()
        self.rows, self.dtype = rows, np.dtype(dtype)
        self.inputs = {"images": TensorSpec(input_shape, self.dtype)} | more_inputs
        self.fed = []

    def _open(self):
        return Signature(self.inputs, {"output0": TensorSpec((1, *self.rows.shape), np.dtype(np.float32))})

    def _infer(self, feeds, outputs):
        self.fed.append(feeds["images"])
        return [self.rows[None]]

    def _close(self):
        pass

    def conditions(self):
        return {}


def answer(*people):
    """Columns of 84 anchors; people are (cx, cy, w, h, score, x and y of all keypoints) in pixels of the input."""
    rows = np.zeros((84, 56), np.float32)
    rows[:, :2] = 40
    for row, (*box_and_score, x, y) in zip(rows, people, strict=False):
        row[:5], row[5::3], row[6::3], row[7::3] = box_and_score, x, y, 0.5
    return rows.T


def network(*people, **options):
    return PoseNetwork.from_runner(FixedAnswer(answer(*people)).open(), **options)


def test_people_come_out_in_pixels_of_the_image():
    # 128×64 into 64×64: ratio 0.5, 16 rows of padding above.
    found = network((32, 32, 20, 10, 0.9, 30, 36)).people(np.zeros((64, 128, 3), np.uint8))
    np.testing.assert_array_equal(found.boxes_xyxy, [[44, 22, 84, 42]])
    np.testing.assert_array_equal(found.keypoints[0], np.tile([60, 40, 0.5], (17, 1)))
    assert found.scores.tolist() == [np.float32(0.9)]


def test_people_are_clipped_to_the_image():
    found = network((2, 60, 20, 20, 0.9, -5, 63)).people(np.zeros((64, 128, 3), np.uint8))
    np.testing.assert_array_equal(found.boxes_xyxy, [[0, 64, 24, 64]])
    np.testing.assert_array_equal(found.keypoints[0, 0, :2], [0, 64])


def test_overlapping_boxes_are_one_person_and_the_best_comes_first():
    boxes = ((20, 20, 20, 20, 0.5, 9, 9), (21, 20, 20, 20, 0.9, 8, 8), (50, 50, 20, 20, 0.95, 7, 7))
    image = np.zeros((64, 64, 3), np.uint8)
    assert network(*boxes).people(image).scores.tolist() == [np.float32(0.95), np.float32(0.9)]
    assert len(network(*boxes, iou_threshold=1.0).people(image)) == 3
    assert len(network(*boxes, score_threshold=0.92).people(image)) == 1


def test_nms_inside_the_network_is_not_done_again():
    head = detect_head({"output0": (1, 30, 57)}, SIZE)
    rows = np.zeros((1, 30, 57), np.float32)
    rows[0, :3, :5] = [[0, 0, 9, 9, 0.5], [0, 0, 9, 9, 0.9], [0, 0, 9, 9, 0.7]]
    letterbox = Letterbox.fit(SIZE, SIZE)
    found = people_in_image({"output0": rows}, head, letterbox)
    assert found.scores.tolist() == [np.float32(s) for s in (0.9, 0.7, 0.5)]
    assert len(people_in_image({"output0": rows}, head, letterbox, max_people=2)) == 2


def test_the_network_is_fed_its_own_type():
    runner = FixedAnswer(answer(), dtype=np.float16).open()
    assert len(PoseNetwork.from_runner(runner).people(np.full((64, 64, 3), 255, np.uint8))) == 0
    assert runner.fed[0].dtype == np.float16
    assert runner.fed[0].shape == (1, 3, 64, 64)
    assert (runner.fed[0] == 1).all()


NO_IMAGE_INPUT = {
    "two inputs": ({"sizes": TensorSpec((1, 2), np.dtype(np.float32))}, (1, 3, 64, 64), np.float32),
    "channels last": ({}, (1, 64, 64, 3), np.float32),
    "batch of 8": ({}, (8, 3, 64, 64), np.float32),
    "bytes": ({}, (1, 3, 64, 64), np.uint8),
    "flat": ({}, (1, 12288), np.float32),
}


@pytest.mark.parametrize(("more", "shape", "dtype"), NO_IMAGE_INPUT.values(), ids=NO_IMAGE_INPUT)
def test_networks_that_do_not_take_one_image(more, shape, dtype):
    runner = FixedAnswer(answer(), shape, dtype, **more).open()
    with pytest.raises(ModelFileError, match=r"does not take one image(.|\n)*found: images: "):
        PoseNetwork.from_runner(runner)


def test_network_without_a_fixed_size():
    with pytest.raises(ModelFileError, match=r"no fixed size(.|\n)*--input-size"):
        PoseNetwork.from_runner(FixedAnswer(answer(), (1, 3, None, None)).open())


def test_head_of_another_input_size():
    with pytest.raises(UsageError, match="another input size"):
        PoseNetwork(FixedAnswer(answer()).open(), detect_head({"o": (1, 56, 8400)}, (640, 640)))


def test_head_is_the_users_where_given():
    with pytest.raises(HeadError, match="do not fit --head heatmap"):
        network(head="heatmap")
    assert network(head="yolov8-pose").head == HEAD


def samples(folder):
    cv2.imwrite(str(folder / "good.png"), np.zeros((64, 64, 3), np.uint8))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    names = ("good.png", "empty.jpg", "text.jpg", "absent.png")
    return [Sample(image_id, folder / name, (64, 64), "") for image_id, name in enumerate(names, start=1)]


def test_good_images_among_bad_ones_are_used_and_the_bad_are_listed(tmp_path):
    steps = []
    predictions, failures = predict_set(
        network((32, 32, 20, 10, 0.9, 30, 36)), samples(tmp_path), lambda *step: steps.append(step)
    )
    assert list(predictions) == [1]
    assert [failure.path.name for failure in failures] == ["empty.jpg", "text.jpg", "absent.png"]
    assert all(failure.reason for failure in failures)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_fault_of_the_network_names_the_image(tmp_path):
    rows = answer()
    rows[0, 0] = np.nan
    faulty = PoseNetwork.from_runner(FixedAnswer(rows).open())
    with pytest.raises(ModelFileError, match=r"not numbers in output 'output0' \(image good.png\)"):
        predict_set(faulty, samples(tmp_path))


def test_a_real_runtime(tiny_pose_model):
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    with OnnxRuntimeCpu(tiny_pose_model(), threads=1) as runner:
        found = PoseNetwork.from_runner(runner).people(image)
    assert len(found) > 0
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy[:, 2:] <= [90, 50]).all()


@pytest.mark.real
@pytest.mark.slow
def test_published_ap_of_yolov8n_pose(real_data):
    split = Split(real_data / "coco" / "images", real_data / "coco" / "person_keypoints_val.json")
    chosen = collect_samples(split, limit=300)
    with OnnxRuntimeCpu(real_data / "models" / "yolov8n-pose.onnx") as runner:
        predictions, failures = predict_set(PoseNetwork.from_runner(runner), chosen)
    assert not failures
    metrics = coco_keypoint_ap(chosen.annotations.ground_truth(chosen.image_ids), predictions, chosen.image_ids)
    assert metrics.ap == pytest.approx(53.61, abs=0.05)
    assert metrics.ap50 == pytest.approx(81.92, abs=0.05)
    assert metrics.ap75 == pytest.approx(59.12, abs=0.05)
