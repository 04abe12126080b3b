import numpy as np
import onnx
import pytest

from qtoolkit.errors import ModelFileError, UsageError
from qtoolkit.evaluation.nms import non_maximum_suppression
from qtoolkit.graph.end_to_end import END_TO_END_OUTPUTS, NmsSettings, append_nms

SETTINGS = NmsSettings(score_threshold=0.3, iou_threshold=0.5, max_people=300, max_candidates=3000)


def crowd(people, keypoints, seed, class_score=True):
    """Rows (1, N, C) around few places, so that many boxes overlap; scores of one decimal, so that many are equal."""
    random = np.random.default_rng(seed)
    centres = random.uniform(100, 500, (max(people // 8, 1), 2))[random.integers(0, max(people // 8, 1), people)]
    boxes = np.concatenate([centres + random.normal(0, 8, (people, 2)), random.uniform(40, 80, (people, 2))], 1)
    scores = random.integers(0, 11, (people, 1)) / 10
    parts = [boxes, scores, *([random.uniform(0.8, 1, (people, 1))] if class_score else [])]
    return np.concatenate([*parts, random.uniform(0, 600, (people, 3 * keypoints))], 1).astype(np.float32)[None]


def on_the_host(rows, settings, class_score=True):
    """What decoding and suppression in numpy give: boxes, scores, keypoints."""
    rows = rows[0]
    scores = rows[:, 4] * rows[:, 5] if class_score else rows[:, 4]
    points = rows[:, 6 if class_score else 5 :].reshape(len(rows), -1, 3)
    chosen = scores > settings.score_threshold
    half = rows[:, 2:4] / 2
    boxes = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], 1)
    boxes, scores, points = boxes[chosen], scores[chosen], points[chosen]
    kept = non_maximum_suppression(boxes, scores, settings.iou_threshold, settings.max_people, settings.max_candidates)
    return boxes[kept], scores[kept], points[kept]


def same(found, expected):
    assert list(found) == list(END_TO_END_OUTPUTS)
    for name, array in zip(END_TO_END_OUTPUTS, expected, strict=True):
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture
def rows_network(parse_network):
    """A network that hands rows of a given shape on to ``output0``."""

    def make(shape, opset=13):
        sizes = ",".join(map(str, shape))
        return parse_network(
            f"net (float[{sizes}] rows) => (float[{sizes}] output0) {{ output0 = Identity(rows) }}", opset
        )

    return make


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("class_score", [True, False])
@pytest.mark.parametrize("anchors_last", [True, False])
def test_the_same_people_in_the_same_order(rows_network, run_network, opset, class_score, anchors_last):
    rows = crowd(200, 17, seed=opset, class_score=class_score)
    given = rows.transpose(0, 2, 1) if anchors_last else rows
    model = append_nms(
        rows_network(given.shape, opset),
        "output0",
        class_score=class_score,
        anchors_last=anchors_last,
        settings=SETTINGS,
    )
    onnx.checker.check_model(model, full_check=True)
    expected = on_the_host(rows, SETTINGS, class_score)
    assert 10 < len(expected[1]) < 100
    same(run_network(model, {"rows": given}), expected)


@pytest.mark.parametrize(
    "settings",
    [
        NmsSettings(0.0, 0.9, 300, 3000),
        NmsSettings(0.55, 0.2, 300, 3000),
        NmsSettings(0.2, 0.5, 4, 3000),
        NmsSettings(0.2, 0.5, 300, 25),
        NmsSettings(0.95, 0.0, 300, 25),
        NmsSettings(0.0, 1.0, 10, 199),
    ],
    ids=["loose", "strict", "few people", "few candidates", "strict and few", "no suppression"],
)
def test_every_setting(rows_network, run_network, settings):
    rows = crowd(200, 4, seed=3)
    model = append_nms(rows_network(rows.shape), "output0", class_score=True, anchors_last=False, settings=settings)
    same(run_network(model, {"rows": rows}), on_the_host(rows, settings))


def test_nobody(rows_network, run_network):
    rows = crowd(50, 17, seed=0)
    settings = NmsSettings(1.0, 0.5, 300, 20)
    model = append_nms(rows_network(rows.shape), "output0", class_score=True, anchors_last=False, settings=settings)
    found = run_network(model, {"rows": rows})
    assert [found[name].shape for name in END_TO_END_OUTPUTS] == [(0, 4), (0,), (0, 17, 3)]


def test_the_network_given_stays_and_other_outputs_go(parse_network):
    model = parse_network(
        "net (float[1,9,9] rows) => (float[1,9,9] output0, float[1,9,9] more) "
        "{ output0 = Relu(rows) \n unused = Abs(rows) \n more = Neg(unused) }"
    )
    before = model.SerializeToString(deterministic=True)
    result = append_nms(model, "output0", class_score=True, anchors_last=False, settings=SETTINGS)
    assert model.SerializeToString(deterministic=True) == before
    assert [value.name for value in result.graph.output] == list(END_TO_END_OUTPUTS)
    assert not {"Abs", "Neg"} & {node.op_type for node in result.graph.node}


def test_tensors_with_the_names_of_the_outputs_make_room(parse_network, run_network):
    model = parse_network(
        "net (float[1,30,9] rows) => (float[1,30,9] scores) { boxes = Relu(rows) \n scores = Identity(boxes) }"
    )
    rows = crowd(30, 1, seed=1)
    result = append_nms(model, "scores", class_score=True, anchors_last=False, settings=SETTINGS)
    same(run_network(result, {"rows": rows}), on_the_host(rows, SETTINGS))


@pytest.mark.parametrize(
    ("shape", "output"), [((1, 30, 10), "output0"), ((1, 30, 6), "output0"), ((2, 30, 9), "output0"), ((1, 30, 9), "y")]
)
def test_what_holds_no_people(rows_network, shape, output):
    with pytest.raises(ModelFileError, match=f"no people can be read from '{output}'"):
        append_nms(rows_network(shape), output, class_score=True, anchors_last=False, settings=SETTINGS)


@pytest.mark.parametrize(
    ("values", "message"),
    [((1.2, 0.5, 3, 3), "score threshold"), ((0.1, -1, 3, 3), "iou threshold"), ((0.1, 0.5, 0, 3), "max people")],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(UsageError, match=f"the {message} cannot be used"):
        NmsSettings(*values)
