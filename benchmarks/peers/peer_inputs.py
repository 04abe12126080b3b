"""What all tools get: one network, the same calibration photos, and the names of the decode tail."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qtoolkit.artifacts.files import atomic_path, sha256_file, write_bytes
from qtoolkit.artifacts.stages import StageStore
from qtoolkit.data.calibration_set import CalibrationSet, calibration_set_of, check_disjoint
from qtoolkit.data.images import read_image
from qtoolkit.data.letterbox import Letterbox
from qtoolkit.data.samples import Sample, Samples, Split, collect_samples
from qtoolkit.data.sources import DataSource, open_data_source
from qtoolkit.errors import DataSetError, UsageError
from qtoolkit.graph.layers import decode_tail, last_layers
from qtoolkit.graph.load import NetworkInput, load_network, network_input
from qtoolkit.graph.read import read_model
from qtoolkit.quantization.feeds import image_feeds

LATENCY_PHOTOS = 4


@dataclass(frozen=True, eq=False)
class Inputs:
    """Of one run. ``network`` is the user's own graph; nothing but missing node names was changed in it.

    ``unlabelled`` are further photos that agreement, which needs no labels, is measured on too: ids in no other set.
    """

    store: StageStore
    network: Path
    network_name: str
    network_sha256: str
    input: NetworkInput
    tail_outputs: tuple[str, ...]
    last_outputs: tuple[str, ...]
    data_name: str
    samples: Samples
    unlabelled: Samples | None
    calibration: CalibrationSet
    photos: Path
    calibration_folder: Path
    evaluation_folder: Path
    latency_feeds: Path

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.store.folder


def open_inputs(
    model: Path, data: Path, out: Path, images: int | None, calibration_images: int | None,
    unlabelled: int | None = 0, more_photos: Sequence[Path] = (),
) -> Inputs:  # fmt: skip
    """Check what was given, and write what the tools read below ``out/inputs``. Raises as ``qtool quantize`` does.

    ``unlabelled``: how many photos of the part unlabeled are looked at, None for all; ``more_photos``: folders of
    further photos without labels, all of which are.
    """
    source = open_data_source(data)
    samples = source.evaluation_samples(images)
    calibration = calibration_set_of(source, calibration_images)
    check_disjoint(calibration, samples)
    graph, prepared = named_network(model), load_network(model)
    folder = out / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    network = folder / "network.onnx"
    write_bytes(network, graph.SerializeToString(deterministic=True))
    tail, last = tail_tensors(prepared)
    inputs = Inputs(
        store=StageStore(out), network=network, network_name=model.name, network_sha256=sha256_file(network),
        input=network_input(prepared), tail_outputs=tail, last_outputs=last, data_name=source.name, samples=samples,
        unlabelled=_further_photos(source, unlabelled, more_photos, calibration, samples), calibration=calibration,
        photos=folder / "photos.npz", calibration_folder=folder / "calib", evaluation_folder=folder / "val",
        latency_feeds=folder / "latency.npy",
    )  # fmt: skip
    key = [calibration.sha256, list(inputs.input.shape), str(samples.samples[0].sha256)]
    inputs.store.run("inputs", key, [inputs.photos, inputs.latency_feeds], lambda: _write_photos(inputs))
    return inputs


def _further_photos(
    source: DataSource, limit: int | None, folders: Sequence[Path], calibration: CalibrationSet, samples: Samples
) -> Samples | None:
    parts = [] if source.unlabeled is None or limit == 0 else [(replace(source.unlabeled, annotations=None), limit)]
    parts += [(Split(folder), None) for folder in folders]
    found = [collect_samples(split, each) for split, each in parts]
    first, seen = max(samples.image_ids) + 1, {sample.sha256 for sample in samples}
    others: list[Sample] = []
    for photos in found:
        check_disjoint(calibration, photos)
        for sample in photos:
            if sample.sha256 not in seen:
                seen.add(sample.sha256)
                others.append(sample._replace(image_id=first + len(others)))
    skipped = tuple(skipped for photos in found for skipped in photos.skipped)
    return Samples(tuple(others), skipped, None) if others else None


def named_network(path: Path) -> onnx.ModelProto:
    """The network as it stands in the file, with a name for each node that has none: tools exclude nodes by name.

    Raises UsageError where its input has no fixed shape, which most of the tools cannot calibrate.
    """
    model = read_model(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    images = [value for value in model.graph.input if value.name not in weights]
    if any(dim.dim_value < 1 for value in images for dim in value.type.tensor_type.shape.dim):
        raise UsageError(
            f"the input of {path.name} has no fixed shape",
            expected="a network with fixed shapes, batch 1",
            found="an open dimension",
            do="export it with a fixed size, or take the model.float.onnx of `qtool quantize --input-size`",
        )
    taken = {node.name for node in model.graph.node}
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
    return model


def tail_tensors(prepared: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tensors that the decode tail makes, and those that the last layers make; ``prepared`` by ``load_network``."""
    tail, last = decode_tail(prepared), set(last_layers(prepared))
    outputs = {node.name: list(node.output) for node in prepared.graph.node}
    tails = tuple(output for name, made in outputs.items() if name in tail for output in made)
    return tails, tuple(output for name, made in outputs.items() if name in last for output in made)


def write_photos(path: Path, photos: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """An npz of ``photos`` (name, array), not compressed, with one photo in memory at a time."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in photos:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def letterboxed(samples: Samples, size_wh: tuple[int, int]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Id and pixels (3, H, W) uint8 RGB of each evaluation photo as the network sees it; unreadable ones are left out.

    Divided by 255 in float32 they are the bytes of ``Letterbox.to_tensor``.
    """
    for sample in samples:
        try:
            image_bgr = read_image(sample.path)
        except DataSetError:
            continue
        h, w = image_bgr.shape[:2]
        yield f"{sample.image_id:012}", Letterbox.fit((w, h), size_wh).apply(image_bgr)[..., ::-1].transpose(2, 0, 1)


def _write_photos(inputs: Inputs) -> None:
    feeds = (feed[inputs.input.name] for feed in image_feeds(inputs.calibration.paths, inputs.input))
    write_photos(inputs.photos, ((f"{index:06}", array) for index, array in enumerate(feeds)))
    for folder in (inputs.calibration_folder, inputs.evaluation_folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for image, path in zip(inputs.calibration.images, inputs.calibration.paths, strict=True):
        copy = inputs.calibration_folder / image.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    sample = inputs.samples.samples[0]
    shutil.copyfile(sample.path, inputs.evaluation_folder / sample.path.name)
    with np.load(inputs.photos) as arrays, atomic_path(inputs.latency_feeds) as temporary:
        names = sorted(arrays.files)
        picked = np.linspace(0, len(names) - 1, min(LATENCY_PHOTOS, len(names))).round().astype(int)
        with temporary.open("wb") as stream:
            np.save(stream, np.concatenate([arrays[names[index]] for index in picked]))
