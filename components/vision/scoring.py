"""Running a predictor over labelled images, and matching what it finds with what is there."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from components.decode.decoder import Decoder
from components.decode.instances import Placement
from components.formats.images import ImageError, decode
from components.formats.kitti import IGNORED_CLASS, read_split
from components.measure.boxes import Floats
from components.measure.matching import ImageBoxes, Matcher
from components.step import MANIFEST, UserError, read_manifest
from components.vision.inputs import Images, InputSpec
from components.vision.predictor import Predictor


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image as the network sees it; boxes in pixels of the network's input.

    Attributes:
        id: Its name in the data set.
        pixels: [H, W, 3] RGB uint8.
        objects: By class name, [T, 4].
        regions: [R, 4] regions in which nothing counts.
        encoded: The image as it is stored; empty where pixels were stored.
        placement: How the stored image lies in the network's input, where it was fitted.
    """

    id: str
    pixels: Images
    objects: Mapping[str, Floats]
    regions: Floats
    encoded: bytes = b""
    placement: Placement | None = None


class ImageSource(Protocol):
    """Labelled images that can be walked through more than once.

    Attributes:
        skipped: What was left out in the last walk and how often, for example labels of other classes.
    """

    skipped: Counter[str]

    def __iter__(self) -> Iterator[LabelledImage]:
        """Yields the images in a fixed order."""
        ...

    def __len__(self) -> int:
        """Number of images as far as it is known beforehand, otherwise 0."""
        ...


def network_input(content: bytes, source: str, spec: InputSpec) -> tuple[Images, Placement]:
    """Decodes an image and fits it into a network's input; see `InputSpec.place`.

    Raises:
        UserError: The image is broken.
    """
    try:
        pixels, placement = spec.place(decode(content))
    except ImageError as error:
        raise UserError(f"{source}: {error}; replace or remove this image") from error
    return np.ascontiguousarray(pixels), placement


class KittiImages:
    """One split of a KITTI set (artifact, or TAO's folders), with the classes a network knows."""

    def __init__(
        self,
        kitti_set: Path,
        split: str,
        spec: InputSpec,
        class_names: Sequence[str],
        ignore_regions: bool = True,
    ) -> None:
        """Opens the set; images are read while walking through it.

        Args:
            kitti_set: The set.
            split: `training` or `validation`.
            spec: What the network takes.
            class_names: Classes to keep; labels of others are counted in `skipped`.
            ignore_regions: Whether nothing counts inside `dontcare` labels. Otherwise they are objects to be found.

        Raises:
            UserError: `dontcare` labels shall be objects, but of which of several classes is unknown.
        """
        if not ignore_regions and len(class_names) != 1:
            raise UserError(
                f"--no-ignore-regions: this model has {len(class_names)} classes, and a {IGNORED_CLASS} label does not "
                "say which it is; leave the option out"
            )
        self.skipped: Counter[str] = Counter()
        self._set, self._split, self._spec = kitti_set, split, spec
        # Which class a label counts for; None is a region.
        self._targets: dict[str, str | None] = {name: name for name in class_names}
        self._targets[IGNORED_CLASS] = None if ignore_regions else class_names[0]

    def __iter__(self) -> Iterator[LabelledImage]:
        self.skipped.clear()
        for sample in read_split(self._set, self._split):
            source = f"{self._set / self._split}: {sample.file_name}"
            pixels, placement = network_input(sample.image, source, self._spec)
            boxes: dict[str | None, list[tuple[float, ...]]] = {target: [] for target in self._targets.values()}
            boxes[None] = []
            for label in sample.labels:
                x1, y1, x2, y2 = label.box
                if label.class_name not in self._targets:
                    self.skipped[f"labels of class {label.class_name}"] += 1
                elif not (x1 < x2 and y1 < y2):
                    self.skipped["labels without area"] += 1
                else:
                    boxes[self._targets[label.class_name]].append(label.box)
            arrays = {name: placement.to_input(np.reshape(rows, (-1, 4))) for name, rows in boxes.items()}
            regions = arrays.pop(None)
            objects = {name: rows for name, rows in arrays.items() if name}
            yield LabelledImage(sample.id, pixels, objects, regions, sample.image, placement)

    def __len__(self) -> int:
        if not (self._set / MANIFEST).is_file():
            folder = self._set / self._split / "images"
            return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
        return int(read_manifest(self._set, "kitti_set")["counts"].get(f"{self._split}_images", 0))


@dataclass(frozen=True, slots=True)
class Scored:
    """What a predictor found in a data set.

    Attributes:
        ids: The images.
        boxes: By class name, for each image, detections and ground truth.
        matchers: By class name, ready to be matched.
        seconds: Time spent in the network and in decoding; reading images is left out.
        network_seconds: Of each batch, the time an image spent in the network alone.
    """

    ids: list[str]
    boxes: dict[str, list[ImageBoxes]]
    matchers: dict[str, Matcher]
    seconds: float
    network_seconds: list[float]


def score(
    predictor: Predictor,
    images: Iterable[LabelledImage],
    iou_threshold: float | Mapping[str, float] = 0.5,
    batch_size: int = 16,
    decoder: Decoder | None = None,
) -> Scored:
    """Detects in all images and pairs detections with ground truth.

    Args:
        predictor: The network.
        images: Labelled images of the predictor's input size.
        iou_threshold: Smallest IoU of a match, above 0 and at most 1, for all classes or by class name.
        batch_size: Images that the network sees at once.
        decoder: What the outputs mean; the predictor's own when None.

    Raises:
        UserError: There are no images.
    """
    ids: list[str] = []
    decoder = decoder or predictor.decoder
    boxes: dict[str, list[ImageBoxes]] = {name: [] for name in decoder.class_names}
    seconds, network_seconds = 0.0, []
    remaining = iter(images)
    while batch := list(islice(remaining, batch_size)):
        pixels = np.stack([image.pixels for image in batch])
        begin = time.perf_counter()
        outputs = predictor(pixels)
        network_seconds.append((time.perf_counter() - begin) / len(batch))
        found = decoder(outputs)
        seconds += time.perf_counter() - begin
        for image, instances in zip(batch, found, strict=True):
            ids.append(image.id)
            for index, (name, rows) in enumerate(boxes.items()):
                rows.append(ImageBoxes(instances.select(index).rows(), image.objects[name], image.regions))
    if not ids:
        raise UserError("no images to score: the chosen split is empty; check the data set and the split's name")
    thresholds = iou_threshold if isinstance(iou_threshold, Mapping) else dict.fromkeys(boxes, iou_threshold)
    matchers = {name: Matcher(rows, thresholds[name]) for name, rows in boxes.items()}
    return Scored(ids, boxes, matchers, seconds, network_seconds)
