"""qtool itself, by its command: the same photos as files, and one unlabelled photo, because it evaluates too."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from child import Job, main

from qtoolkit.cli.main import main as qtool


def quantize(job: Job, variant: str, *options: str) -> dict[str, Any]:
    folder = Path.cwd()
    (folder / "dataset.yaml").write_text(
        f"kind: images\nval: {{images: {json.dumps(job.evaluation_folder)}}}\n"
        f"calib: {{images: {json.dumps(job.calibration_folder)}}}\n",
        encoding="utf-8",
    )
    out = folder / "out"
    data = str(folder / "dataset.yaml")
    sys.argv = ["qtool", "quantize", job.network, "--data", data, "--runs", "0", "--quiet", "--out", str(out), *options]
    try:
        qtool()
    except SystemExit as end:
        if end.code:
            raise
    os.replace(out / f"model.{variant}.onnx", job.out)
    scorecard = json.loads((out / "scorecard.json").read_text(encoding="utf-8"))
    row = next(each for each in scorecard["rows"] if each["variant"] == variant)
    kept = ("layers_16bit", "layers_total", "macs_16bit_share")
    return {"calibration_sha256": scorecard["data"]["calibration_sha256"], **{name: row[name] for name in kept}}


if __name__ == "__main__":
    main(
        "qtoolkit",
        {
            "int8": lambda job: quantize(job, "int8"),
            "mixed": lambda job: quantize(job, "mixed", "--mixed", "0.3"),
            "openvino-int8": lambda job: quantize(job, "int8", "--target", "openvino-cpu"),
            "openvino-mixed": lambda job: quantize(job, "mixed", "--target", "openvino-cpu", "--mixed", "0.3"),
        },
    )
