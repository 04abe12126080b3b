from __future__ import annotations

import hashlib
import os
import stat

import pytest

from qtoolkit.artifacts.files import (
    atomic_path,
    prepare_out_dir,
    sha256_bytes,
    sha256_file,
    sha256_json,
    write_bytes,
    write_text,
)
from qtoolkit.errors import UsageError

# FIPS 180-2, appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_sha256_of_bytes_and_of_a_file_is_the_standards(tmp_path):
    assert sha256_bytes(b"abc") == ABC
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == sha256_file(str(tmp_path / "file")) == ABC


def test_sha256_of_a_file_longer_than_a_chunk(tmp_path):
    content = bytes(range(256)) * (1 << 13)
    (tmp_path / "file").write_bytes(content)
    assert len(content) == 2 << 20
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_equal_options_hash_the_same_in_any_order():
    assert sha256_json({"a": 1, "b": [2, None]}) == sha256_json({"b": [2, None], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})
    assert sha256_json([1, 2]) != sha256_json([2, 1])
    assert sha256_json({"a": 1}) == sha256_bytes(b'{"a":1}')


def test_a_new_file_appears_whole(tmp_path):
    path = tmp_path / "new.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names_in(tmp_path) == ["new.txt"]


def test_the_old_content_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt], ids=["error", "interrupted"])
def test_an_error_leaves_the_old_content_and_no_temporary_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file"]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError), atomic_path(tmp_path / "taken") as temporary:
        temporary.write_text("content")
    assert names_in(tmp_path) == ["taken"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_file_has_the_rights_that_open_would_give_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_text_is_utf8_and_newlines_stay(tmp_path):
    write_text(tmp_path / "file", "größer\n")
    assert (tmp_path / "file").read_bytes() == b"gr\xc3\xb6\xc3\x9fer\n"
    write_bytes(tmp_path / "file", b"\x00\xff")
    assert (tmp_path / "file").read_bytes() == b"\x00\xff"


def test_an_output_folder_is_made_with_its_parents_and_is_empty(tmp_path):
    folder = prepare_out_dir(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert names_in(folder) == []


def test_an_output_folder_that_is_there_keeps_its_files(tmp_path):
    (tmp_path / "old").write_text("old")
    assert prepare_out_dir(tmp_path) == tmp_path
    assert names_in(tmp_path) == ["old"]


@pytest.mark.parametrize(
    ("below", "found"), [("", "File exists"), ("below", "Not a directory")], ids=["a file", "below a file"]
)
def test_an_output_folder_that_cannot_be_written_is_wrong_use(tmp_path, below, found):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"the output folder .*file.* cannot be written") as caught:
        prepare_out_dir(tmp_path / "file" / below)
    assert caught.value.found == found
    assert "--out" in caught.value.do
    assert caught.value.exit_code == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_wrong_use(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="cannot be written"):
            prepare_out_dir(tmp_path)
    finally:
        tmp_path.chmod(0o700)
