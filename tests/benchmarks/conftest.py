"""The scripts of benchmarks/ are no package: their folders are put on the path, as Python does when it runs them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
for _folder in (_BENCHMARKS, _BENCHMARKS / "peers", _BENCHMARKS / "peers" / "quantizers"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))


@pytest.fixture
def add_unlabelled() -> Callable[[Path, list[bytes]], Path]:
    """``add_unlabelled(data, images)`` → the data set with a part unlabeled, ``more``, of these PNG files."""

    def add(data: Path, images: list[bytes]) -> Path:
        (data / "more").mkdir()
        for number, content in enumerate(images):
            (data / "more" / f"{number}.png").write_bytes(content)
        text = (data / "dataset.yaml").read_text()
        (data / "dataset.yaml").write_text(f"{text}\nunlabeled: {{images: more}}\n")
        return data

    return add
