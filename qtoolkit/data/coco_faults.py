"""What can be wrong inside a COCO person_keypoints file, found in one go and told in one message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qtoolkit.data.skeletons import Skeleton
from qtoolkit.errors import DataSetError

__all__ = [
    "MAX_LISTED_FAULTS",
    "CocoFaults",
    "find_annotation_faults",
    "find_category_faults",
    "find_image_faults",
    "find_layout_faults",
]

MAX_LISTED_FAULTS = 20
"""So many faults are told with their place; the rest is counted."""

_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "num_keypoints", "keypoints")
_NUMBER_TYPES = frozenset({int, float})
_ID_LIMIT = 2**63


class CocoFaults:
    """The faults found so far in the file at ``path``: a count per kind, and where the first ones are."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._counts: dict[str, int] = {}
        self._listed: list[str] = []

    def add(self, kind: str, place: str) -> None:
        """Note one fault: ``kind`` groups it with its like, ``place`` says where and what."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if len(self._listed) < MAX_LISTED_FAULTS:
            self._listed.append(f"{place}: {kind}")

    @property
    def total(self) -> int:
        """How many faults were noted."""
        return sum(self._counts.values())

    def raise_if_any(self) -> None:
        """Raise a DataSetError that counts all faults by kind and lists the first 20, where there are any."""
        if not self.total:
            return
        counts = ", ".join(f"{count} × {kind}" for kind, count in self._counts.items())
        lines = [counts, *(f"    {line}" for line in self._listed)]
        if self.total > len(self._listed):
            lines.append(f"    … and {self.total - len(self._listed)} more")
        raise DataSetError(
            f"the annotation file {self._path} has {self.total} fault{'s' if self.total > 1 else ''}",
            expected="COCO person_keypoints labels (cocodataset.org/#format-data)",
            found="\n".join(lines),
            do="correct these entries or take them out of the file",
        )


def find_layout_faults(document: Any, faults: CocoFaults) -> None:
    """An object with the lists images, annotations and categories; at least one image."""
    if not isinstance(document, dict):
        faults.add(f"the file holds a {_kind_of(document)}, not an object", "top level")
        return
    for key in ("images", "annotations", "categories"):
        if key not in document:
            faults.add(f"key {key!r} is missing", "top level")
        elif not isinstance(document[key], list):
            faults.add(f"not a list but a {_kind_of(document[key])}", f"{key!r}")
    if document.get("images") == []:
        faults.add("there is no image", "'images'")


def find_category_faults(categories: list[Any], skeleton: Skeleton, faults: CocoFaults) -> tuple[int, frozenset[int]]:
    """Id of the one category with keypoints, which must be those of ``skeleton``, and ids of all other categories."""
    ids = [c.get("id") if isinstance(c, dict) else None for c in categories]
    if not all(_is_id(category_id) for category_id in ids) or len(set(ids)) != len(ids):
        faults.add("each category must be an object with a whole number of its own as id", "'categories'")
        return 0, frozenset()
    with_keypoints = [c for c in categories if isinstance(c.get("keypoints"), list) and c["keypoints"]]
    if len(with_keypoints) != 1:
        faults.add(f"{len(with_keypoints)} categories have a list 'keypoints', expected exactly 1", "'categories'")
        return 0, frozenset()
    person = with_keypoints[0]
    place = f"category {person['id']}"
    found = tuple(str(name).lower().replace("-", "_").replace(" ", "_") for name in person["keypoints"])
    if len(found) != skeleton.keypoint_count:
        faults.add(f"{len(found)} keypoints, expected the {skeleton.keypoint_count} of {skeleton.name}", place)
    elif found != skeleton.keypoint_names:
        index = next(i for i, name in enumerate(skeleton.keypoint_names) if found[i] != name)
        faults.add(f"keypoint {index} is {found[index]!r}, expected {skeleton.keypoint_names[index]!r}", place)
    return person["id"], frozenset(c["id"] for c in categories if c["id"] != person["id"])


def find_image_faults(images: list[Any], faults: CocoFaults) -> None:
    """Each image: an id of its own, a file name, a size of at least one pixel."""
    seen: set[int] = set()
    for index, image in enumerate(images):
        if not _has_keys(image, _IMAGE_KEYS, "image", index, faults):
            continue
        place = f"image {image['id']!r}"
        if not _is_id(image["id"]):
            faults.add("the id is not a whole number", place)
        elif image["id"] in seen:
            faults.add("the image id is used twice", place)
        else:
            seen.add(image["id"])
        if not isinstance(image["file_name"], str) or not image["file_name"].strip():
            faults.add("the file name is not a text, or empty", place)
        if not all(_is_id(image[key]) and image[key] > 0 for key in ("width", "height")):
            faults.add("width and height are not whole numbers above 0", place)


def find_annotation_faults(
    annotations: list[Any], image_ids: set[int], person_id: int, skeleton: Skeleton, faults: CocoFaults
) -> None:
    """Each annotation: an id of its own, a known image, the person category, a finite box, area and keypoints."""
    seen: set[int] = set()
    for index, annotation in enumerate(annotations):
        if not _has_keys(annotation, _ANNOTATION_KEYS, "annotation", index, faults):
            continue
        found = list(_annotation_faults(annotation, image_ids, person_id, skeleton))
        annotation_id = annotation["id"]
        if not _is_id(annotation_id):
            found.append("the id is not a whole number")
        elif annotation_id in seen:
            found.append("the annotation id is used twice")
        else:
            seen.add(annotation_id)
        for kind in found:
            # Where the image is the fault, its id is what one looks for.
            image = f" (image {annotation['image_id']!r})" if "image" in kind else ""
            faults.add(kind, f"annotation {annotation_id!r}{image}")


def _annotation_faults(
    annotation: dict[str, Any], image_ids: set[int], person_id: int, skeleton: Skeleton
) -> Iterator[str]:
    image_id = annotation["image_id"]
    if not _is_id(image_id) or image_id not in image_ids:
        yield "the image id is not in 'images'"
    if not _is_id(annotation["category_id"]) or annotation["category_id"] != person_id:
        yield "the category id is not in 'categories'"
    if type(annotation["iscrowd"]) not in (int, bool) or annotation["iscrowd"] not in (0, 1):
        yield "iscrowd is neither 0 nor 1"
    if not _is_id(annotation["num_keypoints"]) or not 0 <= annotation["num_keypoints"] <= skeleton.keypoint_count:
        yield f"num_keypoints is not a whole number from 0 to {skeleton.keypoint_count}"
    yield from _number_faults("bbox", annotation["bbox"], 4)
    yield from _number_faults("area", [annotation["area"]], 1)
    yield from _number_faults("keypoints", annotation["keypoints"], 3 * skeleton.keypoint_count)


def _number_faults(key: str, values: Any, length: int) -> Iterator[str]:
    """Faults of ``length`` finite numbers; widths, heights and areas not negative; visibilities 0, 1 or 2."""
    if not isinstance(values, list) or len(values) != length:
        found = f"{len(values)} values" if isinstance(values, list) else f"a {_kind_of(values)}"
        yield f"{key} holds {found}, expected {length}"
    elif not _NUMBER_TYPES.issuperset(map(type, values)):
        yield f"{key} is not made of numbers" if length > 1 else f"{key} is not a number"
    # The largest float64 is 1.8e308, so this also refuses whole numbers that no float can hold.
    elif not all(-1.7e308 < value < 1.7e308 for value in values):
        yield f"{key} is NaN or infinite"
    elif key == "bbox" and min(values[2:]) < 0:
        yield "bbox has a negative width or height"
    elif key == "area" and values[0] < 0:
        yield "area is negative"
    elif key == "keypoints" and not {0, 1, 2}.issuperset(values[2::3]):
        yield "a visibility is not 0, 1 or 2"


def _has_keys(entry: Any, keys: tuple[str, ...], what: str, index: int, faults: CocoFaults) -> bool:
    if not isinstance(entry, dict):
        faults.add(f"not an object but a {_kind_of(entry)}", f"{what} at position {index}")
        return False
    missing = [key for key in keys if key not in entry]
    place = f"{what} {entry['id']!r}" if "id" in entry else f"{what} at position {index}"
    for key in missing:
        faults.add(f"key {key!r} is missing", place)
    return not missing


def _is_id(value: Any) -> bool:
    # bool is an int in Python, and never an id in a file.
    return type(value) is int and -_ID_LIMIT <= value < _ID_LIMIT


def _kind_of(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", int: "number", float: "number", bool: "truth value"}
    return names.get(type(value), "null")
