"""How far a score could be another one, had other images been drawn: the bootstrap over images (Efron, 1979).

Matching is done once. A replicate draws as many images as there are, with replacement; every image counts as often as
it was drawn, and the score is taken again from the outcomes that are known already.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from components.measure.boxes import Floats
from components.measure.dataset import Integers
from components.measure.matching import NEUTRAL, TRUE_POSITIVE, Matcher, Matching

REPLICATES = 1000
CONFIDENCE = 0.95
_AT_ONCE = 250  # replicates


class Outcomes(Protocol):
    """What each image contributes to a value, which can be taken again with every image counted any number of times."""

    @property
    def images(self) -> int:
        """Number of images."""
        ...

    def value(self) -> float:
        """Returns the value, 0 to 1; NaN when nothing is to be found."""
        ...

    def resampled(self, weights: Integers) -> Floats:
        """Returns [B] the values, in each row of `weights` [B, I] with image i counted so often."""
        ...


@dataclass(frozen=True, slots=True)
class CurveOutcomes:
    """The area under the precision-recall curve of one class, as `PrecisionRecall.average_precision` takes it.

    The interpolated precision is highest where a right detection has just been kept, and equal scores are kept
    together. So detections fall into steps, by descending score: each ends with the last score of a right one. What
    comes after the last step changes nothing and is not here.

    Attributes:
        image: [K] the image of each detection that is right or false.
        steps: [E] where each step begins.
        right_image: [R] the image of each right detection.
        right_steps: [E] where each step begins among the right ones.
        objects: [I] objects of each image.
    """

    image: NDArray[np.int32]
    steps: Integers
    right_image: NDArray[np.int32]
    right_steps: Integers
    objects: Integers

    @classmethod
    def of(cls, matcher: Matcher, matching: Matching) -> Self:
        """Gathers what a matching says about each image."""
        boxes = matcher.boxes
        kept = matching.order[matching.outcome[matching.order] != NEUTRAL]
        right = matching.outcome[kept] == TRUE_POSITIVE
        image = np.repeat(np.arange(boxes.images, dtype=np.int32), np.diff(boxes.detection_offsets))[kept]
        ends = matching.curve().thresholds()
        found = np.cumsum(right)[ends]
        rises = np.diff(found, prepend=0) > 0
        ends, found = ends[rises] + 1, found[rises]
        last = int(ends[-1]) if len(ends) else 0
        image_of_truth = np.repeat(np.arange(boxes.images), np.diff(boxes.truth_offsets))
        objects = np.bincount(image_of_truth[matching.counted], minlength=boxes.images)
        begins = (np.concatenate([[0], edges])[:-1].astype(np.int64) for edges in (ends, found))
        return cls(image[:last], next(begins), image[right], next(begins), objects)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.objects)

    def value(self) -> float:
        """See `Outcomes`."""
        return float(self.resampled(np.ones((1, self.images), np.int64))[0])

    def resampled(self, weights: Integers) -> Floats:
        """See `Outcomes`."""
        return np.array([self._weighted(row) for row in weights.astype(np.int32)], np.float64)

    def _weighted(self, counts: NDArray[np.int32]) -> float:
        objects = int(counts @ self.objects)
        if not objects:
            return float("nan")
        if not len(self.steps):
            return 0.0
        kept = np.cumsum(np.add.reduceat(counts[self.image], self.steps))
        found = np.add.reduceat(counts[self.right_image], self.right_steps)
        precision = np.divide(np.cumsum(found), kept, out=np.zeros(len(kept)), where=kept > 0)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(found @ envelope) / objects


@dataclass(frozen=True, slots=True)
class RatioOutcomes:
    """A sum over a count: a share of what is right, or a mean error.

    Attributes:
        total: [I] each image's sum.
        objects: [I] over how many objects.
    """

    total: Floats
    objects: Integers

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.objects)

    def value(self) -> float:
        """See `Outcomes`."""
        return float(self.resampled(np.ones((1, self.images), np.int64))[0])

    def resampled(self, weights: Integers) -> Floats:
        """See `Outcomes`."""
        counts = weights @ self.objects
        return np.asarray(
            np.divide(weights @ self.total, counts, out=np.full(len(weights), np.nan), where=counts > 0), np.float64
        )


@dataclass(frozen=True, slots=True)
class MeanOutcomes:
    """The mean of the values, of several classes, that exist."""

    parts: Sequence[Outcomes]

    @property
    def images(self) -> int:
        """Number of images."""
        return self.parts[0].images

    def value(self) -> float:
        """See `Outcomes`."""
        return float(_mean(np.array([[part.value()] for part in self.parts]))[0])

    def resampled(self, weights: Integers) -> Floats:
        """See `Outcomes`."""
        return _mean(np.array([part.resampled(weights) for part in self.parts]))


def _mean(values: Floats) -> Floats:
    """Returns the means [B] over the values [C, B] that are not NaN; NaN where none is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, known.sum(axis=0), out=np.full(len(total), np.nan), where=np.any(known, axis=0)))


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and where it lies with the wanted confidence.

    Attributes:
        value: The score of the images as they are, 0 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        confidence: Share of the replicates inside it.
        replicates: Number of replicates.
        undefined: How many of them held no object and were left out.
    """

    value: float
    low: float
    high: float
    confidence: float
    replicates: int
    undefined: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """By how much the first of two models scores higher than the second one on the same images.

    Attributes:
        interval: The difference, first minus second, and its interval.
        p_value: How likely, were neither model better, a difference at least as large would be in either direction:
            twice the share of the replicates on the far side of 0 (0 itself lies on both). It is below 1 - confidence
            when, and but for the rounding of quantiles only when, 0 lies outside the interval.
    """

    interval: Interval
    p_value: float


def confidence_interval(
    outcomes: Outcomes, confidence: float = CONFIDENCE, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """Returns a score with its percentile interval.

    Args:
        outcomes: What to resample.
        confidence: Share of the replicates inside the interval, above 0 and below 1.
        replicates: Number of replicates.
        seed: Equal seeds draw equal images.

    Raises:
        ValueError: Nothing is to be found, in any replicate.
    """
    values = _resample([outcomes], replicates, seed)[0]
    return _interval(outcomes.value(), values, confidence)


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are drawn: with what confidence, and from how many replicates."""

    confidence: float = CONFIDENCE
    replicates: int = REPLICATES

    def interval(self, outcomes: Outcomes) -> Interval:
        """See `confidence_interval`."""
        return confidence_interval(outcomes, self.confidence, self.replicates)

    def difference(self, first: Outcomes, second: Outcomes) -> PairedDifference:
        """See `paired_difference`."""
        return paired_difference(first, second, self.confidence, self.replicates)


def paired_difference(
    first: Outcomes, second: Outcomes, confidence: float = CONFIDENCE, replicates: int = REPLICATES, seed: int = 0
) -> PairedDifference:
    """Compares two models on the same images: both are taken again on the images that each replicate draws.

    Args:
        first: One model's outcomes.
        second: The other one's, over the same images in the same order.
        confidence: See `confidence_interval`.
        replicates: See `confidence_interval`.
        seed: See `confidence_interval`.

    Raises:
        ValueError: The two have different numbers of images, or nothing is to be found.
    """
    if first.images != second.images:
        raise ValueError(f"the two models saw {first.images} and {second.images} images; a pair sees the same ones")
    values = _resample([first, second], replicates, seed)
    differences = values[0] - values[1]
    interval = _interval(first.value() - second.value(), differences, confidence)
    known = differences[~np.isnan(differences)]
    # One more on either side: the data themselves are one of the draws, and no finite number of draws proves a 0.
    side = 1 + min(int(np.sum(known <= 0)), int(np.sum(known >= 0)))
    return PairedDifference(interval, min(1.0, 2 * side / (len(known) + 1)))


def _resample(models: Sequence[Outcomes], replicates: int, seed: int) -> Floats:
    """Returns [len(models), B] the values of the same drawn images."""
    images, random = models[0].images, np.random.default_rng(seed)
    if not images:
        return np.full((len(models), replicates), np.nan)
    parts = []
    for start in range(0, replicates, _AT_ONCE):
        drawn = random.integers(0, images, (min(_AT_ONCE, replicates - start), images))
        weights = np.stack([np.bincount(row, minlength=images) for row in drawn])
        parts.append(np.stack([outcomes.resampled(weights) for outcomes in models]))
    return np.concatenate(parts, axis=1)


def _interval(value: float, values: Floats, confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies above 0 and below 1, not at {confidence:g}")
    known = values[~np.isnan(values)]
    if not len(known):
        raise ValueError("nothing is to be found in these images, so that there is no score")
    low, high = np.quantile(known, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(value, float(low), float(high), confidence, len(values), len(values) - len(known))
