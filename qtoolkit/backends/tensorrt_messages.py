"""What TensorRT says while it works: kept instead of printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Message", "about_quantization", "counted", "message_recorder", "problems"]

_PROBLEMS = frozenset({"WARNING", "ERROR", "INTERNAL_ERROR"})
_OF_QUANTIZATION = (
    "quantiz", "scale", "zero point", "zeropoint", "zero-point", "q/dq", "qdq", "int8", "dynamic range", "calibrat",
)  # fmt: skip


@dataclass(frozen=True)
class Message:
    """``severity`` as TensorRT names it: INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE."""

    severity: str
    text: str


def message_recorder(trt: Any) -> Any:
    """A logger for ``trt`` (an ``ILogger``) that keeps every message but the verbose ones in ``messages``.

    Those go to ``hear``, where it is set.
    """

    class Recorder(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[Message] = []
            self.hear: Callable[[str], None] | None = None

        def log(self, severity: Any, text: str) -> None:
            name = str(getattr(severity, "name", severity))
            if name != "VERBOSE":
                self.messages.append(Message(name, " ".join(text.split())))
            elif self.hear is not None:
                self.hear(text)

    return Recorder()


def problems(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The warnings and errors among them."""
    return tuple(each for each in messages if each.severity in _PROBLEMS)


def about_quantization(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The warnings and errors that speak of scales, zero points, Q/DQ or int8."""
    return tuple(each for each in problems(messages) if any(word in each.text.lower() for word in _OF_QUANTIZATION))


def counted(messages: Iterable[Message]) -> dict[str, int]:
    """``SEVERITY: text`` → how often it was said, in order of the first time."""
    return dict(Counter(f"{each.severity}: {each.text}" for each in messages))
