import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.errors import HeadError, ModelFileError
from qtoolkit.evaluation.decode import decode, output_blocks
from qtoolkit.evaluation.heads import detect_head

SIZE = (64, 64)
K = 17
POSE = np.arange(3 * K, dtype=np.float32)
V8 = detect_head({"o": (1, 56, 84)}, SIZE)
V8_ROWS = detect_head({"o": (1, 84, 56)}, SIZE)
V5 = detect_head({"o": (1, 252, 57)}, SIZE)
LIST = detect_head({"o": (1, 300, 57)}, SIZE)
OPEN_LIST = detect_head({"o": (None, 57)}, SIZE)
HEATMAP = detect_head({"o": (1, K, 16, 16)}, SIZE)


def yolov8_rows(*people):
    """84 quiet anchors spread over the input, then ``people`` (index, cx, cy, w, h, score)."""
    rows = np.zeros((84, 56), np.float32)
    rows[:, 0] = rows[:, 1] = np.linspace(4, 60, 84)
    for index, *box_and_score in people:
        rows[index, :5], rows[index, 5:] = box_and_score, POSE
    return rows


def test_yolov8_boxes_scores_and_keypoints():
    rows = yolov8_rows((7, 30, 20, 10, 8, 0.9), (3, 12, 40, 4, 20, 0.25))
    people = decode({"o": rows.T[None]}, V8, 0.1)
    np.testing.assert_array_equal(people.boxes_xyxy, [[10, 30, 14, 50], [25, 16, 35, 24]])
    np.testing.assert_array_equal(people.scores, np.float32([0.25, 0.9]))
    np.testing.assert_array_equal(people.keypoints, np.tile(POSE.reshape(1, K, 3), (2, 1, 1)))


def test_transposed_rows_decode_the_same():
    rows = yolov8_rows((7, 30, 20, 10, 8, 0.9))
    people, same = decode({"o": rows.T[None]}, V8, 0.1), decode({"o": rows[None]}, V8_ROWS, 0.1)
    for field in ("boxes_xyxy", "scores", "keypoints"):
        np.testing.assert_array_equal(getattr(people, field), getattr(same, field))
    assert len(people) == 1


def test_the_threshold_itself_is_not_above_it():
    rows = yolov8_rows((0, 30, 20, 10, 8, 0.5), (1, 30, 20, 10, 8, 0.75))
    assert decode({"o": rows.T[None]}, V8, 0.5).scores.tolist() == [0.75]


def test_nobody():
    people = decode({"o": yolov8_rows().T[None]}, V8)
    assert len(people) == 0
    assert people.keypoint_count == K


def test_half_precision_outputs():
    people = decode({"o": yolov8_rows((0, 30, 20, 10, 8, 0.5)).T[None].astype(np.float16)}, V8)
    assert people.boxes_xyxy.dtype == np.float32
    np.testing.assert_array_equal(people.boxes_xyxy, [[25, 16, 35, 24]])


def test_yolov5_score_is_objectness_times_class():
    rows = np.zeros((252, 57), np.float32)
    rows[:, :2] = 40
    rows[5] = [30, 20, 10, 8, 0.5, 0.5, *POSE]
    people = decode({"o": rows[None]}, V5)
    np.testing.assert_array_equal(people.boxes_xyxy, [[25, 16, 35, 24]])
    assert people.scores.tolist() == [0.25]
    np.testing.assert_array_equal(people.keypoints[0], POSE.reshape(K, 3))


def test_fixed_list_drops_its_empty_rows():
    rows = np.zeros((300, 57), np.float32)
    rows[0] = [25, 16, 35, 24, 0.5, 0, *POSE]
    people = decode({"o": rows[None]}, LIST)
    np.testing.assert_array_equal(people.boxes_xyxy, [[25, 16, 35, 24]])
    np.testing.assert_array_equal(people.keypoints[0], POSE.reshape(K, 3))


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("batch", [False, True], ids=["flat", "with a batch"])
def test_open_list_of_any_length(n, batch):
    rows = np.tile(np.float32([25, 16, 35, 24, 0.5, 0, *POSE]), (n, 1))
    assert len(decode({"o": rows[None] if batch else rows}, OPEN_LIST)) == n


SEPARATE = {
    "flat keypoints with a batch": {"b": (1, 2, 4), "k": (1, 2, 51), "s": (1, 2, 1)},
    "no batch": {"b": (2, 4), "k": (2, 17, 3), "s": (2,)},
    "score in the box": {"b": (1, 2, 5), "k": (1, 2, 17, 3)},
}


@pytest.mark.parametrize("shapes", SEPARATE.values(), ids=SEPARATE)
def test_separate_outputs(shapes):
    head = detect_head(shapes, SIZE)
    boxes = np.float32([[1, 2, 11, 22, 0.75], [5, 5, 9, 9, 0.25]])
    values = {"b": boxes[:, : shapes["b"][-1]], "k": np.tile(POSE, 2), "s": boxes[:, 4]}
    people = decode({name: values[name].reshape(shape) for name, shape in shapes.items()}, head, 0.1)
    np.testing.assert_array_equal(people.boxes_xyxy, boxes[:, :4])
    np.testing.assert_array_equal(people.scores, boxes[:, 4])
    np.testing.assert_array_equal(people.keypoints, np.tile(POSE.reshape(1, K, 3), (2, 1, 1)))


def test_separate_outputs_of_nobody():
    head = detect_head({"b": (None, 4), "k": (None, 17, 3), "s": (None,)}, SIZE)
    assert len(decode({"b": np.zeros((0, 4)), "k": np.zeros((0, 17, 3)), "s": np.zeros(0)}, head)) == 0


def test_separate_outputs_of_different_lengths():
    head = detect_head({"b": (None, 4), "k": (None, 17, 3), "s": (None,)}, SIZE)
    with pytest.raises(HeadError, match="do not fit each other"):
        decode({"b": np.zeros((2, 4)), "k": np.zeros((2, 17, 3)), "s": np.zeros(3)}, head)


# Peak at column 5, row 9 of 16×16 cells of 4 pixels; its neighbours decide the quarter step.
QUARTERS = {
    "alone": ({}, (20, 36)),
    "right neighbour higher": ({(9, 6): 0.5}, (21, 36)),
    "left neighbour higher": ({(9, 4): 0.5, (9, 6): 0.25}, (19, 36)),
    "lower neighbour higher": ({(10, 5): 0.5}, (20, 37)),
    "upper left": ({(8, 5): 0.5, (9, 4): 0.5}, (19, 35)),
}


@pytest.mark.parametrize(("neighbours", "xy"), QUARTERS.values(), ids=QUARTERS)
def test_heatmap_peak_moves_a_quarter_cell(neighbours, xy):
    maps = np.zeros((1, K, 16, 16), np.float32)
    maps[:, :, 9, 5] = 0.75
    for cell, value in neighbours.items():
        maps[(0, 3, *cell)] = value
    people = decode({"o": maps}, HEATMAP)
    np.testing.assert_array_equal(people.keypoints[0, 3], [*xy, 0.75])
    np.testing.assert_array_equal(people.keypoints[0, 4], [20, 36, 0.75])


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 15), (15, 0), (15, 15)])
def test_heatmap_peak_at_the_border_does_not_move_along_it(row, column):
    maps = np.zeros((1, K, 16, 16), np.float32)
    maps[:, :, row, column] = 1
    assert decode({"o": maps}, HEATMAP).keypoints[0, 0, :2].tolist() == [column * 4, row * 4]


def test_heatmap_person_has_the_box_of_the_keypoints_and_the_mean_score():
    maps = np.zeros((1, K, 16, 16), np.float32)
    maps[0, :, 8, 8] = 0.5
    maps[0, 0, 8, 8], maps[0, 0, 2, 10] = 0, 1
    people = decode({"o": maps}, HEATMAP)
    np.testing.assert_array_equal(people.boxes_xyxy, [[32, 8, 40, 32]])
    assert people.scores[0] == pytest.approx((1 + 16 * 0.5) / 17)
    assert len(decode({"o": maps}, HEATMAP, 0.6)) == 0


@given(seed=st.integers(0, 2**32 - 1))
def test_heatmap_equals_a_loop_over_keypoints(seed):
    maps = np.random.default_rng(seed).integers(0, 50, (K, 16, 16)).astype(np.float32)
    (found,) = decode({"o": maps[None]}, HEATMAP).keypoints
    for one, (x, y, confidence) in zip(maps, found.tolist(), strict=True):
        row, column = np.unravel_index(one.argmax(), one.shape)
        step_x = np.sign(one[row, column + 1] - one[row, column - 1]) / 4 if 0 < column < 15 else 0
        step_y = np.sign(one[row + 1, column] - one[row - 1, column]) / 4 if 0 < row < 15 else 0
        assert (x, y, confidence) == (4 * (column + step_x), 4 * (row + step_y), one.max())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers(value):
    rows = yolov8_rows((0, 30, 20, 10, 8, 0.5))
    rows[50, 30] = value
    with pytest.raises(ModelFileError, match=r"not numbers in output 'o'(.|\n)*1 of 4704 values"):
        decode({"o": rows.T[None]}, V8)


def test_logits_are_no_scores():
    rows = yolov8_rows()
    rows[:, 4] = -7
    with pytest.raises(HeadError, match=r"not confidences(.|\n)*Sigmoid"):
        decode({"o": rows.T[None]}, V8)


def test_boxes_from_0_to_1_are_not_pixels():
    rows = yolov8_rows((0, 30, 20, 10, 8, 0.5))
    rows[:, :4] /= 64
    with pytest.raises(HeadError, match="not in pixels"):
        decode({"o": rows.T[None]}, V8)


def test_boxes_that_quantization_crushed_to_zero_are_decoded():
    rows = yolov8_rows((0, 30, 20, 10, 8, 0.5))
    rows[:, :4] = 0
    assert len(decode({"o": rows.T[None]}, V8)) == 1


def test_list_of_centres_and_sizes_is_not_a_list_of_corners():
    rows = np.tile(np.float32([50, 50, 10, 8, 0.5, 0, *POSE]), (300, 1))
    with pytest.raises(HeadError, match=r"not corners(.|\n)*300 of 300"):
        decode({"o": rows[None]}, LIST)


SHAPES = {
    "another input size": (V8, (1, 56, 2100)),
    "two images": (V8, (2, 56, 84)),
    "no batch": (V8, (56, 84)),
    "fewer keypoints": (V5, (1, 252, 54)),
    "another heatmap size": (HEATMAP, (1, K, 8, 8)),
    "a list as long as the anchors of YOLOv5-pose": (OPEN_LIST, (252, 57)),
    "anchors left open that do not agree": (detect_head({"o": (1, 56, None)}, SIZE), (1, 56, 83)),
}


@pytest.mark.parametrize(("head", "shape"), SHAPES.values(), ids=SHAPES)
def test_shapes_that_contradict_the_head(head, shape):
    with pytest.raises(HeadError, match=f"does not have the shape of a {head.kind} head"):
        decode({"o": np.zeros(shape, np.float32)}, head)


def test_anchors_left_open_that_agree():
    head = detect_head({"o": (1, 56, None)}, SIZE)
    assert len(decode({"o": yolov8_rows((0, 30, 20, 10, 8, 0.5)).T[None]}, head)) == 1


def test_missing_output():
    with pytest.raises(HeadError, match=r"no output 'o'(.|\n)*found: x, y"):
        decode({"x": POSE, "y": POSE}, V8)


def test_blocks_take_the_output_apart():
    rows = yolov8_rows((7, 30, 20, 10, 8, 0.9))
    blocks = output_blocks({"o": rows.T[None]}, V8)
    assert {name: block.shape for name, block in blocks.items()} == {
        "boxes": (84, 4),
        "scores": (84,),
        "keypoints_xy": (84, K, 2),
        "keypoint_confidence": (84, K),
    }
    np.testing.assert_array_equal(blocks["boxes"][7], [30, 20, 10, 8])
    np.testing.assert_array_equal(blocks["keypoint_confidence"][7], POSE[2::3])
    np.testing.assert_array_equal(blocks["keypoints_xy"][7], POSE.reshape(K, 3)[:, :2])


def test_blocks_of_heatmaps():
    maps = np.random.default_rng(0).random((1, K, 16, 16), np.float32)
    np.testing.assert_array_equal(output_blocks({"o": maps}, HEATMAP)["heatmaps"], maps[0])
