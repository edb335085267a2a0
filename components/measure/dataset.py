"""What is in a set of images and what a detector found there: flat arrays, the images one after the other.

300,000 boxes are a handful of arrays here, not 300,000 objects. The boxes of image i are rows `offsets[i]` up to
`offsets[i + 1]`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from components.measure.boxes import Floats

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

# The class of a region that counts for every class, as KITTI's `dontcare` does.
ANY_CLASS = -1


_NO_CLASS = -2


class Found(Protocol):
    """What was found in one image."""

    @property
    def boxes(self) -> NDArray[np.floating[Any]]:
        """[n, 4] x1, y1, x2, y2."""
        ...

    @property
    def scores(self) -> NDArray[np.floating[Any]]:
        """[n]."""
        ...

    @property
    def classes(self) -> Integers:
        """[n] index into the names of the classes."""
        ...


def offsets_of(counts: Integers) -> Integers:
    """Returns [I + 1], where the rows of each image begin and the last ones end, of the numbers of rows [I]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a detector found in the images of a `Truth`, image by image in its order.

    Attributes:
        offsets: [I + 1].
        boxes: [D, 4] x1, y1, x2, y2 in the truth's pixels.
        scores: [D] confidence, finite; the higher the surer.
        classes: [D] index into the truth's `class_names`.
    """

    offsets: Integers
    boxes: Floats
    scores: Floats
    classes: Integers

    def __post_init__(self) -> None:
        _require(len(self.boxes), self.offsets, scores=self.scores, classes=self.classes)
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise ValueError("a box or a score is not finite")

    @classmethod
    def gathered(cls, images: Sequence[Found]) -> Self:
        """Joins what was found in images, one after the other."""
        offsets = offsets_of(np.array([len(found.scores) for found in images], np.int64))
        boxes = np.concatenate([np.zeros((0, 4)), *(found.boxes for found in images)])
        scores = np.concatenate([np.zeros(0), *(found.scores for found in images)])
        classes = np.concatenate([np.zeros(0, np.int64), *(found.classes for found in images)])
        return cls(offsets, boxes.astype(np.float64), scores.astype(np.float64), classes)

    @property
    def images(self) -> Integers:
        """[D] the index of each detection's image."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def placed(self, scales: Floats, offsets: Floats) -> Self:
        """Returns the detections in other pixels; see `Truth.placed`."""
        return replace(self, boxes=_placed(self.boxes, self.images, scales, offsets))

    def where(self, kept: Booleans) -> Self:
        """Returns the detections for which `kept` [D] is true."""
        counts = np.bincount(self.images[kept], minlength=len(self.offsets) - 1)
        return replace(
            self,
            offsets=offsets_of(counts),
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            classes=self.classes[kept],
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """The ground truth.

    Attributes:
        images: [I] their names, each once.
        offsets: [I + 1].
        boxes: [T, 4] x1, y1, x2, y2 in one kind of pixels.
        class_names: What can be found.
        classes: [T] index into `class_names`, or `ANY_CLASS` for a region that counts for all of them.
        regions: [T] where it is nothing to be found, and a detector is neither rewarded nor punished.
        attributes: By name, [T] whole numbers: for WIDER FACE `blur`, `occlusion` and so on.
        subsets: By name, [T]: whether the object belongs to it, for WIDER FACE `easy`, `medium`, `hard`.
        areas: [T] square pixels by which COCO sorts objects into small, medium and large, where these are not the
            boxes' own (in COCO's files, they are those of the outlines).
        image_ids: [I] COCO's numbers of the images, where the truth came with them.
        class_ids: COCO's numbers of the classes, where the truth came with them.
        singles: [T] which of the regions are one object each (a face that is ignored), and not a crowd: see
            `components.measure.matching.Matcher`. None: none of them.
    """

    images: tuple[str, ...]
    offsets: Integers
    boxes: Floats
    class_names: tuple[str, ...]
    classes: Integers
    regions: Booleans
    attributes: Mapping[str, Integers] = field(default_factory=dict)
    subsets: Mapping[str, Booleans] = field(default_factory=dict)
    areas: Floats | None = None
    image_ids: tuple[int, ...] = ()
    class_ids: tuple[int, ...] = ()
    singles: Booleans | None = None

    def __post_init__(self) -> None:
        optional = {"areas": self.areas, "singles": self.singles}
        known = {name: values for name, values in optional.items() if values is not None}
        columns = {"classes": self.classes, "regions": self.regions, **self.attributes, **self.subsets, **known}
        _require(len(self.boxes), self.offsets, **columns)
        if len(self.images) != len(self.offsets) - 1 or len(set(self.images)) != len(self.images):
            raise ValueError("every image has a name of its own and a place in the offsets")
        if not np.isfinite(self.boxes).all():
            raise ValueError("a box is not finite")

    @property
    def image_of_box(self) -> Integers:
        """[T] the index of each object's or region's image."""
        return np.repeat(np.arange(len(self.images)), np.diff(self.offsets))

    def where(self, kept: Booleans) -> Self:
        """Returns the same images with only the boxes for which `kept` [T] is true."""
        counts = np.bincount(self.image_of_box[kept], minlength=len(self.images))
        return replace(
            self,
            offsets=offsets_of(counts),
            boxes=self.boxes[kept],
            classes=self.classes[kept],
            regions=self.regions[kept],
            attributes={name: values[kept] for name, values in self.attributes.items()},
            subsets={name: values[kept] for name, values in self.subsets.items()},
            areas=None if self.areas is None else self.areas[kept],
            singles=None if self.singles is None else self.singles[kept],
        )

    def placed(self, scales: Floats, offsets: Floats) -> Self:
        """Returns the truth in other pixels, for example those of a network's input.

        Args:
            scales: [I, 2] new pixels per old one, in x and y.
            offsets: [I, 2] where the images' left upper corners lie.
        """
        return replace(self, boxes=_placed(self.boxes, self.image_of_box, scales, offsets), areas=None)

    def of_images(self, kept: Booleans) -> Self:
        """Returns the images for which `kept` [I] is true, with their boxes."""
        some = self.where(kept[self.image_of_box])
        return replace(
            some,
            images=tuple(name for name, is_kept in zip(self.images, kept.tolist(), strict=True) if is_kept),
            offsets=offsets_of(np.diff(some.offsets)[kept]),
            image_ids=tuple(number for number, is_kept in zip(self.image_ids, kept.tolist(), strict=False) if is_kept),
        )

    def of_classes(self, class_names: Sequence[str]) -> Self:
        """Returns the objects of these classes, numbered in this order, and the regions that count for all classes."""
        numbers = [class_names.index(name) if name in class_names else _NO_CLASS for name in self.class_names]
        classes = np.array([*numbers, ANY_CLASS], np.int64)[self.classes]
        return replace(self, class_names=tuple(class_names), classes=classes).where(classes != _NO_CLASS)


def _placed(boxes: Floats, image: Integers, scales: Floats, offsets: Floats) -> Floats:
    return boxes * np.tile(scales, 2)[image] + np.tile(offsets, 2)[image]


def _require(rows: int, offsets: Integers, **columns: NDArray[np.generic]) -> None:
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets rise from 0 to the number of boxes, {rows}")
    for name, values in columns.items():
        if len(values) != rows:
            raise ValueError(f"{name}: {len(values)} values for {rows} boxes")
