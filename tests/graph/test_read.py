from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from qtoolkit.errors import ModelFileError
from qtoolkit.graph.read import default_opset, read_model

TINY = parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 13]> net (float[1,3,4,4] images) => (float[1,3,4,4] y) '
    "<float[1,3,1,1] scale = {1, 2, 3}> { m = Mul(images, scale)  y = Relu(m) }"
).SerializeToString()


def _zip_bytes():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return stream.getvalue()


BROKEN = {
    "empty": (b"", "is empty(.|\n)*0 bytes"),
    "text": ("# Ein Netz für Posen\nlayers: 3\n".encode(), "is not an ONNX file(.|\n)*text file that begins with"),
    "long text": (("für " * 400).encode(), "is not an ONNX file(.|\n)*text file"),
    "git lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        r"Git LFS pointer(.|\n)*lfs pull",
    ),
    "zip": (_zip_bytes(), "zip archive, such as a PyTorch checkpoint"),
    "noise": (b"\xff\xfe\x00\x01" * 50, "is not an ONNX file(.|\n)*cannot be parsed"),
    "truncated in the graph": (TINY[: len(TINY) // 2], "is truncated or damaged"),
    "one byte short": (TINY[:-1], "is truncated or damaged"),
    "no graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no network(.|\n)*without any node"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_each_broken_file_has_its_own_message(tmp_path, case):
    content, message = case
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_model(path)
    assert caught.value.exit_code == 3
    assert caught.value.expected and caught.value.found and caught.value.do


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match="there is no file"):
        read_model(tmp_path / "absent.onnx")


def test_a_folder(tmp_path):
    with pytest.raises(ModelFileError, match="is a folder"):
        read_model(tmp_path)


def test_a_good_file_is_read_and_left_as_it_is(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(TINY)
    assert default_opset(read_model(str(path))) == 13
    assert path.read_bytes() == TINY


@pytest.mark.parametrize(("opset", "good"), [(10, False), (11, True), (23, True), (24, False)])
def test_opsets_from_11_to_23(tmp_path, opset, good):
    model = onnx.ModelProto.FromString(TINY)
    model.opset_import[0].version = opset
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    if good:
        assert default_opset(read_model(path)) == opset
    else:
        with pytest.raises(ModelFileError, match=rf"opset that is not supported(.|\n)*found: opset {opset}"):
            read_model(path)


def test_no_opset_at_all(tmp_path):
    model = onnx.ModelProto.FromString(TINY)
    del model.opset_import[:]
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="does not say which operator set"):
        read_model(path)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.integers(0, len(TINY) - 1).map(lambda end: TINY[:end])))
def test_whatever_the_bytes_are_only_a_model_file_error_comes_out(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    try:
        assert len(read_model(path).graph.node) > 0
    except ModelFileError as error:
        assert "any.onnx" in str(error)


def _with_external(folder: Path, location: str, **entries: str) -> Path:
    """A network in ``folder`` whose constant (3 float32) lies in the file ``location``."""
    model = onnx.ModelProto.FromString(TINY)
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_in_the_folder_is_loaded(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "net.bin").write_bytes(b"skip" + np.float32([4, 5, 6]).tobytes() + b"rest")
    model = read_model(_with_external(tmp_path, "data/net.bin", offset="4", length="12"))
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]).ravel(), [4, 5, 6])
    assert model.graph.initializer[0].data_location == onnx.TensorProto.DEFAULT


def test_external_data_without_a_length_reaches_to_the_end(tmp_path):
    (tmp_path / "net.bin").write_bytes(np.float32([4, 5, 6]).tobytes())
    model = read_model(_with_external(tmp_path, "net.bin"))
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]).ravel(), [4, 5, 6])


@pytest.fixture
def secret(tmp_path):
    """A file of the right size beside the folder of the network, which must never be opened."""
    path = tmp_path / "secret.bin"
    path.write_bytes(np.float32([7, 7, 7]).tobytes())
    (tmp_path / "model").mkdir()
    return path


OUTSIDE = {
    "parent folder": "../secret.bin",
    "through a folder and back": "x/../../secret.bin",
    "absolute": "{secret}",
    "empty": "",
    "nul byte": "a\0b",
}


@pytest.mark.parametrize("location", OUTSIDE.values(), ids=OUTSIDE)
def test_external_data_outside_the_folder_is_refused_unread(tmp_path, secret, monkeypatch, location):
    path = _with_external(tmp_path / "model", location.format(secret=secret))
    opened = []
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self.name) or real_open(self, *a, **k))
    with pytest.raises(ModelFileError, match="file outside its own folder, which is not read"):
        read_model(path)
    assert "secret.bin" not in opened


def test_a_link_out_of_the_folder_is_refused(tmp_path, secret):
    (tmp_path / "model" / "net.bin").symlink_to(secret)
    with pytest.raises(ModelFileError, match="outside its own folder"):
        read_model(_with_external(tmp_path / "model", "net.bin"))


def test_missing_external_data(tmp_path):
    with pytest.raises(ModelFileError, match=r"external data of .* is missing(.|\n)*gone\.bin"):
        read_model(_with_external(tmp_path, "gone.bin"))


TOO_SHORT = {
    "truncated file": {},
    "length past the end": {"length": "12"},
    "offset past the end": {"offset": "100"},
    "negative offset": {"offset": "-4"},
    "length of another tensor": {"length": "4"},
    "not a number": {"offset": "four"},
}


@pytest.mark.parametrize("entries", TOO_SHORT.values(), ids=TOO_SHORT)
def test_external_data_that_does_not_fit(tmp_path, entries):
    (tmp_path / "net.bin").write_bytes(b"12345678")
    with pytest.raises(ModelFileError, match="does not fit tensor 'scale'"):
        read_model(_with_external(tmp_path, "net.bin", **entries))
