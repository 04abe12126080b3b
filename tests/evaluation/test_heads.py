import pytest

from qtoolkit.errors import HeadError, UsageError
from qtoolkit.evaluation.heads import HEAD_KINDS, detect_head

SQUARE = (640, 640)

# name: (output shapes, input size, kind, outputs read, K, A or N, strides)
FOUND = {
    "YOLOv8-pose": ({"output0": (1, 56, 8400)}, SQUARE, "yolov8-pose", ("output0",), 17, 8400, (8, 16, 32)),
    "batch left open": ({"o": (None, 56, 8400)}, SQUARE, "yolov8-pose", ("o",), 17, 8400, (8, 16, 32)),
    "anchors left open": ({"o": (1, 56, None)}, SQUARE, "yolov8-pose", ("o",), 17, None, ()),
    "transposed": ({"o": (1, 8400, 56)}, SQUARE, "yolov8-pose", ("o",), 17, 8400, (8, 16, 32)),
    "wide input": ({"o": (1, 56, 6300)}, (640, 480), "yolov8-pose", ("o",), 17, 6300, (8, 16, 32)),
    "four levels": ({"o": (1, 56, 8500)}, SQUARE, "yolov8-pose", ("o",), 17, 8500, (8, 16, 32, 64)),
    "hands, 21 keypoints": ({"o": (1, 68, 8400)}, SQUARE, "yolov8-pose", ("o",), 21, 8400, (8, 16, 32)),
    "tiny input": ({"o": (1, 56, 84)}, (64, 64), "yolov8-pose", ("o",), 17, 84, (8, 16, 32)),
    "YOLOv5-pose": ({"o": (1, 25200, 57)}, SQUARE, "yolov5-pose", ("o",), 17, 25200, (8, 16, 32)),
    "YOLOv5s6-pose": ({"o": (1, 25500, 57)}, SQUARE, "yolov5-pose", ("o",), 17, 25500, (8, 16, 32, 64)),
    "YOLOv5-pose at a small input": ({"o": (1, 252, 57)}, (64, 64), "yolov5-pose", ("o",), 17, 252, (8, 16, 32)),
    "TI with NMS inside": ({"detections": (None, 57)}, SQUARE, "yolov5-end-to-end", ("detections",), 17, None, ()),
    "TI with a batch": ({"detections": (1, None, 57)}, SQUARE, "yolov5-end-to-end", ("detections",), 17, None, ()),
    "300 people": ({"o": (1, 300, 57)}, SQUARE, "yolov8-end-to-end", ("o",), 17, 300, ()),
    "boxes, scores, keypoints": (
        {"boxes": (None, 4), "scores": (None,), "keypoints": (None, 17, 3)},
        SQUARE,
        "separate-outputs",
        ("boxes", "keypoints", "scores"),
        17,
        None,
        (),
    ),
    "labels beside the scores": (
        {"boxes": (None, 4), "labels": (None,), "scores": (None,), "kpts": (None, 17, 3), "kpt_scores": (None, 17)},
        SQUARE,
        "separate-outputs",
        ("boxes", "kpts", "scores"),
        17,
        None,
        (),
    ),
    "boxes with their score": (
        {"dets": (1, 100, 5), "keypoints": (1, 100, 17, 3)},
        SQUARE,
        "separate-outputs",
        ("dets", "keypoints"),
        17,
        100,
        (),
    ),
    "flat keypoints": (
        {"b": (1, 50, 4), "k": (1, 50, 51), "s": (1, 50, 1)},
        SQUARE,
        "separate-outputs",
        ("b", "k", "s"),
        17,
        50,
        (),
    ),
    "heatmaps at a quarter": ({"maps": (1, 17, 64, 48)}, (192, 256), "heatmap", ("maps",), 17, None, (4,)),
    "MPII heatmaps": ({"maps": (1, 16, 64, 64)}, (256, 256), "heatmap", ("maps",), 16, None, (4,)),
    "feature maps beside the head": (
        {"output0": (1, 56, 8400), "p3": (1, 64, 80, 80), "p4": (1, 3, 40, 40, 57), "p5": (1, 512)},
        SQUARE,
        "yolov8-pose",
        ("output0",),
        17,
        8400,
        (8, 16, 32),
    ),
}


@pytest.mark.parametrize(("shapes", "size_wh", "expected"), [(c[0], c[1], c[2:]) for c in FOUND.values()], ids=FOUND)
def test_found(shapes, size_wh, expected):
    head = detect_head(shapes, size_wh)
    assert (head.kind, head.outputs, head.keypoint_count, head.anchor_count, head.strides) == expected
    assert head.input_size_wh == size_wh


def test_orientation_box_format_and_nms():
    rows = detect_head({"o": (1, 8400, 56)}, SQUARE)
    columns = detect_head({"o": (1, 56, 8400)}, SQUARE)
    end_to_end = detect_head({"o": (1, 300, 57)}, SQUARE)
    assert (rows.anchors_last, columns.anchors_last) == (False, True)
    assert (columns.box_format, columns.nms_inside) == ("cxcywh", False)
    assert (end_to_end.box_format, end_to_end.nms_inside) == ("xyxy", True)


# Networks that must not pass for pose networks.
REFUSED = {
    "classifier": {"logits": (1, 1000)},
    "YOLOv8 detection, 80 classes": {"output0": (1, 84, 8400)},
    "YOLOv8 detection, 10 classes, as 3 keypoints": {"output0": (1, 14, 8400)},
    "YOLOv8 segmentation, as 37 keypoints": {"output0": (1, 116, 8400), "output1": (1, 32, 160, 160)},
    "YOLOv5 detection": {"output": (1, 25200, 85)},
    "raw YOLOv5-pose levels": {"a": (1, 3, 80, 80, 57), "b": (1, 3, 40, 40, 57), "c": (1, 3, 20, 20, 57)},
    "feature maps alone": {"p3": (1, 64, 80, 80), "p4": (1, 128, 40, 40)},
    "anchors of another input size": {"output0": (1, 56, 2100)},
    "batch of 8": {"output0": (8, 56, 8400)},
    "rows before NMS, format unknown": {"b": (1, 8400, 4), "s": (1, 8400), "k": (1, 8400, 51)},
    "boxes without keypoints": {"boxes": (None, 4), "scores": (None,)},
    "heatmaps of another size": {"maps": (1, 17, 50, 50)},
    "a scalar": {"loss": ()},
    "no outputs": {},
}


@pytest.mark.parametrize("shapes", REFUSED.values(), ids=REFUSED)
def test_refused_with_everything_that_was_expected_and_found(shapes):
    with pytest.raises(HeadError, match="fit no known pose head") as caught:
        detect_head(shapes, SQUARE)
    message = str(caught.value)
    for kind in HEAD_KINDS:
        assert f"\n    {kind}: " in message
    assert "1×56×8400" in message
    for name in shapes:
        assert f"\n    {name}: " in message
    assert caught.value.exit_code == 3


def test_a_near_miss_says_how_to_insist():
    with pytest.raises(HeadError) as caught:
        detect_head({"output0": (1, 17, 8400)}, SQUARE)
    assert "would be yolov8-pose with 4 keypoints in output0" in str(caught.value)
    assert caught.value.do is not None and "--head yolov8-pose:output0" in caught.value.do
    assert detect_head({"output0": (1, 17, 8400)}, SQUARE, "yolov8-pose:output0").keypoint_count == 4


AMBIGUOUS = {
    "two pose outputs": {"a": (1, 56, 8400), "b": (1, 56, 8400)},
    "pose and list": {"raw": (1, 56, 8400), "people": (1, 300, 57)},
    "stacks of heatmaps": {"a": (1, 17, 160, 160), "b": (1, 17, 160, 160)},
    "two scores": {"a": (None,), "b": (None,), "boxes": (None, 4), "keypoints": (None, 17, 3)},
}


@pytest.mark.parametrize("shapes", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_outputs_are_an_error_that_lists_the_candidates(shapes):
    with pytest.raises(HeadError, match="more than one pose head") as caught:
        detect_head(shapes, SQUARE)
    assert caught.value.do is not None
    overrides = [option.strip() for option in caught.value.do.partition(":")[2].replace("--head", "").split(" or ")]
    assert len({detect_head(shapes, SQUARE, override).outputs for override in overrides}) == len(overrides) == 2


@pytest.mark.parametrize("output", ["a", "b"])
def test_override_picks_one_of_two(output):
    head = detect_head({"a": (1, 56, 8400), "b": (1, 56, 8400)}, SQUARE, f"yolov8-pose:{output}")
    assert head.outputs == (output,)


def test_override_picks_the_scores_by_name():
    head = detect_head(AMBIGUOUS["two scores"], SQUARE, "separate-outputs:b")
    assert head.outputs == ("boxes", "keypoints", "b")


OVERRIDDEN = {
    "by kind alone": ({"raw": (1, 56, 8400), "people": (1, 300, 57)}, "yolov8-end-to-end", ("people",)),
    "output with a colon": ({"Identity:0": (1, 56, 8400)}, "yolov8-pose:Identity:0", ("Identity:0",)),
    "anchors left open are not people": ({"o": (1, None, 57)}, "yolov5-pose", ("o",)),
    "more rows than usual": ({"o": (1, 5000, 57)}, "yolov8-end-to-end", ("o",)),
    "a fixed list from TI": ({"o": (1, 300, 57)}, "yolov5-end-to-end", ("o",)),
    "3 heatmaps": ({"o": (1, 3, 80, 80)}, "heatmap", ("o",)),
}


@pytest.mark.parametrize(("shapes", "override", "outputs"), OVERRIDDEN.values(), ids=OVERRIDDEN)
def test_override(shapes, override, outputs):
    head = detect_head(shapes, SQUARE, override)
    assert (head.kind, head.outputs) == (override.partition(":")[0], outputs)


@pytest.mark.parametrize("override", ["yolov5-pose", "heatmap", "yolov8-pose:p3", "yolov8-pose:absent"])
def test_override_that_does_not_fit(override):
    with pytest.raises(HeadError, match=f"do not fit --head {override}") as caught:
        detect_head({"output0": (1, 56, 8400), "p3": (1, 7)}, SQUARE, override)
    message = str(caught.value)
    assert f"\n    {override.partition(':')[0]}: " in message
    assert "\n    output0: 1×56×8400" in message


def test_unknown_kind_is_wrong_use():
    with pytest.raises(UsageError, match="no pose head called 'yolo'") as caught:
        detect_head({"output0": (1, 56, 8400)}, SQUARE, "yolo")
    assert caught.value.exit_code == 2
