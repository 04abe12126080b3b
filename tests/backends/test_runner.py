"""The base class makes every check, whatever the backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qtoolkit.backends.runner import Condition, Runner, Signature, TensorSpec
from qtoolkit.errors import UsageError

FLOAT32 = np.dtype(np.float32)


class Doubler(Runner):
    """Gives twice and thrice its input; counts how often it was opened and closed."""

    name = "doubler"

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.opened = 0
        self.closed = 0

    def _open(self) -> Signature:
        self.opened += 1
        if self.fails:
            raise OSError("no such network")
        return Signature(
            inputs={"x": TensorSpec((1, None), FLOAT32), "bias": TensorSpec((), np.dtype(np.int64))},
            outputs={"twice": TensorSpec((1, None), FLOAT32), "thrice": TensorSpec((1, None), FLOAT32)},
        )

    def _infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Sequence[NDArray[Any]]:
        return [feeds["x"] * {"twice": 2, "thrice": 3}[name] for name in outputs]

    def _close(self) -> None:
        self.closed += 1

    def conditions(self) -> dict[str, Condition]:
        return {"runtime": "numpy", "version": np.__version__, "provider": "cpu", "threads": 1}


def feeds(**changed: Any) -> dict[str, Any]:
    return {"x": np.array([[1.0, 2.0]], np.float32), "bias": np.array(0), **changed}


def test_infers_all_outputs_in_the_networks_order() -> None:
    with Doubler() as runner:
        outputs = runner.infer(feeds())
    assert list(outputs) == ["twice", "thrice"]
    np.testing.assert_array_equal(outputs["thrice"], [[3.0, 6.0]])


def test_infers_only_the_asked_outputs_in_the_asked_order() -> None:
    with Doubler() as runner:
        assert list(runner.infer(feeds(), ["thrice"])) == ["thrice"]
        assert list(runner.infer(feeds(), ["thrice", "twice"])) == ["thrice", "twice"]


def test_describes_its_inputs_and_outputs() -> None:
    with Doubler() as runner:
        assert runner.input_shapes == {"x": (1, None), "bias": ()}
        assert runner.output_shapes == {"twice": (1, None), "thrice": (1, None)}
        assert runner.input_names == ("x", "bias")
        assert runner.output_names == ("twice", "thrice")
        assert str(runner.signature.inputs["x"]) == "float32 (1, ?)"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"y": np.zeros(1)}, "do not name the network's inputs", id="unknown name"),
        pytest.param({"x": np.zeros((1, 2))}, r"float64 \(1, 2\)", id="float64 for float32"),
        pytest.param({"x": np.zeros((2, 2), np.float32)}, r"float32 \(2, 2\)", id="fixed size differs"),
        pytest.param({"x": np.zeros(2, np.float32)}, r"float32 \(2,\)", id="rank differs"),
        pytest.param({"x": [[1.0, 2.0]]}, "found: list", id="a list"),
        pytest.param({"bias": np.zeros(1, np.int64)}, r"expected: a numpy array, int64 \(\)", id="not a scalar"),
    ],
)
def test_refuses_feeds_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with Doubler() as runner, pytest.raises(UsageError, match=message):
        runner.infer(feeds(**changed))


def test_refuses_a_missing_feed() -> None:
    with Doubler() as runner, pytest.raises(UsageError, match=r"expected: 'x', 'bias'\n  found: 'x'"):
        runner.infer({"x": np.zeros((1, 2), np.float32)})


@pytest.mark.parametrize("outputs", [["fourfold"], [], ["twice", "twice"]], ids=["unknown", "none", "doubled"])
def test_refuses_outputs_it_does_not_have(outputs: list[str]) -> None:
    with Doubler() as runner, pytest.raises(UsageError, match="expected: some of 'twice', 'thrice', each once"):
        runner.infer(feeds(), outputs)


def test_infer_before_open_says_so() -> None:
    with pytest.raises(UsageError, match="the doubler runner is not open"):
        Doubler().infer(feeds())


def test_infer_after_close_says_so() -> None:
    runner = Doubler()
    with runner:
        pass
    assert not runner.is_open
    with pytest.raises(UsageError, match="is not open"):
        runner.infer(feeds())


def test_opening_and_closing_twice_are_harmless() -> None:
    runner = Doubler().open()
    with runner:
        runner.open()
    runner.close()
    assert (runner.opened, runner.closed) == (1, 1)


def test_can_be_opened_again() -> None:
    runner = Doubler()
    with runner:
        pass
    with runner:
        assert runner.infer(feeds())["twice"].sum() == 6.0
    assert (runner.opened, runner.closed) == (2, 2)


def test_a_failed_open_frees_what_it_took_and_leaves_it_closed() -> None:
    runner = Doubler(fails=True)
    with pytest.raises(OSError, match="no such network"):
        runner.open()
    assert runner.closed == 1
    assert not runner.is_open


def test_a_signature_cannot_be_changed() -> None:
    with Doubler() as runner, pytest.raises(TypeError):
        runner.signature.inputs["y"] = TensorSpec((), FLOAT32)  # type: ignore[index]
