"""ssh://user@host[:port][/python]: what is read, and all that is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtoolkit.backends.board_address import BoardAddress, is_board_address, local_board, parse_board
from qtoolkit.errors import UsageError


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("ssh://nvidia@orin.local", BoardAddress("orin.local", "nvidia")),
        ("ssh://orin", BoardAddress("orin")),
        ("ssh://a_b.c@10.0.0.7:2222", BoardAddress("10.0.0.7", "a_b.c", 2222)),
        ("ssh://u@[fe80::1]:22", BoardAddress("fe80::1", "u", 22)),
        ("ssh://u@h/opt/py-3.8/bin/python3.8", BoardAddress("h", "u", None, "/opt/py-3.8/bin/python3.8")),
        ("ssh://u@h:22/usr/bin/python3", BoardAddress("h", "u", 22, "/usr/bin/python3")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reads(device, expected):
    assert parse_board(device) == expected


@pytest.mark.parametrize(
    "device",
    [
        "ssh://", "ssh://u@", "ssh://@h", "ssh://-oProxyCommand=touch@h", "ssh://u@-oProxyCommand=x", "ssh://u@h:",
        "ssh://u@h:0", "ssh://u@h:65536", "ssh://u@h:22x", "ssh://u@h/", "ssh://u@h//bin/python", "ssh://u@h/bin/",
        "ssh://u:secret@h", "ssh://u@h;reboot", "ssh://u@h/$(id)", "ssh://u@h /bin", "ssh://u@h\n", "ssh://u@h/a'b",
        "SSH://u@h", "user@host", "ssh://u@h?x=1", "ssh://u@h/a%20b",
    ],
)  # fmt: skip
def test_refuses(device):
    with pytest.raises(UsageError, match="the address of the board cannot be used"):
        parse_board(device)


@given(st.text(max_size=30))
def test_nothing_that_is_read_means_anything_to_a_shell_or_to_ssh(text):
    try:
        found = parse_board(f"ssh://{text}")
    except UsageError:
        return
    parts = [found.host or "", found.user or "", found.python]
    assert not any(part.startswith("-") for part in parts)
    assert not set("".join(parts)) & set(" '\"`$;&|<>(){}*?!#~\\\n\t%=")


def test_is_an_address():
    assert is_board_address("ssh://x") and not is_board_address("cpu")


@pytest.mark.parametrize(
    ("content", "name"),
    [("NVIDIA Jetson Orin Nano Developer Kit\0", "NVIDIA Jetson Orin Nano Developer Kit"), ("Raspberry Pi 5", None)],
)
def test_whether_this_machine_is_a_board(content, name, tmp_path):
    (tmp_path / "model").write_text(content)
    assert local_board(tmp_path / "model") == name
    assert local_board(tmp_path / "absent") is None


def test_shows_itself_without_the_python():
    assert str(parse_board("ssh://u@[::1]:22/usr/bin/python3")) == "u@[::1]:22"
    assert str(BoardAddress(None)) == "this board"
