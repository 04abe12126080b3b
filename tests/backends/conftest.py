"""The versions of TensorRT whose names the tests know."""

from __future__ import annotations

import pytest

VERSIONS = ("8.5", "8.6", "10.3", "10.16", "11.4")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)
