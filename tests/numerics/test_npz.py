import contextlib

import numpy as np
import pytest

from qtoolkit.errors import InputFileError
from qtoolkit.numerics.npz import read_npz, write_npz


def test_what_is_written_is_read(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "name/part": np.array("text"), "empty": np.zeros((0, 4))}
    write_npz(tmp_path / "x.npz", arrays)
    found = read_npz(tmp_path / "x.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "half", "lone array", "pickle"])
def test_what_cannot_be_read_is_one_error(tmp_path, damage):
    path = tmp_path / "x.npz"
    write_npz(path, {"a": np.arange(1000)})
    if damage == "missing":
        path.unlink()
    elif damage == "lone array":
        with path.open("wb") as stream:
            np.save(stream, np.arange(3))
    elif damage == "pickle":
        np.savez(path, a=np.array([{"a": 1}], dtype=object))
    else:
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"hello", "half": content[: len(content) // 2]}[damage])
    with pytest.raises(InputFileError, match=r"x\.npz cannot be read") as caught:
        read_npz(path)
    assert caught.value.found


@pytest.mark.parametrize("place", range(0, 400, 7))
def test_a_wrong_byte_is_an_error_or_harmless(tmp_path, place):
    path = tmp_path / "x.npz"
    write_npz(path, {"a": np.arange(100)})
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0xFF
    path.write_bytes(content)
    with contextlib.suppress(InputFileError):
        np.testing.assert_array_equal(read_npz(path).get("a", np.arange(100)), np.arange(100))
