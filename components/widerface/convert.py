"""Converts WIDER FACE in its official layout to a KITTI set, for networks of any input size or for one.

The set has three splits. What WIDER FACE calls validation is `test`; `validation` is drawn from its training images, by
image, so that what chooses a model never tells how good it is.

The caller chooses how doubtful faces are treated. The defaults of the command rest on counts over 1,050 real training
images (10,990 boxes with an area), letterboxed to 480x272 and, in brackets, to 736x416:

- Small faces (below 8 pixels, half a cell of the network's grid) are ignored: they are 49 % (30 %) of all faces. At
  source resolution nothing is small yet: whoever trains or scores says what is, in the network's input.
- Faces flagged invalid are ignored: 91 boxes, every one below 8 pixels at either size, the median at 2.5 (3.8).
- Heavily occluded faces are kept: they are 20 % of all faces and still 11 % (12 %) of those of 16 pixels and more,
  where a detector is expected to find them.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal, TextIO

import cv2
import numpy as np

from components.decode.instances import Placement
from components.formats.images import Image, ImageError, Resampling, decode, is_jpeg, is_upright, resize, upright_size
from components.formats.kitti import IGNORED_CLASS, Label, Sample, ShardWriter
from components.formats.wider import OFFICIAL_NAMES, Face, WiderImage, WiderSource
from components.progress import track
from components.step import MANIFEST, UserError, publish, read_manifest, write_manifest
from components.vision.inputs import InputSpec
from components.widerface.workers import ordered_map

FACE_CLASS = "face"
STRIDE = 16
HEAVILY_OCCLUDED = 2
Policy = Literal["ignore", "keep"]
Resolution = Literal["input", "source"]
SMALLEST_LONGEST_SIDE = 64
LARGEST_VALIDATION_SHARE = 0.5
# Of what is encoded anew; what it takes from small faces is less than their enlargement shows.
JPEG_QUALITY = 95
# The counts that are shown first.
SHOWN = ("training_images", "training_faces", "validation_images", "test_images")
# Every count of a split, so that zeros are shown too.
COUNTS = (
    "images",
    "rejected_images",
    "unlisted_images",
    "renamed_images",
    "copied_images",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Settings of a conversion.

    Attributes:
        resolution: `input`: PNGs, letterboxed to one network's input, as TAO's program needs them. `source`: JPEGs for
            a loader that frames them itself; bytes of the source as they are where it is an upright JPEG within bounds.
        width: Width of the network's input, pixels, divisible by 16; of resolution `input`.
        height: Height of the network's input, pixels, divisible by 16; of resolution `input`.
        longest_side: Of a stored image, pixels, 64 or more; larger ones are shrunk; of resolution `source`.
        resampling: How images are shrunk; `cubic` as NVIDIA's reference converter does, which aliases.
        grayscale: Convert colour to luma, in three equal channels when it is read.
        min_face_height: Faces below this height in the network's input, pixels, are small; 0 for none; of `input`.
        small_faces: Whether small faces are kept as faces, or become ignored regions; of resolution `input`.
        invalid_faces: The same for faces that the annotators flagged invalid.
        occluded_faces: The same for heavily occluded faces (occlusion 2).
        max_images: Maximum number of images of each split, evenly spaced; 0 means all.
        validation_share: Share of the source's training images that becomes the split `validation`, at most a half. 0
            makes two splits, in which the source's validation images both choose and tell.
        split_seed: Of the draw, 0 or more.
    """

    resolution: Resolution = "input"
    width: int = 736
    height: int = 416
    longest_side: int = 1024
    resampling: Resampling = "area"
    grayscale: bool = False
    min_face_height: int = 8
    small_faces: Policy = "ignore"
    invalid_faces: Policy = "ignore"
    occluded_faces: Policy = "keep"
    max_images: int = 0
    validation_share: float = 0.1
    split_seed: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            if value <= 0 or value % STRIDE:
                near = max(STRIDE, round(value / STRIDE) * STRIDE)
                raise UserError(f"--{name} {value}: must be a positive multiple of {STRIDE}, for example {near}")
        if self.longest_side < SMALLEST_LONGEST_SIDE:
            raise UserError(f"--longest-side {self.longest_side}: must be {SMALLEST_LONGEST_SIDE} or more")
        if not 0 <= self.validation_share <= LARGEST_VALIDATION_SHARE:
            share = f"{self.validation_share:g}"
            raise UserError(f"--validation-share {share}: must be from 0 to {LARGEST_VALIDATION_SHARE:g}")
        for name in ("min_face_height", "max_images", "split_seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be 0 or more")
        for name in ("small_faces", "invalid_faces", "occluded_faces"):
            self._check_choice(name, "ignore", "keep")
        self._check_choice("resolution", "input", "source")
        self._check_choice("resampling", "area", "cubic")

    def _check_choice(self, name: str, *choices: str) -> None:
        if getattr(self, name) not in choices:
            wanted = " or ".join(map(repr, choices))
            raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: must be {wanted}")

    @property
    def smallest_face(self) -> int:
        """Height below which faces are ignored, pixels of the network's input; 0: none is for being small."""
        return self.min_face_height if self.resolution == "input" and self.small_faces == "ignore" else 0

    def to_json(self) -> dict[str, object]:
        """Returns what has a say in the set, for its manifest."""
        others = ("longest_side",) if self.resolution == "input" else ("width", "height")
        settings = {name: value for name, value in asdict(self).items() if name not in others}
        settings["min_face_height"] = self.smallest_face
        settings["small_faces"] = "ignore" if self.smallest_face else "keep"
        return settings


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
        conversion: Resolution, colour, treatment of doubtful faces, and splits.
        workers: Parallel processes; 0 means one for every core.

    Returns:
        The counts of the manifest, named `<split>_<what>`.

    Raises:
        UserError: The source is missing, malformed or empty, more than half of the images of one of its splits is
            unusable, or there are too few to draw from.
    """
    wider = WiderSource(source)
    counts: dict[str, object] = {"synthetic": _is_synthetic(source)}
    parts = [part for origin in OFFICIAL_NAMES for part in _parts(wider, origin, conversion)]
    items = [(part.origin, *item) for part in parts for item in part.chosen]
    with (
        publish(output) as scratch,
        closing(ordered_map(_convert_in_worker, items, workers, _open_source, (wider.root, conversion))) as results,
    ):
        scratch.mkdir()
        with (scratch / "rejected.jsonl").open("w", encoding="utf-8") as rejected:
            for part in parts:
                with ShardWriter(scratch / part.split) as shards:
                    _write_part(part, islice(results, len(part.chosen)), shards, rejected)
        for origin in OFFICIAL_NAMES:
            _check_loss(wider.root, origin, [part for part in parts if part.origin == origin])
        for part in parts:
            counts.update({f"{part.split}_{name}": count for name, count in part.counts.items()})
        write_manifest(scratch, "kitti_set", counts, conversion.to_json(), shown=SHOWN)
    return counts


def _is_synthetic(source: Path) -> bool:
    """Returns whether the source's manifest marks it as synthetic; the mark is passed on up to the report."""
    return (source / MANIFEST).is_file() and bool(read_manifest(source, "raw_faces")["counts"].get("synthetic"))


@dataclass(frozen=True, slots=True)
class Part:
    """A split of the set.

    Attributes:
        split: Its name.
        origin: The split of the source that its images are of.
        chosen: Annotations and ids of its images.
        unlisted: Files of the source that no annotation names.
        counts: What has been done so far.
        unusable: Images that cannot be used, and why.
    """

    split: str
    origin: str
    chosen: Sequence[tuple[WiderImage, str]]
    unlisted: Sequence[str] = ()
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTS, 0)))
    unusable: list[str] = field(default_factory=list)


def _parts(wider: WiderSource, origin: str, conversion: Conversion) -> list[Part]:
    """Deals the images of one of the source's splits to those of the set; see `drawn`."""
    images = wider.images(origin)
    names = [image.name for image in images]
    items = list(zip(images, unique_ids(names), strict=True))
    splits = {"test" if conversion.validation_share and origin == "validation" else origin: items}
    if conversion.validation_share and origin == "training":
        chosen = drawn(names, conversion.validation_share, conversion.split_seed)
        splits = {
            "training": [item for item in items if item[0].name not in chosen],
            "validation": [item for item in items if item[0].name in chosen],
        }
    unlisted = sorted(set(wider.files(origin)) - set(names))
    parts: list[Part] = []
    for split, those in splits.items():
        few = [those[index] for index in evenly_spaced(len(those), conversion.max_images)]
        parts.append(Part(split, origin, few, () if parts else unlisted))
        parts[-1].counts["renamed_images"] = sum(sample_id != plain_id(image.name) for image, sample_id in those)
    return parts


def _write_part(part: Part, results: Iterable[Converted], shards: ShardWriter, rejected: TextIO) -> None:
    counts = part.counts
    for name in part.unlisted:
        counts["unlisted_images"] += 1
        _reject(rejected, part.split, {"image": name, "reason": "the annotations do not list this file"})
    for result in track(results, len(part.chosen), f"converting {part.split}"):
        counts.update(result.counts)
        for entry in result.rejected:
            _reject(rejected, part.split, entry)
        if result.sample is None:
            counts["rejected_images"] += 1
            part.unusable.append("{image}: {reason}".format(**result.rejected[0]))
        else:
            shards.add(result.sample)
            counts["images"] += 1


def _check_loss(root: Path, origin: str, parts: Sequence[Part]) -> None:
    """Refuses a source of whose split most images, or all that a split of the set would have, cannot be used."""
    lost, whole = (sum(part.counts[name] for part in parts) for name in ("rejected_images", "images"))
    if lost > whole or not all(part.counts["images"] for part in parts):
        first = next(found for part in parts for found in part.unusable)
        raise UserError(
            f"{root}: {lost} of {lost + whole} {origin} images are unusable, the first is {first}; do the annotations "
            "describe these images?"
        )


def drawn(names: Sequence[str], share: float, seed: int) -> set[str]:
    """Draws a share of images, at least one.

    An image's place in the draw is a digest of the seed and its name alone: the images that a larger set adds do not
    change the order of the others.

    Raises:
        UserError: None would be left.
    """
    count = max(1, round(share * len(names)))
    if count >= len(names):
        raise UserError(
            f"{len(names)} training image{'s' * (len(names) > 1)} cannot be dealt to training and validation; give "
            "more, or --validation-share 0"
        )
    return set(sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:count])


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


_worker_source: tuple[WiderSource, Conversion]


def _open_source(root: Path, conversion: Conversion) -> None:
    global _worker_source
    cv2.setNumThreads(1)  # the parallelism is in the processes
    _worker_source = WiderSource(root), conversion


def _convert_in_worker(item: tuple[str, WiderImage, str]) -> Converted:
    wider, conversion = _worker_source
    origin, image, sample_id = item
    try:
        return convert_image(wider.read(origin, image.name), image, sample_id, conversion)
    except ImageError as error:
        lost: Counter[str] = Counter(faces_of_rejected_images=len(image.faces))
        return Converted(None, [{"image": image.name, "reason": str(error)}], lost)


def convert_image(content: bytes, image: WiderImage, sample_id: str, conversion: Conversion) -> Converted:
    """Makes one image what the set stores, and maps its faces.

    Args:
        content: The encoded image.
        image: Its annotation.
        sample_id: Name of the image and label files of the set.
        conversion: Resolution, colour and treatment of doubtful faces.

    Raises:
        ImageError: It cannot be read.
    """
    stored = (_at_source_resolution if conversion.resolution == "source" else _at_input_size)(content, conversion)
    result = Converted(None, counts=Counter(copied_images=int(stored.content is content)))
    labels = list(_labels(image, stored, conversion, result))
    result.sample = Sample(sample_id, sample_id + stored.suffix, stored.content, labels)
    return result


@dataclass(frozen=True, slots=True)
class Stored:
    """An image as the set has it.

    Attributes:
        content: Encoded.
        suffix: Of its file.
        size: Width and height of the source's, upright, pixels.
        placement: How that one lies in it.
    """

    content: bytes
    suffix: str
    size: tuple[int, int]
    placement: Placement


def _at_input_size(content: bytes, conversion: Conversion) -> Stored:
    """Letterboxes an image into the network's input."""
    pixels = decode(content)
    spec = InputSpec(conversion.width, conversion.height, order="BGR", resampling=conversion.resampling)
    frame, placement = spec.place(pixels)
    if conversion.grayscale:
        frame = np.asarray(cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), np.uint8)
    return Stored(encode_png(frame), ".png", (pixels.shape[1], pixels.shape[0]), placement)


def _at_source_resolution(content: bytes, conversion: Conversion) -> Stored:
    """Leaves an upright JPEG within bounds as it is; turns, shrinks and encodes others."""
    width, height = size = upright_size(content)
    longest = conversion.longest_side
    if is_jpeg(content) and max(size) <= longest and not conversion.grayscale and is_upright(content):
        decode(content, eighth=True)  # what cannot be read is found here, not in training
        return Stored(content, ".jpg", size, Placement())
    pixels = decode(content)
    if max(size) > longest:
        # In whole numbers: the longest side is exact, the other one rounded.
        shrunk = [max(1, (2 * side * longest + max(size)) // (2 * max(size))) for side in size]
        pixels = resize(pixels, (shrunk[0], shrunk[1]), conversion.resampling)
    if conversion.grayscale:
        pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.uint8)
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return Stored(encoded, ".jpg", size, Placement((pixels.shape[1] / width, pixels.shape[0] / height)))


def encode_png(image: Image) -> bytes:
    """Returns an image [H, W, 3] as PNG.

    OpenCV's default setting is the fastest: on 60 images of WIDER FACE at 736x416 it took 6.8 ms and 339 kB each,
    against 11.5 ms and 301 kB for run-length coding at any level, and 36 ms and 295 kB for level 6.
    """
    return cv2.imencode(".png", image)[1].tobytes()


def _labels(image: WiderImage, stored: Stored, conversion: Conversion, result: Converted) -> Iterator[Label]:
    """Yields the labels of an image in its stored pixels; counts and rejected boxes go into `result`."""
    width, height = stored.size
    for face in image.faces:
        x, y, w, h = face.box
        x1, x2 = (min(max(edge, 0), width) for edge in (x, x + w))
        y1, y2 = (min(max(edge, 0), height) for edge in (y, y + h))
        if w <= 0 or h <= 0:
            result.reject_face(image, face, "no_area", "the box has no area")
            continue
        if x1 >= x2 or y1 >= y2:
            result.reject_face(image, face, "outside", "the box lies outside the image")
            continue
        truncation = 1 - (x2 - x1) * (y2 - y1) / (w * h)
        result.counts["clipped_faces"] += truncation > 0
        left, top, right, bottom = stored.placement.to_input(np.array([x1, y1, x2, y2], np.float64)).tolist()
        ignored = _reason_to_ignore(face, bottom - top, conversion)
        if ignored:
            result.counts["ignored_faces"] += 1
            result.counts[f"ignored_faces_{ignored}"] += 1
        else:
            result.counts["faces"] += 1
        class_name = IGNORED_CLASS if ignored else FACE_CLASS
        yield Label(class_name, truncation, face.occlusion, (left, top, right, bottom))


def _reason_to_ignore(face: Face, height: float, conversion: Conversion) -> str | None:
    """Returns why a face that is stored `height` pixels high is ignored, or None."""
    if face.invalid and conversion.invalid_faces == "ignore":
        return "invalid"
    if face.occlusion >= HEAVILY_OCCLUDED and conversion.occluded_faces == "ignore":
        return "occluded"
    if height < conversion.smallest_face:
        return "small"
    return None
