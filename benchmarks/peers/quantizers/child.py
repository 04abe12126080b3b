"""What every quantizing script shares: its job, the photos one at a time, and the answer on the last line of stdout.

Runs in the tool's own environment: numpy, onnx and the standard library only, Python 3.10 or newer.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import onnx


class Photos:
    """The calibration photos of an npz with one array (1, 3, H, W) float32, RGB from 0 to 1, per photo.

    A photo is read when it is asked for, so that the memory of a process is the tool's and not that of the set.
    """

    def __init__(self, path: str) -> None:
        self._arrays = np.load(path)
        self._names = sorted(self._arrays.files)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Any:
        return self._arrays[self._names[index]]

    def __iter__(self) -> Iterator[Any]:
        return (self._arrays[name] for name in self._names)


class Feeds:
    """The photos as ``{input: photo}``, as often as one iterates."""

    def __init__(self, name: str, photos: Photos, limit: int | None = None) -> None:
        self._name, self._photos = name, photos
        self._count = len(photos) if limit is None else min(limit, len(photos))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({self._name: self._photos[index]} for index in range(self._count))


class Reader:
    """The feeds in the form of onnxruntime's CalibrationDataReader, which Quark and ModelOpt take too."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        self._next = iter(self._feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._next, None)

    def __len__(self) -> int:
        return len(self._feeds)


@dataclass(frozen=True)
class Job:
    """What the parent asks for; paths are absolute, and ``network`` may be written on (it is this job's copy).

    ``tail_outputs``: tensors that the decode tail makes; ``last_outputs``: those that the last layers make.
    """

    network: str
    input: str
    photos: str
    out: str
    setting: str
    tail_outputs: list[str]
    last_outputs: list[str]
    calibration_folder: str
    evaluation_folder: str

    def feeds(self, limit: int | None = None) -> Feeds:
        return Feeds(self.input, Photos(self.photos), limit)

    def tail_nodes(self, model: Any, last_layers: bool = False) -> list[str]:
        """Names of the nodes of ``model`` that make the tail's tensors, and with ``last_layers`` the last layers too.

        Found by tensors, not by name: a tool's own preparation may rename nodes, but it keeps their outputs.
        """
        graph = (onnx.load(model) if isinstance(model, str) else model).graph
        wanted = {*self.tail_outputs, *(self.last_outputs if last_layers else ())}
        return [node.name for node in graph.node if wanted.intersection(node.output) and node.op_type != "Constant"]


def main(distribution: str, settings: dict[str, Callable[[Job], Any]]) -> None:
    """Do the job in the file that is named on the command line; say how long it took, and what ran."""
    with open(sys.argv[1], encoding="utf-8") as stream:
        document = json.load(stream)
    job = Job(**{field.name: document[field.name] for field in fields(Job)})
    started = time.perf_counter()
    notes = settings[job.setting](job)
    answer = {
        "version": importlib.metadata.version(distribution),
        "seconds_inside": round(time.perf_counter() - started, 2),
        "notes": notes or {},
    }
    print("\n" + json.dumps(answer))


def with_opset(model: Any, opset: int) -> Any:
    """``model`` raised to ``opset`` where it has a lower one."""
    found = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return onnx.version_converter.convert_version(model, opset) if found < opset else model
