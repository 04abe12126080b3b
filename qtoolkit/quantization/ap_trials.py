"""COCO AP that each layer quantized alone loses, on labelled photos: the ground truth of the other metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from qtoolkit.data.images import read_image
from qtoolkit.data.letterbox import Letterbox
from qtoolkit.data.people import People
from qtoolkit.data.samples import Sample, Samples
from qtoolkit.errors import DataSetError
from qtoolkit.evaluation.coco_ap import MAX_DETECTIONS, coco_keypoint_ap
from qtoolkit.evaluation.heads import Head
from qtoolkit.evaluation.pose_network import people_in_image

__all__ = ["ApJudge"]


class ApJudge:
    """Collects the people of every layer's trial: ``trials.run_trials`` runs on ``feeds()`` and calls the judge.

    Kept are the people that COCO's metrics look at, 20 of an image, decoded as an evaluation decodes them.
    """

    def __init__(self, head: Head, photos: Samples, input_name: str) -> None:
        self._head, self._photos, self._input_name = head, photos, input_name
        self._seen: list[Sample] = []
        self._people: dict[str | None, dict[int, People]] = {}

    def feeds(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The photos as feeds, (1, 3, H, W) float32 RGB 0–1; those that cannot be decoded are left out."""
        for sample in self._photos:
            try:
                image_bgr = read_image(sample.path)
            except DataSetError:
                continue
            self._seen.append(sample)
            yield {self._input_name: Letterbox.to_tensor(self._letterbox(sample).apply(image_bgr))}

    def __call__(self, photo: int, layer: str | None, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Keep the people of one photo, the how many-th of ``feeds()``; ``layer`` None is the float network."""
        sample = self._seen[photo]
        people = people_in_image(outputs, self._head, self._letterbox(sample), max_people=MAX_DETECTIONS)
        # Trials of one layer come from one thread at a time.
        self._people.setdefault(layer, {})[sample.image_id] = people

    def ap(self, layer: str | None) -> float:
        """COCO keypoint AP, 0–100, with ``layer`` quantized alone; None is the float network.

        Raises as ``coco_keypoint_ap`` does: DataSetError where nobody is labelled on the photos.
        """
        image_ids = [sample.image_id for sample in self._seen]
        labels = self._photos.annotations
        truth = (
            {"images": [], "annotations": [], "categories": []} if labels is None else labels.ground_truth(image_ids)
        )
        return coco_keypoint_ap(truth, self._people.get(layer, {}), image_ids).ap

    def _letterbox(self, sample: Sample) -> Letterbox:
        return Letterbox.fit(sample.size_wh, self._head.input_size_wh)
