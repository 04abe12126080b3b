from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtoolkit.data.dataset_yaml import read_dataset_yaml
from qtoolkit.errors import DataSetError

VAL = "val: {images: images, annotations: val.json}"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "dataset.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_all_parts(tmp_path: Path) -> None:
    spec = read_dataset_yaml(
        written(
            tmp_path,
            "version: 1\nname: gym\nkind: coco-keypoints\n"
            "val: {images: v, annotations: v.json}\ncalib: {images: c}\n"
            "train: {images: t, annotations: t.json}\nunlabeled: {images: u}\n",
        )
    )
    assert (spec.name, spec.kind, spec.version) == ("gym", "coco-keypoints", 1)
    assert spec.val is not None
    assert (spec.val.images, spec.val.annotations) == ("v", "v.json")
    assert spec.calib is not None
    assert spec.calib.annotations is None
    assert spec.unlabeled is not None
    assert spec.unlabeled.images == "u"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("", "an empty file", id="zero bytes"),
        pytest.param("just a line", "no keys but 'just a line'", id="a text"),
        pytest.param("- a\n- b", "no keys but", id="a list"),
        pytest.param("kind: [coco", "while parsing a flow sequence", id="not YAML"),
        pytest.param(b"\x89PNG\r\n\x1a\n\xff", "decode", id="a picture"),
        pytest.param("[" * 5_000, "recursion", id="5000 brackets"),
        pytest.param("kind: !!python/object:os.system {}", "could not determine a constructor", id="code"),
        pytest.param(VAL, "key 'kind' is missing", id="no kind"),
        pytest.param(
            f"kind: voc\n{VAL}",
            "kind: Input should be 'coco-keypoints', 'images', 'mpii', 'lsp' or 'flic', found 'voc'",
            id="unknown kind",
        ),
        pytest.param(f"kind: coco-keypoints\nvalid: 1\n{VAL}", "unknown key 'valid'", id="unknown key"),
        pytest.param(
            "kind: images\nval: {images: a, labels: b}", "unknown key 'val.labels'", id="unknown key in a part"
        ),
        pytest.param(
            "kind: images\nunlabeled: {images: a, annotations: b}",
            "unknown key 'unlabeled.annotations'",
            id="labels of unlabeled",
        ),
        pytest.param("kind: images\nval: {}", "key 'val.images' is missing", id="a part without images"),
        pytest.param("kind: images\nval: {images: ''}", "val.images: String should have at least 1", id="no folder"),
        pytest.param("kind: images\nval: 3", "val: Input should be a valid dictionary", id="a part that is a number"),
        pytest.param("kind: images\nversion: 2\nval: {images: a}", "version: Input should be 1, found '2'", id="v2"),
        pytest.param("kind: images\nkind: images\nval: {images: a}", "key 'kind' is given twice", id="a key twice"),
        pytest.param("kind: images\n1: a\nval: {images: a}", "1", id="a number as key"),
        pytest.param("kind: images", "none of the parts val, calib, train, unlabeled", id="no part"),
        pytest.param(
            "kind: images\nval: {images: a}\ncalib: {images: b, annotations: c.json}",
            "kind: images, which has no labels, together with calib.annotations: c.json",
            id="labels against kind",
        ),
        pytest.param("kind: coco-keypoints\nval: {images: a}", "val has no annotations", id="kind against no labels"),
    ],
)
def test_faulty_files_say_what_was_found(tmp_path: Path, text: str | bytes, found: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataSetError) as error:
        read_dataset_yaml(path)
    assert str(path) in error.value.what
    assert error.value.found is not None
    assert found in error.value.found


@pytest.mark.parametrize("kind", ["mpii", "lsp", "flic"])
def test_kinds_to_come_are_recognised(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataSetError, match=f"kind '{kind}' are not supported yet"):
        read_dataset_yaml(written(tmp_path, f"kind: {kind}\nval: {{images: a, annotations: joints.mat}}"))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="No such file"):
        read_dataset_yaml(tmp_path / "dataset.yaml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(alphabet="kindvalimages: {}[]-\n'\"&*!?|#01é\0", max_size=60))
def test_any_text_ends_in_a_data_set_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataSetError):
        read_dataset_yaml(written(tmp_path, text))
