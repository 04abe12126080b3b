"""TensorRT on an NVIDIA GPU: the runner of engines that ``qtool build`` wrote, for TensorRT 8.5 to 11.4."""

from __future__ import annotations

import queue
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from qtoolkit.backends.cuda_memory import Cuda, open_cuda
from qtoolkit.backends.engine_file import EngineRecord, check_engine, read_engine
from qtoolkit.backends.nvidia_driver import Gpu, find_gpu
from qtoolkit.backends.runner import Condition, Runner, Signature
from qtoolkit.backends.tensorrt_inspector import EngineLayer, inspect_engine
from qtoolkit.backends.tensorrt_lane import Lane, engine_signature
from qtoolkit.backends.tensorrt_library import TensorRtName, load_tensorrt
from qtoolkit.backends.tensorrt_messages import message_recorder, problems
from qtoolkit.backends.tensorrt_profile import median_times, profile_recorder, times_by_node
from qtoolkit.errors import ModelFileError, UsageError

__all__ = ["TensorRtGpu"]


class TensorRtGpu(Runner):
    """An engine file on the first GPU.

    ``model``: path of an engine, its record beside it; one that is for another TensorRT, GPU or machine is refused
    before TensorRT sees it, and so is one of another network where ``onnx_sha256`` names the wanted one. ``streams``:
    so many inferences may run at once, from as many threads; each has an execution context and buffers of its own.
    ``cuda_graph``: an inference is recorded once and launched as one (needs cuda-python). ``threads`` is taken for
    the sake of the other runners: the processor only starts the GPU's work.

    Copies of inputs and outputs between host and GPU belong to an inference. Opening it without a GPU, a driver or a
    library raises UnavailableError.
    """

    name = "tensorrt"
    library: ClassVar[TensorRtName] = "tensorrt"

    def __init__(
        self,
        model: Path | str,
        *,
        threads: int | None = None,
        streams: int = 1,
        cuda_graph: bool = False,
        onnx_sha256: str | None = None,
    ) -> None:
        super().__init__()
        if streams < 1:
            raise UsageError(
                "the number of streams cannot be used", expected="1 or more", found=str(streams), do="give another"
            )
        self._path = _engine_path(model)
        self._streams = streams
        self._cuda_graph = cuda_graph
        self._onnx_sha256 = onnx_sha256
        self._record: EngineRecord | None = None
        self._gpu: Gpu | None = None
        self._cuda: Cuda | None = None
        self._engine: Any = None
        self._recorder: Any = None
        self._lanes: list[Lane] = []
        self._idle: queue.SimpleQueue[Lane] = queue.SimpleQueue()

    def conditions(self) -> dict[str, Condition]:
        """Runtime, version, GPU, dialect, precision, streams and whether a CUDA graph is used."""
        record, gpu = self._record, self._gpu
        return {
            "runtime": self.library,
            "version": record.version if record else None,
            "provider": gpu.name if gpu else None,
            "threads": 1,
            "device": gpu.name if gpu else None,
            "cuda": gpu.cuda if gpu else None,
            "memory_by": self._cuda.name if self._cuda else None,
            "dialect": record.dialect if record else None,
            "precision": record.precision if record else None,
            "tf32": record.tf32 if record else None,
            "streams": self._streams,
            "cuda_graph": self._cuda_graph,
        }

    def _open(self) -> Signature:
        # In this order: without a driver TensorRT's Runtime may end the process, and a wrong engine takes long to fail.
        self._gpu = find_gpu()
        trt = load_tensorrt(self.library)
        plan, record = read_engine(self._path)
        check_engine(
            self._path, record, library=self.library, version=trt.__version__, gpu=self._gpu.name,
            compute_capability=self._gpu.compute_capability, onnx_sha256=self._onnx_sha256,
        )  # fmt: skip
        self._record = record
        self._cuda = open_cuda(graphs=self._cuda_graph)
        self._recorder = message_recorder(trt)
        with self._cuda.current():
            self._engine = trt.Runtime(self._recorder).deserialize_cuda_engine(plan)
            if self._engine is None:
                raise self._refused()
            signature = engine_signature(trt, self._engine)
            for _ in range(self._streams):
                lane = Lane(trt, self._engine, self._cuda, signature, self._cuda_graph, self._recorder)
                self._lanes.append(lane)
                self._idle.put(lane)
        return signature

    def _refused(self) -> ModelFileError:
        said = problems(self._recorder.messages)
        return ModelFileError(
            f"TensorRT cannot load the engine {self._path}",
            expected="an engine of this TensorRT and this GPU",
            found=said[-1].text[:300] if said else "no reason given",
            do="build it again here with `qtool build`",
        )

    def _infer(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Sequence[NDArray[Any]]:
        with self._lane() as lane:
            return lane.infer(feeds, outputs)

    def _close(self) -> None:
        if self._cuda is not None:
            with self._cuda.current():
                for lane in self._lanes:
                    lane.close()
        self._lanes = []
        self._idle = queue.SimpleQueue()
        self._engine = self._cuda = self._recorder = None

    def layers(self, onnx_nodes: Collection[str]) -> tuple[EngineLayer, ...]:
        """The engine's layers and their types; ``onnx_nodes`` are the names of the network's nodes."""
        self._check_open()
        return inspect_engine(load_tensorrt(self.library), self._engine, onnx_nodes)

    def node_times_ms(
        self,
        feeds: Mapping[str, NDArray[Any]],
        onnx_nodes: Collection[str],
        main_nodes: Collection[str],
        *,
        runs: int = 20,
        warm_up: int = 5,
    ) -> dict[str, float]:
        """Milliseconds per ONNX node and inference: median over ``runs`` after ``warm_up``, slowest first.

        As ``tensorrt_profile.times_by_node`` counts them. The profiler waits between layers: read these as shares.
        """
        self._check_open()
        trt = load_tensorrt(self.library)
        names = list(self.output_names)
        with self._lane() as lane:
            profiler = profile_recorder(trt)
            for _ in range(warm_up):
                lane.infer(feeds, names)
            lane.context.profiler = profiler
            for _ in range(runs):
                lane.infer(feeds, names)
            times = median_times(profiler.times)
            lane.context.profiler = None
        return times_by_node(times, self.layers(onnx_nodes), main_nodes, onnx_nodes)

    def _check_open(self) -> None:
        _ = self.signature

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        """A lane that nobody else uses meanwhile; waits for one where all are busy."""
        lane = self._idle.get()
        try:
            if self._cuda is None:  # closed by another thread
                self._check_open()
                return
            with self._cuda.current():
                yield lane
        finally:
            self._idle.put(lane)


def _engine_path(model: Any) -> Path:
    if not isinstance(model, (str, Path)) or Path(model).suffix.lower() == ".onnx":
        raise UsageError(
            "TensorRT runs engines, not ONNX networks",
            expected="the path of an engine file",
            found=str(model) if isinstance(model, (str, Path)) else type(model).__name__,
            do="build one: qtool build MODEL.onnx --target tensorrt",
        )
    return Path(model)
