import pytest

from qtoolkit.evaluation.head_layouts import HEAD_KINDS, anchor_counts, fitting_heads, layout_lines


def test_anchor_counts_of_a_square_input():
    # 80² + 40² + 20² = 8400; a tenth of that at stride 64 (10²); 160² more at stride 4.
    assert anchor_counts((640, 640)) == {
        (8, 16, 32): 8400,
        (8, 16, 32, 64): 8500,
        (4, 8, 16, 32): 34000,
        (16, 32): 2000,
    }


def test_anchor_counts_round_cells_up():
    # 100×36 at stride 8: 13·5, at 16: 7·3, at 32: 4·2.
    assert anchor_counts((100, 36))[8, 16, 32] == 65 + 21 + 8


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_every_kind_has_one_line_of_expected_shapes(kind):
    (line,) = layout_lines((640, 480), kind)
    assert line.startswith(f"{kind}: ")
    assert line in layout_lines((640, 480))


def test_expected_shapes_are_those_of_the_input_size():
    lines = dict(line.split(": ", 1) for line in layout_lines((640, 480)))
    assert "1×56×6300" in lines["yolov8-pose"]
    assert "1×18900×57" in lines["yolov5-pose"]
    assert "1×17×120×160" in lines["heatmap"]


def test_a_reading_is_found_even_with_an_unusual_number_of_keypoints():
    (head,) = fitting_heads({"output0": (1, 116, 8400)}, (640, 640))
    assert (head.kind, head.keypoint_count) == ("yolov8-pose", 37)


@pytest.mark.parametrize("shape", [(), (1000,), (1, 1000), (1, 84, 8400), (1, 25200, 85), (1, 3, 80, 80, 57)])
def test_shapes_of_other_networks_fit_nothing(shape):
    assert fitting_heads({"output": shape}, (640, 640)) == []
