"""The table of docs/TARGETS.md says what the rows of ``backends/targets.py`` say."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtoolkit.artifacts.target import GridSpec, Target
from qtoolkit.backends.table import RUNNERS
from qtoolkit.backends.targets import TARGETS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "TARGETS.md"


def grid(spec: GridSpec) -> str:
    words = ["symmetric" if spec.symmetric else "asymmetric", *(["power-of-two scales"] if spec.power_of_two else [])]
    return f"{'' if spec.signed else 'u'}int{spec.bit_width}, {', '.join(words)}"


def weights(target: Target) -> str:
    return f"{grid(target.weight_8bit)}, one scale per {'channel' if target.per_channel_weights else 'tensor'}"


def places(target: Target) -> str:
    if target.integer_only:
        return "every tensor in front of the decode tail"
    if target.quantize_layer_outputs:
        return "inputs and outputs of 8-bit layers and operators"
    return "inputs of layers" + (" and of residual Adds" if target.quantize_residual_adds else "")


def yes(value: bool) -> str:
    return "yes" if value else "no"


def runs(target: Target) -> bool:
    return target.backend in RUNNERS and not target.needs_engine


ROWS = {
    "AP is measured": lambda t: "on its own runtime" if runs(t) else "in ONNX Runtime, simulated",
    "latency is measured": lambda t: "of engines, on a GPU" if t.needs_engine else yes(runs(t)),
    "types of tensors": lambda t: "as the graph says" if t.strongly_typed or not t.needs_engine else "the builder's",
    "opset of 8-bit networks": lambda t: "any" if t.opsets is None else "–".join(map(str, sorted(set(t.opsets)))),
    "8-bit activations": lambda t: grid(t.activation_8bit),
    "unsigned where never below 0": lambda t: yes(t.unsigned_where_nonnegative),
    "8-bit weights": weights,
    "16-bit kinds, default first": lambda t: ", ".join(kind.value for kind in t.wide_kinds),
    "8-bit layers": lambda t: ", ".join(sorted(t.int8_layers)),
    "Q/DQ stand at": places,
    "8-bit last layers read": lambda t: "float, or what is 8 bit already" if t.float_last_inputs else "8 bit",
    "Softmax over an inner axis": lambda t: "written out" if t.slow_softmax else "as it is",
    "8-bit upsampling that repeats": lambda t: "written out" if t.slow_upsampling else "as it is",
    "constants spread in short runs": lambda t: "spread beforehand" if t.slow_broadcasts else "as they are",
    "channels of 8-bit layers": lambda t: f"in multiples of {t.channel_multiple}" if t.channel_multiple > 1 else "any",
    "a 16-bit Concat forces its inputs": lambda t: yes(t.concat_forces_inputs),
    "corrected at every effort": lambda t: ", ".join(t.corrections) or "–",
}


def table() -> str:
    lines = [f"| | {' | '.join(TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    lines += [
        f"| {label} | {' | '.join(cell(target) for target in TARGETS.values())} |" for label, cell in ROWS.items()
    ]
    return "\n".join(lines)


def test_the_table_is_that_of_the_rows():
    # After a change of a row, put this text into the page.
    assert table() in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_target_has_a_section(name):
    assert f"\n## {name}\n" in PAGE.read_text(encoding="utf-8")
