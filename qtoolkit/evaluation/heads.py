"""Find the pose head of a network from the shapes of its outputs: checked, never guessed silently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qtoolkit.errors import HeadError, UsageError
from qtoolkit.evaluation.head_layouts import (
    HEAD_KINDS,
    KNOWN_KEYPOINT_COUNTS,
    Head,
    Shape,
    fitting_heads,
    layout_lines,
)

__all__ = ["HEAD_KINDS", "Head", "detect_head"]

_END_TO_END = frozenset({"yolov5-end-to-end", "yolov8-end-to-end"})


def detect_head(
    output_shapes: Mapping[str, Shape], input_size_wh: tuple[int, int], override: str | None = None
) -> Head:
    """The pose head that ``output_shapes`` has at an input of ``input_size_wh`` (W, H) pixels.

    ``output_shapes`` maps each output to its shape, None for an axis that the graph leaves open. Without ``override``:

    - A layout counts where its shape agrees with the input size and its K is the size of a published skeleton.
    - A list of people (N rows, any N) is believed only of an output that has no closer reading: as anchors, whose count
      agrees with the input size, or as the keypoints beside boxes and scores of as many people.
    - Outputs that fit nothing (feature maps) are let be; two that fit are an error, not a choice.

    ``override`` is KIND or KIND:OUTPUT. It lifts the limits on K and N and picks one of several outputs, but the shape
    must fit its kind. Raises UsageError for an unknown kind, HeadError where nothing fits or more than one thing does;
    both list what was expected at this input size and what was found.
    """
    kind, output = _parse_override(override)
    fits = fitting_heads(output_shapes, input_size_wh, kind)
    if kind is None:
        chosen = _lists_last(head for head in fits if head.keypoint_count in KNOWN_KEYPOINT_COUNTS)
    else:
        chosen = [head for head in fits if output is None or output in head.outputs]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise _ambiguous(chosen, output_shapes)
    if override is not None:
        raise _override_does_not_fit(override, kind, output_shapes, input_size_wh)
    raise _nothing_fits(fits, output_shapes, input_size_wh)


def _parse_override(override: str | None) -> tuple[str | None, str | None]:
    if override is None:
        return None, None
    # Names of outputs may hold colons ("Identity:0"); kinds never do.
    kind, _, output = override.partition(":")
    if kind not in HEAD_KINDS:
        raise UsageError(
            f"there is no pose head called {kind!r}",
            expected=", ".join(HEAD_KINDS),
            found=override,
            do="give --head one of these, or one of these with an output's name: KIND:OUTPUT",
        )
    return kind, output or None


def _lists_last(heads: Iterable[Head]) -> list[Head]:
    heads = list(heads)
    closer = {name for head in heads if head.kind not in _END_TO_END for name in head.outputs}
    return [head for head in heads if not (head.kind in _END_TO_END and head.outputs[0] in closer)]


def _shape_lines(output_shapes: Mapping[str, Shape]) -> list[str]:
    def text(shape: Shape) -> str:
        return "×".join("?" if length is None else str(length) for length in shape) or "a scalar"

    return [f"{name}: {text(shape)}" for name, shape in output_shapes.items()] or ["no outputs"]


def _listed(lines: Iterable[str]) -> str:
    return "".join(f"\n    {line}" for line in lines)


def _reading(head: Head) -> str:
    return f"{head.kind} with {head.keypoint_count} keypoints in {', '.join(head.outputs)}"


def _options(heads: Iterable[Head]) -> list[str]:
    # The last output, because separate heads that share boxes and keypoints differ in their scores.
    return list(dict.fromkeys(f"--head {head.kind}:{head.outputs[-1]}" for head in heads))


def _ambiguous(chosen: list[Head], output_shapes: Mapping[str, Shape]) -> HeadError:
    options = _options(chosen)
    return HeadError(
        "the outputs of this network can be read as more than one pose head",
        expected="outputs that fit one pose head only",
        found=_listed([*map(_reading, chosen), *(f"shape of {line}" for line in _shape_lines(output_shapes))]),
        do="say which one is right: " + " or ".join(options),
    )


def _override_does_not_fit(
    override: str, kind: str | None, output_shapes: Mapping[str, Shape], input_size_wh: tuple[int, int]
) -> HeadError:
    w, h = input_size_wh
    return HeadError(
        f"the outputs of this network do not fit --head {override}",
        expected=f"at an input of {w}×{h} (W×H){_listed(layout_lines(input_size_wh, kind))}",
        found=_listed(_shape_lines(output_shapes)),
        do="leave --head out to have every known head tried, or export the network with its decoded outputs",
    )


def _nothing_fits(fits: list[Head], output_shapes: Mapping[str, Shape], input_size_wh: tuple[int, int]) -> HeadError:
    w, h = input_size_wh
    near = [f"would be {_reading(head)}, which no known skeleton has" for head in fits]
    options = _options(fits)
    do = "export the network with its decoded outputs (one of the shapes above) and a batch of 1"
    if options:
        do += f"; if it is a pose network with its own skeleton, say so: {' or '.join(options)}"
    return HeadError(
        "the outputs of this network fit no known pose head",
        expected=f"at an input of {w}×{h} (W×H), one of{_listed(layout_lines(input_size_wh))}",
        found=_listed([*_shape_lines(output_shapes), *near]),
        do=do,
    )
