"""Which tools are compared, and at which settings: the rows of the table, in its order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
QTOOL = "qtool"
FLOAT = "float"


@dataclass(frozen=True)
class Setting:
    """One row: ``name`` within its tool, what it is in words, and what it is for.

    ``is_default``: the tool as it comes. ``suffix``: of the file it writes. ``on_openvino``: made for OpenVINO, and
    measured there only.
    """

    name: str
    text: str
    is_default: bool = False
    suffix: str = ".onnx"
    on_openvino: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool, its settings, and the script that runs them in the environment ``venv`` (None: this very one)."""

    name: str
    title: str
    venv: str | None
    settings: tuple[Setting, ...]

    @property
    def script(self) -> Path:
        """Runs in the tool's environment."""
        return HERE / "quantizers" / f"quantize_{self.name}.py"

    @property
    def requirements(self) -> Path:
        """What its environment is built from."""
        return HERE / "requirements" / f"{self.venv}.txt"


TOOLS = (
    Tool(
        QTOOL,
        "qtool",
        None,
        (
            Setting("int8", "`qtool quantize`, its int8 network", is_default=True),
            Setting("mixed", "`qtool quantize --mixed 0.3`: 30 % of the layers at 16 bit (fp16)"),
            Setting("openvino-int8", "`qtool quantize --target openvino-cpu`", on_openvino=True),
            Setting("openvino-mixed", "`qtool quantize --target openvino-cpu --mixed 0.3`", on_openvino=True),
        ),
    ),
    Tool(
        "nncf",
        "NNCF",
        "nncf",
        (
            Setting("default", "`nncf.quantize(model, dataset)`", is_default=True),
            Setting("best", "mixed preset (asymmetric activations), full bias correction, decode tail in float"),
            Setting(
                "openvino-default", "the default on an OpenVINO IR", is_default=True, suffix=".xml", on_openvino=True
            ),
            Setting("openvino-best", "best on an OpenVINO IR", suffix=".xml", on_openvino=True),
        ),
    ),
    Tool(
        "modelopt",
        "ModelOpt",
        "modelopt",
        (
            Setting("default", "int8, entropy, everything else in fp16", is_default=True),
            Setting("best", "int8, entropy, everything else in fp32, decode tail excluded"),
        ),
    ),
    Tool(
        "ort",
        "ONNX Runtime",
        "ort",
        (
            Setting(
                "default", "`quantize_static` with its own defaults, after its `quant_pre_process`", is_default=True
            ),
            Setting("best", "uint8 activations (asymmetric), weights per channel, min-max, decode tail excluded"),
            Setting("best-float-last", "the same, the last convolutions excluded too"),
        ),
    ),
    Tool(
        "aimet",
        "AIMET",
        "aimet",
        (
            Setting("default", "`QuantizationSimModel(model)`: int8, min-max", is_default=True),
            Setting("best", "Lite-MP: 30 % of the layers at int16, htp_v73 rules, decode tail in float"),
        ),
    ),
    Tool(
        "inc",
        "Neural Compressor",
        "inc",
        (
            Setting("default", "`PostTrainingQuantConfig()`: at most 100 photos, no tuning loop", is_default=True),
            Setting("best", "Q/DQ format, all photos, decode tail in float"),
        ),
    ),
    Tool(
        "quark",
        "Quark",
        "quark",
        (
            Setting("default", "`QConfig`'s own layer config: int8, percentile", is_default=True),
            Setting(
                "best",
                "percentile, weights per channel, cross-layer equalization and bias correction, decode tail excluded; "
                "at most 64 photos",
            ),
        ),
    ),
)
TOOL_NAMES = tuple(tool.name for tool in TOOLS)


def label_of(tool: Tool, setting: Setting) -> str:
    """The name of a row: in file names, in the JSON and on the command line."""
    return f"{tool.name}-{setting.name}"


OPENVINO_TOOL = next(tool for tool in TOOLS if tool.name == "nncf")
"""In its environment everything is measured that runs on OpenVINO."""


def chosen(only: tuple[str, ...], default_only: bool) -> tuple[tuple[Tool, Setting], ...]:
    """The rows of a run, in the order of the table."""
    return tuple(
        (tool, setting)
        for tool in TOOLS
        if tool.name in only
        for setting in tool.settings
        if setting.is_default or not default_only
    )
