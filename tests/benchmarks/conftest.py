"""The scripts of benchmarks/ are no package: their folders are put on the path, as Python does when it runs them."""

import sys
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
for _folder in (_BENCHMARKS, _BENCHMARKS / "peers", _BENCHMARKS / "peers" / "quantizers"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))
