"""A network that finds people: image in, people in pixels of that image out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtoolkit.backends.runner import Runner, TensorSpec
from qtoolkit.backends.throughput import map_in_order
from qtoolkit.data.images import read_image
from qtoolkit.data.letterbox import Letterbox
from qtoolkit.data.people import People
from qtoolkit.data.samples import Sample, Samples, SkippedImage
from qtoolkit.errors import DataSetError, ModelFileError, UsageError
from qtoolkit.evaluation.decode import DEFAULT_SCORE_THRESHOLD, decode
from qtoolkit.evaluation.heads import Head, detect_head
from qtoolkit.evaluation.nms import DEFAULT_IOU_THRESHOLD, MAX_PEOPLE, non_maximum_suppression

__all__ = ["PoseNetwork", "people_in_image", "predict_set"]


@dataclass(frozen=True, eq=False)
class PoseNetwork:
    """An open runner with its head: finds the people of one image after the other.

    score_threshold  people with a lower score are dropped (0–1); 0.001 for AP, about 0.5 for pictures
    iou_threshold    of two boxes that overlap more, one stays (0–1); not used where the network has its own NMS
    max_people       per image

    Raises ModelFileError where the network does not take one RGB image of fixed size, UsageError where the head was
    found for another input size.
    """

    runner: Runner
    head: Head
    score_threshold: float = DEFAULT_SCORE_THRESHOLD
    iou_threshold: float = DEFAULT_IOU_THRESHOLD
    max_people: int = MAX_PEOPLE

    def __post_init__(self) -> None:
        found = _input_size_wh(self.runner)
        if self.head.input_size_wh != found:
            raise UsageError(
                "the pose head was found for another input size",
                expected=f"a head for {found} (W, H)",
                found=f"a head for {self.head.input_size_wh}",
                do="find the head again for this network",
            )

    @classmethod
    def from_runner(
        cls,
        runner: Runner,
        head: str | None = None,
        score_threshold: float = DEFAULT_SCORE_THRESHOLD,
        iou_threshold: float = DEFAULT_IOU_THRESHOLD,
    ) -> PoseNetwork:
        """The network of an open ``runner``, its head found by ``detect_head``; ``head`` is the user's --head.

        Raises HeadError where no head, or more than one, fits.
        """
        found = detect_head(runner.output_shapes, _input_size_wh(runner), head)
        return cls(runner, found, score_threshold, iou_threshold)

    @property
    def input_size_wh(self) -> tuple[int, int]:
        """(W, H) of the network's input, pixels."""
        return self.head.input_size_wh

    def feeds(self, image_bgr: NDArray[np.uint8]) -> tuple[dict[str, NDArray[Any]], Letterbox]:
        """What the runner takes for an image (h, w, 3) uint8 BGR, and the letterbox that leads back."""
        h, w = image_bgr.shape[:2]
        letterbox = Letterbox.fit((w, h), self.input_size_wh)
        tensor = letterbox.to_tensor(letterbox.apply(image_bgr))
        name, spec = _image_input(self.runner)
        return {name: tensor.astype(spec.dtype, copy=False)}, letterbox

    def people(self, image_bgr: NDArray[np.uint8]) -> People:
        """The people of an image (h, w, 3) uint8 BGR, most confident first, in its pixels, clipped to it."""
        feeds, letterbox = self.feeds(image_bgr)
        outputs = self.runner.infer(feeds, self.head.outputs)
        return people_in_image(
            outputs,
            self.head,
            letterbox,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_people=self.max_people,
        )


def people_in_image(
    outputs: Mapping[str, NDArray[Any]],
    head: Head,
    letterbox: Letterbox,
    *,
    score_threshold: float = DEFAULT_SCORE_THRESHOLD,
    iou_threshold: float = DEFAULT_IOU_THRESHOLD,
    max_people: int = MAX_PEOPLE,
) -> People:
    """People in pixels of the original image, clipped to it, from the outputs of a network for its letterboxed image.

    Most confident first. Raises as ``decode`` and ``non_maximum_suppression`` do.
    """
    people = decode(outputs, head, score_threshold)
    if head.nms_inside:
        kept = np.argsort(-people.scores, kind="stable")[:max_people]
    else:
        kept = non_maximum_suppression(people.boxes_xyxy, people.scores, iou_threshold, max_people)
    people = people.select(kept)
    points = letterbox.points_to_image(people.keypoints[..., :2])
    keypoints = np.concatenate([points, people.keypoints[..., 2:]], axis=-1)
    boxes_xyxy = letterbox.boxes_to_image(people.boxes_xyxy)
    return People(boxes_xyxy, people.scores, keypoints).clipped(letterbox.image_size_wh)


def predict_set(
    network: PoseNetwork,
    samples: Samples | Sequence[Sample],
    progress: Callable[[int, int], None] | None = None,
    *,
    workers: int = 1,
) -> tuple[dict[int, People], tuple[SkippedImage, ...]]:
    """The people of every image of a data set by image id, and the images that could not be read.

    ``workers`` images are under way at a time: with a runner of one thread each, more images a second than one after
    the other with all threads.

    A failed image has no entry among the predictions: evaluate on ``predictions.keys()``, or it counts as an image
    without detections. A fault of the network itself (NaN, a wrong head) is raised and names the image.
    """
    predictions: dict[int, People] = {}
    failures: list[SkippedImage] = []
    found = map_in_order(lambda sample: _people_or_reason(network, sample), samples, workers)
    for index, (sample, people) in enumerate(zip(samples, found, strict=True)):
        if isinstance(people, People):
            predictions[sample.image_id] = people
        else:
            failures.append(SkippedImage(sample.path, people))
        if progress is not None:
            progress(index + 1, len(samples))
    return predictions, tuple(failures)


def _people_or_reason(network: PoseNetwork, sample: Sample) -> People | str:
    try:
        return network.people(read_image(sample.path))
    except DataSetError as error:
        return error.found or error.what
    except ModelFileError as error:
        what = f"{error.what} (image {sample.path.name})"
        raise type(error)(what, expected=error.expected, found=error.found, do=error.do) from error


def _image_input(runner: Runner) -> tuple[str, TensorSpec]:
    inputs = runner.signature.inputs
    name, spec = next(iter(inputs.items()), ("", None))
    takes_image = spec is not None and len(spec.shape) == 4 and spec.shape[0] in (1, None) and spec.shape[1] == 3
    if len(inputs) != 1 or spec is None or not takes_image or not np.issubdtype(spec.dtype, np.floating):
        raise ModelFileError(
            "the network does not take one image",
            expected="one input of 1×3×H×W floats: RGB from 0 to 1",
            found=", ".join(f"{name}: {spec}" for name, spec in inputs.items()) or "no inputs",
            do="export the network with its image as the only input, channels first, and a batch of 1",
        )
    return name, spec


def _input_size_wh(runner: Runner) -> tuple[int, int]:
    name, spec = _image_input(runner)
    h, w = spec.shape[2:]
    if h is None or w is None:
        raise ModelFileError(
            "the network's input has no fixed size",
            expected="one input of 1×3×H×W with H and W fixed",
            found=f"{name}: {spec}",
            do="fix the size with --input-size",
        )
    return w, h
