"""Options that several commands share.

An option without a value here has the default of the library, which its help names: a default stands in one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qtoolkit.corrections import CORRECTIONS
from qtoolkit.errors import UsageError

if TYPE_CHECKING:
    from qtoolkit.recipe import Recipe

__all__ = [
    "InputSize",
    "NameList",
    "build_recipe",
    "data_option",
    "head_option",
    "images_option",
    "input_size_option",
    "json_option",
    "model_argument",
    "optional_model_argument",
    "out_option",
    "quiet_option",
    "recipe_options",
    "runs_option",
    "threads_option",
]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
Decorator = Callable[[CommandT], CommandT]

# Existence is left to the library: its messages say more, and its exit codes tell a bad file from wrong use.
_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
_FEWEST_RUNS = 10


if TYPE_CHECKING:
    _SizeType = click.ParamType[tuple[int, int]]
else:
    # Older versions of click cannot be subscripted.
    _SizeType = click.ParamType


if TYPE_CHECKING:
    _NamesType = click.ParamType[tuple[str, ...]]
else:
    _NamesType = click.ParamType


class NameList(_NamesType):
    """Some of ``names`` with commas between them, each once, or ``none``; gives them as a tuple."""

    name = "NAMES"

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Raises click's usage error (exit 2) for another name, or one that stands twice."""
        if isinstance(value, tuple):
            return value
        given = [] if value == "none" else [part.strip() for part in str(value).split(",")]
        for name in given:
            if name not in self._names:
                self.fail(f"{name!r} is not one of {', '.join(self._names)}, or none alone.", param, ctx)
            if given.count(name) > 1:
                self.fail(f"{name!r} stands twice.", param, ctx)
        return tuple(given)


class InputSize(_SizeType):
    """``640`` (a square) or ``640x480`` (width × height), in pixels; gives (W, H)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Raises click's usage error (exit 2) for anything else."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"([1-9]\d{0,4})(?:[xX×]([1-9]\d{0,4}))?", str(value).strip())
        if not found:
            self.fail(f"{value!r} is not a size: give 640 for a square, or 640x480 for width x height.", param, ctx)
        return int(found[1]), int(found[2] or found[1])


def _runs(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Said before the networks are made, not after: the measurement itself comes last."""
    if value is not None and 0 < value < _FEWEST_RUNS:
        raise click.BadParameter(f"{value} is too few for a latency: at least {_FEWEST_RUNS}, or 0 for none.")
    return value


model_argument: Decorator[Any] = click.argument("model", type=_PATH)
"""A network that must be named."""

optional_model_argument: Decorator[Any] = click.argument("model", type=_PATH, required=False)
"""A network; without one ``build_recipe`` takes the default network."""

_DATA_HELP = (
    "Data set: a folder with a dataset.yaml, that file, COCO's own layout, a folder of photos, synthetic:N@seed."
)

data_option: Decorator[Any] = click.option(
    "--data",
    required=True,
    type=_PATH,
    metavar="DIR",
    help=_DATA_HELP,
)
"""A data set that must be named."""

out_option: Decorator[Any] = click.option(
    "--out", type=_PATH, metavar="DIR", help="Folder for all that is written.  [default: runs/NAME]"
)

json_option: Decorator[Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else, on stdout."
)

quiet_option: Decorator[Any] = click.option("--quiet", is_flag=True, help="Show no progress.")

threads_option: Decorator[Any] = click.option(
    "--threads", type=_COUNT, metavar="N", help="Threads of the runtime.  [default: one per core]"
)

head_option: Decorator[Any] = click.option(
    "--head", metavar="KIND", help="Pose head, KIND or KIND:OUTPUT, where the outputs fit several.  [default: found]"
)

input_size_option: Decorator[Any] = click.option(
    "--input-size",
    "input_size_wh",
    type=InputSize(),
    metavar="WxH",
    help="Input size in pixels, WxH or N for N x N; needed where the network leaves it open.",
)

images_option: Decorator[Any] = click.option(
    "--images", type=_COUNT, metavar="N", help="Evaluate on the first N photos only.  [default: all]"
)

runs_option: Decorator[Any] = click.option(
    "--runs",
    type=click.IntRange(min=0),
    metavar="N",
    callback=_runs,
    help="Inferences per network in the latency measurement, 0 for none.  [default: 100]",
)

_RECIPE_OPTIONS: tuple[Decorator[Any], ...] = (
    click.option(
        "--data",
        type=_PATH,
        metavar="DIR",
        help=f"{_DATA_HELP}  [default: none; without MODEL synthetic:300@1]",
    ),
    click.option(
        "--mixed", type=float, metavar="SHARE", help="Share, 0 to 1, that may stay at 16 bit in the mixed network."
    ),
    click.option(
        "--mixed-by",
        type=click.Choice(["layers", "macs", "bops", "bytes", "latency"]),
        help="Share of what: layers, multiply-adds, or the bit operations, bytes or time that 16 bit adds."
        "  [default: layers; with --min-ap-retention time]",
    ),
    click.option(
        "--min-ap-retention",
        type=click.FloatRange(0.0, 1.0, min_open=True),
        metavar="SHARE",
        help="In place of --mixed: the cheapest mix that keeps this share of the float AP, such as 0.99.",
    ),
    click.option(
        "--metric",
        type=click.Choice(["oks", "sqnr", "fisher", "ap"]),
        help="Loss of a layer: change of poses (oks), its estimate by gradients (fisher, needs torch), noise at the "
        "outputs (sqnr), AP lost on labelled photos of train or calib (ap).  [default: oks]",
    ),
    click.option(
        "--target",
        metavar="T",
        help="What the networks are made for: ort-cpu, openvino-cpu, tensorrt, tensorrt-strong, tensorrt-rtx or tidl."
        "  [default: ort-cpu]",
    ),
    click.option(
        "--device",
        metavar="NAME",
        help="With --target tensorrt: the Jetson whose times are modelled (qtool bench --list-devices).",
    ),
    click.option(
        "--wide",
        type=click.Choice(["fp16", "int16", "int16w16"]),
        help="The 16-bit precision; int16 has 8-bit weights.  [default: the target's own]",
    ),
    click.option(
        "--ranges",
        type=click.Choice(["min-max", "moving-average", "percentile", "mse", "entropy"]),
        help="How clipping ranges are chosen.  [default: mse]",
    ),
    click.option(
        "--effort",
        type=click.Choice(["fast", "balanced", "best"]),
        help="How grids are found: each by its own error (fast), those around a SiLU together (balanced), the first "
        "blocks learned as well (best, needs torch)."
        "  [default: balanced]",
    ),
    click.option(
        "--corrections",
        type=NameList(CORRECTIONS),
        metavar="NAMES",
        help=f"Corrections by name, with commas, or none: {', '.join(CORRECTIONS)} (docs/EFFORT.md).  "
        "[default: those of effort and target]",
    ),
    head_option,
    input_size_option,
    images_option,
    click.option(
        "--calibration-images",
        type=_COUNT,
        metavar="N",
        help="Calibrate on N photos.  [default: all of calib, or 256 of train; without MODEL and --data 100]",
    ),
    click.option(
        "--sensitivity-images",
        type=_COUNT,
        metavar="N",
        help="Rank layers on N of the calibration photos.  [default: 16]",
    ),
    threads_option,
    click.option("--seed", type=int, metavar="N", help="Seed of what is drawn.  [default: 0]"),
    out_option,
)


def recipe_options(command: CommandT) -> CommandT:
    """Every option that ``quantize`` and ``sensitivity`` share."""
    for option in reversed(_RECIPE_OPTIONS):
        command = option(command)
    return command


def build_recipe(model: Path | None, options: dict[str, Any]) -> Recipe:
    """The recipe of a command line: options that were not given (None) are left to the recipe's defaults.

    Without ``model`` the default ReLU network; without it and ``data`` the rendered people that ``qtoolkit.recipe``
    names. Raises UsageError for a model without data, UnavailableError where the default network is not there.
    """
    from qtoolkit.graph.default_network import default_network
    from qtoolkit.recipe import DEFAULT_CALIBRATION_IMAGES, DEFAULT_DATA, Recipe

    given = {name: value for name, value in options.items() if value is not None}
    if "data" not in given:
        if model is not None:
            raise UsageError(
                "there is nothing to calibrate on and to evaluate on",
                expected="--data with the network, a data set of what it is for",
                found=f"{model}, and no --data",
                do="give --data DIR, or synthetic:300@1 for rendered people; without MODEL both have a default",
            )
        given = {"data": DEFAULT_DATA, "calibration_images": DEFAULT_CALIBRATION_IMAGES, **given}
    network = default_network() if model is None else model
    return Recipe.model_validate({"model": network, "out": Path("runs") / network.stem, **given})
