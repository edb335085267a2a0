"""Average precision: one model's detections in a set of images, matched class by class with the ground truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from components.measure.curve import AveragePrecisionMode, PrecisionRecall
from components.measure.dataset import ANY_CLASS, Booleans, Found, Integers, Predictions, Truth, offsets_of
from components.measure.matching import (
    ANY_HEIGHT,
    FALSE_POSITIVE,
    LENIENCE,
    TRUE_POSITIVE,
    ClassBoxes,
    Matcher,
    Matching,
    Sizes,
)
from components.measure.metric import AVERAGE_PRECISION, Score
from components.measure.summary import mean_average_precision
from components.measure.uncertainty import CurveOutcomes


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's detections, matched with the ground truth.

    Attributes:
        name: What the model is called.
        images: [I] names.
        matchers: By class name, its boxes.
        matchings: By class name, its matching with the objects that count in the headline.
        attributes: By class name and attribute, [T] values of the matcher's ground truths.
    """

    name: str
    images: Sequence[str]
    matchers: Mapping[str, Matcher]
    matchings: Mapping[str, Matching]
    attributes: Mapping[str, Mapping[str, Integers]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        truth: Truth,
        predictions: Predictions,
        sizes: Sizes | Mapping[str, Sizes] = ANY_HEIGHT,
        iou: float | Mapping[str, float] = 0.5,
    ) -> Self:
        """Matches all classes of the truth.

        Args:
            name: What the model is called.
            truth: The ground truth.
            predictions: What was found, in the same pixels.
            sizes: Of the objects that count in the headline, for all classes or by class name.
            iou: Smallest IoU of a match, for all classes or by class name.
        """
        matchers, matchings, attributes = {}, {}, {}
        for index, kind in enumerate(truth.class_names):
            least = iou[kind] if isinstance(iou, Mapping) else iou
            matchers[kind] = Matcher(ClassBoxes.of(truth, predictions, kind), least, LENIENCE * least)
            matchings[kind] = matchers[kind].match(sizes[kind] if isinstance(sizes, Mapping) else sizes)
            chosen = (truth.classes == index) | (truth.regions & (truth.classes == ANY_CLASS))
            attributes[kind] = {name: values[chosen] for name, values in truth.attributes.items()}
        return cls(name, truth.images, matchers, matchings, attributes)

    def at(self, sizes: Sizes) -> Self:
        """Returns the same detections, where the objects of other sizes count in the headline."""
        return replace(self, matchings={kind: matcher.match(sizes) for kind, matcher in self.matchers.items()})

    @property
    def noun(self) -> str:
        """What the objects are called."""
        return "faces" if [name.lower() for name in self.matchers] == ["face"] else "objects"

    def objects(self) -> int:
        """Returns how many objects have to be found."""
        return sum(int(matching.counted.sum()) for matching in self.matchings.values())

    def curves(self) -> dict[str, PrecisionRecall]:
        """Returns the curves by class."""
        return {kind: matching.curve() for kind, matching in self.matchings.items()}

    def score(self, mode: AveragePrecisionMode = "integrate") -> Score:
        """Returns the mean over the classes that have objects."""
        return Score(AVERAGE_PRECISION, mean_average_precision([*self.curves().values()], mode), count=self.objects())

    def outcomes(self) -> dict[str, CurveOutcomes]:
        """Returns by class what each image contributed."""
        return {kind: CurveOutcomes.of(self.matchers[kind], matching) for kind, matching in self.matchings.items()}

    def best_thresholds(self) -> dict[str, float]:
        """Returns by class the score at which F1 is best; minus infinity where there is none."""
        best = {}
        for kind, curve in self.curves().items():
            index = curve.best_f1()
            best[kind] = -np.inf if index is None else float(curve.scores[index])
        return best

    def counts_by_image(self, thresholds: Mapping[str, float]) -> Integers:
        """Returns [I, 3] objects found, false positives and missed objects at these scores (by class)."""
        counts = np.zeros((len(self.images), 3), np.int64)
        for kind, matching in self.matchings.items():
            boxes, kept = self.matchers[kind].boxes, matching.scores >= thresholds[kind]
            image = np.repeat(np.arange(boxes.images), np.diff(boxes.detection_offsets))
            there = np.repeat(np.arange(boxes.images), np.diff(boxes.truth_offsets))
            for column, outcome in enumerate((TRUE_POSITIVE, FALSE_POSITIVE)):
                counts[:, column] += np.bincount(image[kept & (matching.outcome == outcome)], minlength=boxes.images)
            counts[:, 2] += np.bincount(there[matching.counted], minlength=boxes.images)
        counts[:, 2] -= counts[:, 0]
        return counts


@dataclass(frozen=True, slots=True)
class Objects:
    """What is there in one image.

    Attributes:
        boxes: [n, 4] x1, y1, x2, y2.
        classes: [n] index into the names of the classes, or `ANY_CLASS`.
        regions: [n] whether it is nothing to be found, and a detection of it neither right nor wrong.
        singles: [n] which of these are one object each; see `components.measure.dataset.Truth`. None: none of them.
    """

    boxes: NDArray[np.floating[Any]]
    classes: Integers
    regions: Booleans
    singles: Booleans | None = None


class AveragePrecision:
    """The metric of detectors; see `components.measure.metric.Metric`."""

    name = AVERAGE_PRECISION

    def __init__(
        self,
        class_names: Sequence[str],
        sizes: Sizes | Mapping[str, Sizes] = ANY_HEIGHT,
        iou: float | Mapping[str, float] = 0.5,
    ) -> None:
        """Begins without images; for the arguments see `Measured.of`."""
        self._class_names, self._sizes, self._iou = tuple(class_names), sizes, iou
        self._images: list[str] = []
        self._truths: list[Objects] = []
        self._found: list[Found] = []

    def add(self, image: str, truth: Objects, found: Found) -> None:
        """Adds the ground truth and the detections of an image."""
        self._images.append(image)
        self._truths.append(truth)
        self._found.append(found)

    def score(self) -> Score:
        """Returns the score of all images."""
        return self.measured().score()

    def outcomes(self) -> dict[str, CurveOutcomes]:
        """Returns by class what each image contributed."""
        return self.measured().outcomes()

    def measured(self) -> Measured:
        """Returns everything, matched."""
        there = self._truths
        truth = Truth(
            tuple(self._images),
            offsets_of(np.array([len(each.boxes) for each in there], np.int64)),
            np.concatenate([np.zeros((0, 4)), *(each.boxes for each in there)]).astype(np.float64, copy=False),
            self._class_names,
            np.concatenate([np.zeros(0, np.int64), *(each.classes for each in there)]),
            np.concatenate([np.zeros(0, bool), *(each.regions for each in there)]),
            singles=np.concatenate([np.zeros(0, bool), *(_or_none(each.singles, len(each.boxes)) for each in there)]),
        )
        return Measured.of("", truth, Predictions.gathered(self._found), self._sizes, self._iou)


def _or_none(values: Booleans | None, count: int) -> Booleans:
    return np.zeros(count, bool) if values is None else values
