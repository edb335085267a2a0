"""Matching detections to ground truth, COCO's way, for a whole data set at once.

COCO goes through the detections of an image by descending score and lets each take the best ground truth left. That
is a stable matching in which every ground truth prefers the higher score, and it is the only one; so the same
assignment comes from deferred acceptance (Gale and Shapley, 1962), in which all detections of all images propose at
once. A few rounds of NumPy replace this loop.
"""

import math
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from components.measure.boxes import Floats
from components.measure.curve import PrecisionRecall
from components.measure.dataset import ANY_CLASS, Booleans, Integers, Predictions, Truth
from components.measure.pairs import overlapping_pairs

# What became of a detection.
FALSE_POSITIVE, TRUE_POSITIVE, NEUTRAL = 0, 1, -1
UNMATCHED = -1
# Of the IoU that a match takes: the share at which a detection belongs to an object that does not count. Small ones are
# found less exactly: of the best detections (RetinaFace's, score 0.1 and more) of 467 faces of WIDER FACE that are 3 to
# 8 pixels high in a 480x272 input, 35 have an IoU of 0.4 to 0.5, against 14 where the boxes are moved beside the faces;
# from 0.3 to 0.4 there are no more than beside them.
LENIENCE = 0.8


class Sizes(Protocol):
    """Which boxes count, by their size."""

    @property
    def minimum_height(self) -> float:
        """Pixels below which no box counts."""
        ...

    def contains(self, boxes: Floats) -> Booleans:
        """Returns [N]: whether each box [N, 4] counts."""
        ...


@dataclass(frozen=True, slots=True)
class BoxSizes:
    """Boxes from the smallest to the largest width and height, both ends included (TAO's `evaluation_box_config`)."""

    minimum_width: float = 0.0
    maximum_width: float = math.inf
    minimum_height: float = 0.0
    maximum_height: float = math.inf

    def contains(self, boxes: Floats) -> Booleans:
        """Returns [N]: whether each box [N, 4] lies within the limits."""
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        inside = (width >= self.minimum_width) & (width <= self.maximum_width)
        return np.asarray(inside & (height >= self.minimum_height) & (height <= self.maximum_height), bool)


@dataclass(frozen=True, slots=True)
class HeightBand:
    """Objects from `minimum` (included) to `maximum` (excluded) pixels high, so that neighbouring bands share none."""

    minimum: float = 0.0
    maximum: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.minimum < self.maximum:
            raise ValueError(f"a height band rises from at least 0, not from {self.minimum:g} to {self.maximum:g}")

    @property
    def minimum_height(self) -> float:
        """See `Sizes`."""
        return self.minimum

    @property
    def name(self) -> str:
        """For example `16-24` or `80+`."""
        return f"{self.minimum:g}+" if math.isinf(self.maximum) else f"{self.minimum:g}-{self.maximum:g}"

    @classmethod
    def parse(cls, text: str) -> "HeightBand":
        """Reads `16-24` or `80+`.

        Raises:
            ValueError: The text is neither, or the band is empty.
        """
        low, dash, high = text.strip().partition("-")
        if not dash and low.endswith("+"):
            return cls(float(low[:-1]))
        return cls(float(low), float(high))

    def contains(self, boxes: Floats) -> Booleans:
        """Returns [N]: whether each box [N, 4] is as high as this band asks."""
        height = boxes[:, 3] - boxes[:, 1]
        return np.asarray((height >= self.minimum) & (height < self.maximum), bool)


ANY_HEIGHT = HeightBand()
DEFAULT_BANDS = tuple(HeightBand.parse(text) for text in ("12-16", "16-24", "24-40", "40-80", "80+"))


@dataclass(frozen=True, slots=True)
class ClassBoxes:
    """What was found and what was there in all images, for one class; flat arrays (see `components.measure.dataset`).

    Attributes:
        detections: [D, 4].
        scores: [D].
        detection_offsets: [I + 1].
        truths: [T, 4] objects and regions.
        regions: [T] whether it is a region.
        truth_offsets: [I + 1].
        singles: [T] which regions are one object each; see `Truth`.
    """

    detections: Floats
    scores: Floats
    detection_offsets: Integers
    truths: Floats
    regions: Booleans
    truth_offsets: Integers
    singles: Booleans | None = None

    def __post_init__(self) -> None:
        if not all(np.isfinite(values).all() for values in (self.detections, self.scores, self.truths)):
            raise ValueError("a box or a score is not finite")

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.truth_offsets) - 1

    @property
    def crowds(self) -> Booleans:
        """[T] the regions that are no single objects."""
        return self.regions if self.singles is None else self.regions & ~self.singles

    @classmethod
    def of(cls, truth: Truth, predictions: Predictions, class_name: str) -> Self:
        """Picks out one class; an image's objects and regions keep their order."""
        index = truth.class_names.index(class_name)
        there = truth.where((truth.classes == index) | (truth.regions & (truth.classes == ANY_CLASS)))
        found = predictions.where(predictions.classes == index)
        boxes = found.boxes, found.scores, found.offsets
        return cls(*boxes, there.boxes, there.regions, there.offsets, there.singles)


@dataclass(frozen=True, slots=True)
class Matching:
    """What became of every detection and every ground truth, where those of some sizes count.

    Detections and ground truths of all images stand one after the other, those of an image in their given order.

    Attributes:
        scores: [D].
        order: [D] indices of the detections by descending score; of equal ones the first comes first.
        outcome: [D] `TRUE_POSITIVE`, `FALSE_POSITIVE` or `NEUTRAL`.
        matched: [D] index of the truth or region that the detection took, or `UNMATCHED`.
        counted: [T] whether the ground truth is one that has to be found (regions follow an image's truths: False).
        found: [T] whether a detection took it.
    """

    scores: Floats
    order: Integers
    outcome: NDArray[np.int8]
    matched: Integers
    counted: Booleans
    found: Booleans

    def curve(self) -> PrecisionRecall:
        """Returns precision and recall over descending score; equal scores keep the order of the detections."""
        outcome = self.outcome[self.order]
        kept = outcome != NEUTRAL
        true_positives = np.cumsum(outcome[kept] == TRUE_POSITIVE)
        return PrecisionRecall(true_positives, self.scores[self.order[kept]], int(self.counted.sum()))


class Matcher:
    """The detections and ground truths of a data set, with their overlaps, ready to be matched for any sizes.

    Rules (pycocotools, `COCOeval.evaluateImg`): by descending score, a detection takes the counted truth, not taken
    yet, with which it has the highest IoU of at least the threshold. Failing that it takes a truth of another size,
    or a region that is a single object, in the same manner, or falls into a crowd that holds at least that share of it;
    then it is neutral. Failing that it is neutral when it is itself of another size, and a false positive otherwise. A
    truth is taken once, a crowd any number of times. Of equal overlaps the later truth is taken.

    Ours beside COCO's: what does not count may be held to a lower IoU, `neutral_iou`. So it never makes a difference
    whether a small face was ignored when the set was made or is too low for the figure.
    """

    def __init__(self, boxes: ClassBoxes, iou_threshold: float = 0.5, neutral_iou: float | None = None) -> None:
        """Computes all overlaps that matter.

        Args:
            boxes: The data set.
            iou_threshold: Smallest IoU of a match, above 0 and at most 1.
            neutral_iou: Smallest IoU with a single object that does not count; at most `iou_threshold`, which is
                COCO's, and taken where it is None.

        Raises:
            ValueError: The threshold is out of range, or a box or a score is not finite.
        """
        neutral = iou_threshold if neutral_iou is None else neutral_iou
        if not 0 < neutral <= iou_threshold <= 1:
            raise ValueError(f"IoU thresholds rise from above 0 to 1, not from {neutral:g} to {iou_threshold:g}")
        self.boxes = b = boxes
        self._crowds = b.crowds
        # 0 is the detection that chooses first.
        self._by_rank = np.argsort(-b.scores, kind="stable")
        self._rank = np.empty_like(self._by_rank)
        self._rank[self._by_rank] = np.arange(len(self._by_rank))
        pairs = overlapping_pairs(b.detections, b.detection_offsets, b.truths, b.truth_offsets, self._crowds, neutral)
        near = pairs.share >= iou_threshold
        order = np.lexsort((-pairs.truth, -pairs.share, pairs.detection))
        order = order[(near | ~self._crowds[pairs.truth])[order]]
        self._pair_detection, self._pair_truth, self._pair_matches = (
            pairs.detection[order],
            pairs.truth[order],
            near[order],
        )

    def detections_of(self, image: int) -> slice:
        """Returns where the detections of the image with this index stand in a `Matching`."""
        return slice(int(self.boxes.detection_offsets[image]), int(self.boxes.detection_offsets[image + 1]))

    def truths_of(self, image: int) -> slice:
        """Returns where the truths, then the regions, of the image with this index stand in a `Matching`."""
        return slice(int(self.boxes.truth_offsets[image]), int(self.boxes.truth_offsets[image + 1]))

    def match(self, sizes: Sizes = ANY_HEIGHT) -> Matching:
        """Matches detections to the ground truths of these sizes; the others are ignored."""
        return self.match_objects(sizes.contains(self.boxes.truths), sizes.contains(self.boxes.detections))

    def match_objects(self, wanted: Booleans, punished: Booleans | None = None) -> Matching:
        """Matches detections to some of the ground truths, for example to those of an attribute; others are ignored.

        Args:
            wanted: [T] the objects that have to be found; regions never do.
            punished: [D] the detections that are false when they find nothing, the others are neutral then; by
                default all.
        """
        counted = wanted & ~self.boxes.regions
        counts = counted[self._pair_truth]
        choices = np.argsort(2 * self._pair_detection + ~counts, kind="stable")
        choices = choices[(self._pair_matches | ~counts)[choices]]
        matched = self._defer(self._pair_detection[choices], self._pair_truth[choices])

        outcome = np.full(len(matched), FALSE_POSITIVE, np.int8)
        if punished is not None:
            outcome[~punished] = NEUTRAL
        taken = np.flatnonzero(matched != UNMATCHED)
        outcome[taken] = np.where(counted[matched[taken]], TRUE_POSITIVE, NEUTRAL)
        found = np.zeros(len(counted), bool)
        found[matched[taken]] = True
        return Matching(self.boxes.scores, self._by_rank, outcome, matched, counted, found)

    def _defer(self, detection: Integers, truth: Integers) -> Integers:
        """Lets all detections propose until none is refused.

        Args:
            detection: [P] who proposes, ascending.
            truth: [P] to whom, each detection's favourite first.

        Returns:
            [D] the truth or region each detection ends with, or `UNMATCHED`.
        """
        nobody = len(self.boxes.scores)
        edges = np.concatenate([[0], np.cumsum(np.bincount(detection, minlength=nobody))])
        cursor, end = edges[:-1].copy(), edges[1:]
        holder = np.full(len(self.boxes.truths), nobody)  # rank of the detection that holds a truth for now
        proposing = np.flatnonzero(cursor < end)
        while len(proposing):
            wanted = truth[cursor[proposing]]
            single = ~self._crowds[wanted]
            proposing, wanted = proposing[single], wanted[single]
            former = holder[wanted]
            np.minimum.at(holder, wanted, self._rank[proposing])
            refused = proposing[holder[wanted] != self._rank[proposing]]
            displaced = np.unique(former[(former != holder[wanted]) & (former != nobody)])
            refused = np.concatenate([refused, self._by_rank[displaced]])
            cursor[refused] += 1
            proposing = refused[cursor[refused] < end[refused]]
        matched = np.full(nobody, UNMATCHED)
        settled = cursor < end
        matched[settled] = truth[cursor[settled]]
        return matched
