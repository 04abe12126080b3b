"""List the names in TensorRT's Python bindings, without TensorRT's libraries and without a GPU.

How the JSON files beside this one were made, each with a Python of the wheel's own version and gcc and nm on PATH::

    pip download --no-deps tensorrt-cu13-bindings==11.4.0.106 tensorrt-cu13-bindings==10.16.1.11
    pip download --no-deps --only-binary=:all: --python-version 310 tensorrt-cu12-bindings==10.3.0
    pip download --no-deps --only-binary=:all: --python-version 310 tensorrt==8.5.2.2 tensorrt==8.6.0
    python3.11 list_names.py tensorrt_cu13_bindings-11.4.0.106-cp311-*.whl 11.4.json

Every symbol that the bindings miss stands in a stub library, as a block of zeros: enough to import and to look around,
not to call anything.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CLASSES = (
    "Builder", "BuilderFlag", "CudaGraphStrategy", "DataType", "EngineInspector", "HardwareCompatibilityLevel",
    "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer", "ILogger",
    "INetworkDefinition", "IOptimizationProfile", "IOutputAllocator", "IProfiler", "ITensor", "ITimingCache",
    "LayerInformationFormat", "LayerType", "Logger", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser",
    "OnnxParserFlag", "ParserError", "ProfilingVerbosity", "Runtime", "TensorIOMode", "TensorLocation",
)  # fmt: skip
_LIST = """
import ctypes, json, sys
sys.setdlopenflags(1)
sys.path.insert(0, sys.argv[1])
package = __import__(sys.argv[2])
found = {name: [each for each in dir(getattr(package, name)) if not each.startswith("_")]
         for name in sys.argv[3:] if hasattr(package, name)}
print(json.dumps({"version": package.__version__, "classes": found}))
"""


def main(wheel: Path, out: Path) -> None:
    """Write the names of every class in ``CLASSES`` that the wheel has to ``out``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            wanted = [each for each in archive.namelist() if re.search(r"^[^/]+/(tensorrt\.so|__init__\.py)$", each)]
            archive.extractall(folder, wanted)
        bindings = next(folder.rglob("tensorrt.so"))
        stubs = _stub_libraries(bindings, folder / "stubs")
        command = [sys.executable, "-c", _LIST, str(folder), bindings.parent.name, *CLASSES]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "LD_BIND_NOW": ""}
        listed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    out.write_text(json.dumps(json.loads(listed), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _stub_libraries(bindings: Path, folder: Path) -> Path:
    """A library of each name that the bindings ask for; all of their open symbols are in each."""
    folder.mkdir()
    dynamic = subprocess.run(["readelf", "-d", bindings], check=True, capture_output=True, text=True).stdout
    names = re.findall(r"NEEDED.*\[(libnv[^\]]+)\]", dynamic)
    listed = subprocess.run(["nm", "-D", "--undefined-only", bindings], check=True, capture_output=True, text=True)
    symbols = [line.split()[-1] for line in listed.stdout.splitlines() if " U " in line and "@" not in line]
    # Of Python, not of TensorRT.
    open_symbols = sorted({symbol for symbol in symbols if not symbol.startswith(("Py", "_Py"))})
    source = folder / "stub.c"
    source.write_text("".join(f"char {symbol}[4096];\n" for symbol in open_symbols), encoding="utf-8")
    for name in names:
        library = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(library, check=True)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
