"""Converts WIDER FACE in its official layout to a KITTI set at the network's input size.

The caller chooses how doubtful faces are treated. The defaults of the command rest on counts over 1,050 real training
images (10,990 boxes with an area), letterboxed to 480x272 and, in brackets, to 736x416:

- Small faces (below 8 pixels, half a cell of the network's grid) are ignored: they are 49 % (30 %) of all faces.
- Faces flagged invalid are ignored: 91 boxes, every one below 8 pixels at either size, the median at 2.5 (3.8).
- Heavily occluded faces are kept: they are 20 % of all faces and still 11 % (12 %) of those of 16 pixels and more,
  where a detector is expected to find them.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, TextIO

import cv2
import numpy as np

from components.formats.images import Image, ImageError, Letterbox, decode
from components.formats.kitti import IGNORED_CLASS, SPLITS, Label, Sample, ShardWriter
from components.formats.wider import Face, WiderImage, WiderSource
from components.progress import track
from components.step import MANIFEST, UserError, publish, read_manifest, write_manifest
from components.widerface.workers import ordered_map

FACE_CLASS = "face"
STRIDE = 16
HEAVILY_OCCLUDED = 2
Policy = Literal["ignore", "keep"]
# The counts that are shown first.
SHOWN = ("training_images", "training_faces", "validation_images", "validation_faces")
# Every count of a split, so that zeros are shown too.
COUNTS = (
    "images",
    "rejected_images",
    "unlisted_images",
    "renamed_images",
    "faces",
    "ignored_faces",
    "ignored_faces_invalid",
    "ignored_faces_occluded",
    "ignored_faces_small",
    "clipped_faces",
    "rejected_faces",
    "rejected_faces_no_area",
    "rejected_faces_outside",
    "faces_of_rejected_images",
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """Settings of a conversion.

    Attributes:
        width: Width of the network's input, pixels, divisible by 16.
        height: Height of the network's input, pixels, divisible by 16.
        grayscale: Convert colour to luma, replicated to three channels.
        min_face_height: Faces below this height in the network's input, pixels, are small; 0 for none.
        small_faces: Whether small faces are kept as faces, or become ignored regions.
        invalid_faces: The same for faces that the annotators flagged invalid.
        occluded_faces: The same for heavily occluded faces (occlusion 2).
        max_images: Maximum number of images of each split, evenly spaced; 0 means all.
    """

    width: int
    height: int
    grayscale: bool
    min_face_height: int
    small_faces: Policy
    invalid_faces: Policy
    occluded_faces: Policy
    max_images: int

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            if value <= 0 or value % STRIDE:
                near = max(STRIDE, round(value / STRIDE) * STRIDE)
                raise UserError(f"--{name} {value}: must be a positive multiple of {STRIDE}, for example {near}")
        for name in ("min_face_height", "max_images"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 0 or more")
        for name in ("small_faces", "invalid_faces", "occluded_faces"):
            if getattr(self, name) not in ("ignore", "keep"):
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: must be 'ignore' or 'keep'")


@dataclass(slots=True)
class Converted:
    """The result of one image: its sample (None if the image was rejected), rejected objects, and counts."""

    sample: Sample | None
    rejected: list[dict[str, object]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def reject_face(self, image: WiderImage, face: Face, kind: str, reason: str) -> None:
        """Records a box that becomes no label; `kind` is the last part of its count's name."""
        self.counts["rejected_faces"] += 1
        self.counts[f"rejected_faces_{kind}"] += 1
        self.rejected.append({"image": image.name, "box": list(face.box), "reason": reason})


def convert(source: Path, output: Path, conversion: Conversion, workers: int = 0) -> dict[str, object]:
    """Writes the KITTI set `output` from the WIDER FACE distribution `source`.

    The bytes of the result do not depend on the number of workers. `output` appears only when it is complete.

    Args:
        source: A folder in the official layout, or one that holds the official archives.
        output: The artifact directory to make, of kind `kitti_set`.
        conversion: Size, colour and treatment of doubtful faces.
        workers: Parallel processes; 0 means one for every core.

    Returns:
        The counts of the manifest, named `<split>_<what>`.

    Raises:
        UserError: The source is missing, malformed or empty, or more than half of the images of a split is unusable.
    """
    wider = WiderSource(source)
    counts: dict[str, object] = {"synthetic": _is_synthetic(source)}
    with publish(output) as scratch:
        scratch.mkdir()
        with (scratch / "rejected.jsonl").open("w", encoding="utf-8") as rejected:
            for split in SPLITS:
                found = _convert_split(wider, split, scratch / split, rejected, conversion, workers)
                counts.update({f"{split}_{name}": count for name, count in found.items()})
        write_manifest(scratch, "kitti_set", counts, asdict(conversion), shown=SHOWN)
    return counts


def _is_synthetic(source: Path) -> bool:
    """Returns whether the source's manifest marks it as synthetic; the mark is passed on up to the report."""
    return (source / MANIFEST).is_file() and bool(read_manifest(source, "raw_faces")["counts"].get("synthetic"))


def _convert_split(
    wider: WiderSource, split: str, directory: Path, rejected: TextIO, conversion: Conversion, workers: int
) -> Counter[str]:
    images = wider.images(split)
    totals = Counter(dict.fromkeys(COUNTS, 0))
    for name in sorted(set(wider.files(split)) - {image.name for image in images}):
        totals["unlisted_images"] += 1
        _reject(rejected, split, {"image": name, "reason": "the annotations do not list this file"})
    ids = unique_ids([image.name for image in images])
    totals["renamed_images"] = sum(
        sample_id != plain_id(image.name) for sample_id, image in zip(ids, images, strict=True)
    )
    chosen = [(images[index], ids[index]) for index in evenly_spaced(len(images), conversion.max_images)]

    first_rejected: dict[str, object] = {}
    with (
        closing(
            ordered_map(_convert_in_worker, chosen, workers, _open_source, (wider.root, split, conversion))
        ) as results,
        ShardWriter(directory) as shards,
    ):
        for result in track(results, len(chosen), f"converting {split}"):
            totals.update(result.counts)
            for entry in result.rejected:
                _reject(rejected, split, entry)
            if result.sample is None:
                totals["rejected_images"] += 1
                first_rejected = first_rejected or result.rejected[0]
            else:
                shards.add(result.sample)
                totals["images"] += 1
    if 2 * totals["rejected_images"] > len(chosen):
        raise UserError(
            f"{wider.root}: {totals['rejected_images']} of {len(chosen)} {split} images are unusable, the first is "
            f"{first_rejected['image']}: {first_rejected['reason']}; do the annotations describe these images?"
        )
    return totals


def _reject(stream: TextIO, split: str, entry: dict[str, object]) -> None:
    stream.write(json.dumps({"split": split, **entry}) + "\n")


def evenly_spaced(total: int, wanted: int) -> Sequence[int]:
    """Returns `wanted` of the indices 0 … total-1, evenly spaced; all of them if `wanted` is 0 or too many."""
    if not 0 < wanted < total:
        return range(total)
    return [index * total // wanted for index in range(wanted)]


def plain_id(name: str) -> str:
    """Returns the id of an image from its file name: letters, digits, `_` and `-`, without event and extension."""
    return re.sub(r"[^\w-]", "_", PurePosixPath(name).stem)


def unique_ids(names: Sequence[str]) -> list[str]:
    """Returns an id for every image; if events share a base name, the event is put in front of it.

    The ids depend on the whole list only, not on the chosen images, and differ on case-insensitive file systems too.
    """
    shared = Counter(plain_id(name).lower() for name in names)
    taken: set[str] = set()
    ids = []
    for name in names:
        sample_id = plain_id(name)
        if shared[sample_id.lower()] > 1:
            sample_id = plain_id(str(PurePosixPath(name).parent).replace("/", "_") + "_" + PurePosixPath(name).name)
        candidate, number = sample_id, 1
        while candidate.lower() in taken or (candidate != plain_id(name) and candidate.lower() in shared):
            number += 1
            candidate = f"{sample_id}_{number}"
        taken.add(candidate.lower())
        ids.append(candidate)
    return ids


_worker_source: tuple[WiderSource, str, Conversion]


def _open_source(root: Path, split: str, conversion: Conversion) -> None:
    global _worker_source
    cv2.setNumThreads(1)  # the parallelism is in the processes
    _worker_source = WiderSource(root), split, conversion


def _convert_in_worker(item: tuple[WiderImage, str]) -> Converted:
    wider, split, conversion = _worker_source
    image, sample_id = item
    try:
        pixels = decode(wider.read(split, image.name))
    except ImageError as error:
        lost: Counter[str] = Counter(faces_of_rejected_images=len(image.faces))
        return Converted(None, [{"image": image.name, "reason": str(error)}], lost)
    return convert_image(pixels, image, sample_id, conversion)


def convert_image(pixels: Image, image: WiderImage, sample_id: str, conversion: Conversion) -> Converted:
    """Letterboxes one image and maps its faces.

    Args:
        pixels: The decoded image [h, w, 3], BGR.
        image: Its annotation.
        sample_id: Name of the image and label files of the set.
        conversion: Size, colour and treatment of doubtful faces.
    """
    height, width = pixels.shape[:2]
    letterbox = Letterbox.fit(width, height, conversion.width, conversion.height)
    frame = letterbox.apply(pixels)
    if conversion.grayscale:
        frame = np.asarray(cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), np.uint8)
    result = Converted(None)
    labels = list(_labels(image, (width, height), letterbox, conversion, result))
    result.sample = Sample(sample_id, f"{sample_id}.png", encode_png(frame), labels)
    return result


def encode_png(image: Image) -> bytes:
    """Returns an image [H, W, 3] as PNG.

    OpenCV's default setting is the fastest: on 60 images of WIDER FACE at 736x416 it took 6.8 ms and 339 kB each,
    against 11.5 ms and 301 kB for run-length coding at any level, and 36 ms and 295 kB for level 6.
    """
    return cv2.imencode(".png", image)[1].tobytes()


def _labels(
    image: WiderImage, size: tuple[int, int], letterbox: Letterbox, conversion: Conversion, result: Converted
) -> Iterator[Label]:
    """Yields the labels of an image of `size` (width, height); counts and rejected boxes go into `result`."""
    for face in image.faces:
        x, y, w, h = face.box
        x1, x2 = (min(max(edge, 0), size[0]) for edge in (x, x + w))
        y1, y2 = (min(max(edge, 0), size[1]) for edge in (y, y + h))
        if w <= 0 or h <= 0:
            result.reject_face(image, face, "no_area", "the box has no area")
            continue
        if x1 >= x2 or y1 >= y2:
            result.reject_face(image, face, "outside", "the box lies outside the image")
            continue
        truncation = 1 - (x2 - x1) * (y2 - y1) / (w * h)
        result.counts["clipped_faces"] += truncation > 0
        left, top, right, bottom = letterbox.boxes_to_frame(np.array([x1, y1, x2, y2], np.float64)).tolist()
        ignored = _reason_to_ignore(face, bottom - top, conversion)
        if ignored:
            result.counts["ignored_faces"] += 1
            result.counts[f"ignored_faces_{ignored}"] += 1
        else:
            result.counts["faces"] += 1
        class_name = IGNORED_CLASS if ignored else FACE_CLASS
        yield Label(class_name, truncation, face.occlusion, (left, top, right, bottom))


def _reason_to_ignore(face: Face, height: float, conversion: Conversion) -> str | None:
    """Returns why a face of `height` pixels in the network's input is ignored, or None."""
    if face.invalid and conversion.invalid_faces == "ignore":
        return "invalid"
    if face.occlusion >= HEAVILY_OCCLUDED and conversion.occluded_faces == "ignore":
        return "occluded"
    if height < conversion.min_face_height and conversion.small_faces == "ignore":
        return "small"
    return None
