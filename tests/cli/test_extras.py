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


def test_without_torch_a_fine_tuning_is_refused_before_any_work(monkeypatch, tmp_path, qtool, people, network):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    result = qtool("quantize", network, "--data", people, "--qat", "--out", tmp_path / "out")
    assert result.exit_code == 4
    assert "this command needs torch" in result.stderr
    assert not (tmp_path / "out").exists()
