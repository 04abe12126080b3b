"""AP of one ONNX network, float or quantized, on a labelled data set, with the conditions it holds under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from pydantic import BaseModel, ConfigDict

from qtoolkit.artifacts.files import sha256_file
from qtoolkit.backends.engine_file import check_engine_size, engine_backend, is_engine, read_engine
from qtoolkit.backends.onnxruntime_cpu import OnnxRuntimeCpu
from qtoolkit.backends.runner import Condition, Runner
from qtoolkit.backends.table import runner_class
from qtoolkit.data.coco import CocoKeypoints
from qtoolkit.data.people import People
from qtoolkit.data.samples import Samples, SkippedImage
from qtoolkit.data.skeletons import COCO17
from qtoolkit.data.sources import DataSource
from qtoolkit.errors import DataSetError, HeadError
from qtoolkit.evaluation.coco_ap import MAX_DETECTIONS, ApMetrics, coco_keypoint_ap
from qtoolkit.evaluation.decode import DEFAULT_SCORE_THRESHOLD
from qtoolkit.evaluation.nms import DEFAULT_IOU_THRESHOLD
from qtoolkit.evaluation.pose_network import PoseNetwork, predict_set
from qtoolkit.graph.load import prepare_network
from qtoolkit.graph.read import read_model

__all__ = ["EvaluationResult", "NetworkEvaluation", "coco_results", "evaluate_network", "runnable_network"]


class NetworkEvaluation(BaseModel):
    """The COCO keypoint metrics of one network, 0–100 (None: nobody of that size is labelled), and their conditions.

    ``images`` were evaluated, ``skipped`` could not be used; ``data_sha256`` is of photos, ids and labels. ``head`` is
    the pose head that was read, ``input_size_wh`` in pixels. ``runtime`` holds the runtime, its version, provider,
    threads and options.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    model_sha256: str
    head: str
    input_size_wh: tuple[int, int]
    data: str
    data_sha256: str
    images: int
    skipped: int
    score_threshold: float
    iou_threshold: float
    runtime: dict[str, Condition]
    ap: float
    ap50: float
    ap75: float
    ap_m: float | None
    ap_l: float | None
    ar: float

    @property
    def metrics(self) -> dict[str, float | None]:
        """``ap``, ``ap50``, ``ap75``, ``ap_m``, ``ap_l`` and ``ar`` by name."""
        return {name: getattr(self, name) for name in ApMetrics.__dataclass_fields__}


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The record of an evaluation, the people found (image id → People, pixels of the photo), the photos left out."""

    record: NetworkEvaluation
    people: Mapping[int, People]
    skipped: tuple[SkippedImage, ...]


def evaluate_network(
    model: Path,
    source: DataSource,
    *,
    head: str | None = None,
    images: int | None = None,
    input_size_wh: tuple[int, int] | None = None,
    threads: int | None = None,
    score_threshold: float = DEFAULT_SCORE_THRESHOLD,
    iou_threshold: float = DEFAULT_IOU_THRESHOLD,
    backend: Callable[..., Runner] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Run a network on the evaluation part of ``source``, and compare what it finds with the labels.

    The file itself is run, an ONNX network or an engine that ``qtool build`` wrote; where a network leaves a dimension
    of its input open, or ``input_size_wh`` is given, a copy with a fixed input (``prepare_network``). ``images`` takes
    the first so many photos by id. ``head``: KIND or KIND:OUTPUT where the outputs fit several. Thresholds (0–1): see
    ``PoseNetwork``. ``progress`` is called with (done, total). ``backend`` makes the runner from the network and
    ``threads``, such as a board; without it ONNX Runtime runs networks, and an engine its own library. ``workers``
    photos are under way at a time, which a board may need.

    Raises ModelFileError for a file that is no network or does not run, HeadError where no head fits or its keypoints
    are not those of the labels, DataSetError for a data set without labels, faulty labels, or no usable photo,
    UnavailableError for an engine without its GPU or library, UsageError for an engine and another input size.
    """
    network, own = _with_its_backend(model, input_size_wh)
    with (backend or own)(network, threads=threads) as runner:
        poses = PoseNetwork.from_runner(runner, head, score_threshold, iou_threshold)
        _check_keypoints(poses, model)
        samples, labels = _labelled_samples(source, images)
        people, failures = predict_set(poses, samples, progress, workers=workers)
        conditions = runner.conditions()
    skipped = (*samples.skipped, *failures)
    record = NetworkEvaluation(
        model=model.name,
        model_sha256=sha256_file(model),
        head=poses.head.kind,
        input_size_wh=poses.input_size_wh,
        data=source.name,
        data_sha256=samples.sha256,
        images=len(people),
        skipped=len(skipped),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        runtime=conditions,
        **_metrics(people, labels),
    )
    return EvaluationResult(record, people, skipped)


def coco_results(people: Mapping[int, People], category_id: int = 1) -> list[dict[str, Any]]:
    """People as COCO results: image_id, category_id, keypoints (51 numbers: x, y, confidence), score.

    Of each image the 20 most confident, because the COCO metrics look at no more. Pixels of the original image.
    """
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "keypoints": [round(value, 3) for value in keypoints.ravel().tolist()],
            "score": score,
        }
        for image_id, found in people.items()
        for keypoints, score in list(zip(found.keypoints, found.scores.tolist(), strict=True))[:MAX_DETECTIONS]
    ]


def runnable_network(path: Path, input_size_wh: tuple[int, int] | None = None) -> Path | onnx.ModelProto:
    """The file itself; where it leaves a dimension of its input open, or a size is given, a copy with a fixed input.

    Raises ModelFileError for a file that is no ONNX network, and where the copy needs a size or cannot have it.
    """
    model = read_model(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape for value in model.graph.input if value.name not in weights]
    is_open = any(dim.dim_value < 1 for shape in shapes for dim in shape.dim)
    if input_size_wh is None and not is_open:
        return path
    return prepare_network(model, source=path.name, input_size_wh=input_size_wh, allow_quantized=True)


def _with_its_backend(
    path: Path, input_size_wh: tuple[int, int] | None
) -> tuple[Path | onnx.ModelProto, Callable[..., Runner]]:
    if is_engine(path):
        check_engine_size(path, input_size_wh)
        return path, runner_class(engine_backend(read_engine(path)[1]))
    return runnable_network(path, input_size_wh), OnnxRuntimeCpu


def _labelled_samples(source: DataSource, limit: int | None) -> tuple[Samples, CocoKeypoints]:
    # Asked of the source first: an hour of reading photos is not needed to find that nobody labelled them.
    samples = source.evaluation_samples(limit) if source.has_labels or source.evaluation is None else None
    if samples is None or samples.annotations is None:
        raise DataSetError(
            f"the data set {source.name} has no labels to evaluate with",
            expected="a part val with annotations (COCO person_keypoints JSON)",
            found="photos only",
            do="add them to its dataset.yaml; `qtool quantize` compares networks without labels (agreement)",
        )
    return samples, samples.annotations


def _check_keypoints(network: PoseNetwork, path: Path) -> None:
    labelled = len(COCO17.sigmas)
    if network.head.keypoint_count != labelled:
        raise HeadError(
            f"{path.name} and the labels have different skeletons",
            expected=f"{labelled} keypoints, those of COCO",
            found=f"a {network.head.kind} head with {network.head.keypoint_count} keypoints",
            do="evaluate a network that was trained for COCO's keypoints",
        )


def _metrics(people: Mapping[int, People], labels: CocoKeypoints) -> dict[str, Any]:
    """The metrics over the photos that were evaluated, rounded as in a scorecard."""
    metrics = coco_keypoint_ap(labels.ground_truth(people), people, people)
    values = {name: getattr(metrics, name) for name in ApMetrics.__dataclass_fields__}
    return {name: None if value is None else round(value, 3) for name, value in values.items()}
