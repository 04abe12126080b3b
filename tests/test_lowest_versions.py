"""`constraints-lowest.txt` names the very versions that setup.cfg allows at the least, so that `make test-lowest` tests
what is promised."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOWEST = dict(
    line.split("==") for line in (ROOT / "constraints-lowest.txt").read_text().splitlines() if not line.startswith("#")
)
# Older ones that setup.cfg allows cannot be had without their GPU libraries here.
NEWER = {"torch"}


def promised() -> dict[str, str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    lines = [config["options"]["install_requires"], extras["train"], extras["openvino"]]
    found = re.findall(r"^([A-Za-z_-]+)>=([0-9.]+)", "\n".join(lines), re.MULTILINE)
    return {name: version for name, version in found if name not in NEWER}


def parts(version: str) -> list[int]:
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


@pytest.mark.parametrize("name", promised())
def test_the_oldest_version_is_tested(name):
    # OpenCV's wheels have a fourth number.
    assert parts(LOWEST[name])[:3] == parts(promised()[name])
