import importlib.util

import pytest

from qtoolkit.cli import extras
from qtoolkit.errors import UnavailableError


def test_nothing_is_said_where_all_is_there():
    extras.require_torch()


@pytest.mark.parametrize(
    ("absent", "message"),
    [({"torch"}, "this command needs torch\n"), ({"torch", "safetensors"}, "needs torch and safetensors\n")],
)
def test_what_is_missing_is_named(monkeypatch, absent, message):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    with pytest.raises(UnavailableError, match=message) as error:
        extras.require_torch()
    assert error.value.exit_code == 4
    assert "pip install 'qtoolkit[train]'" in str(error.value)
