"""What a report and the evidence of a score are made from: what one model found in a set of images, class by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from components.evaluate.evaluation import Evaluated
from components.measure.boxes import Floats
from components.measure.curve import PrecisionRecall
from components.measure.dataset import ANY_CLASS, Integers, Predictions, Truth
from components.measure.matching import (
    FALSE_POSITIVE,
    NEUTRAL,
    TRUE_POSITIVE,
    ClassBoxes,
    Matcher,
    Matching,
    Sizes,
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's detections, matched with what is there.

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
    def of(cls, name: str, truth: Truth, predictions: Predictions, sizes: Sizes, iou: float) -> Self:
        """Matches all classes of the truth."""
        matchers, attributes = {}, {}
        for index, kind in enumerate(truth.class_names):
            matchers[kind] = Matcher(ClassBoxes.of(truth, predictions, kind), iou)
            chosen = (truth.classes == index) | (truth.regions & (truth.classes == ANY_CLASS))
            attributes[kind] = {name: values[chosen] for name, values in truth.attributes.items()}
        matchings = {kind: matcher.match(sizes) for kind, matcher in matchers.items()}
        return cls(name, truth.images, matchers, matchings, attributes)

    @classmethod
    def of_evaluated(cls, model: Evaluated) -> Self:
        """Takes what the workflow's own scoring matched."""
        return cls(model.name, model.scored.ids, model.scored.matchers, model.matchings)

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
class Counts:
    """How many are right, false and missed, whatever threshold one chooses; thresholds ascend.

    Attributes:
        thresholds: [S] scores, the same for all models.
        found: [M, S] objects found by detections of at least this score.
        false: [M, S] false positives.
        objects: Objects to be found.
        best: [M] the index of the threshold at which F1 is best.
    """

    thresholds: Floats
    found: Integers
    false: Integers
    objects: int
    best: Integers

    def shown(self) -> list[str]:
        """Returns the thresholds [S] with as many digits as tell them apart."""
        fine = self.thresholds[-1] - self.thresholds[0] < 0.01
        return [f"{value:.6g}" if fine else f"{value:.4f}" for value in self.thresholds.tolist()]


def counts_over_thresholds(models: Sequence[Measured], steps: int = 201) -> Counts:
    """Counts at thresholds from the lowest to the highest score that a model gives: evenly spaced, and at best F1s."""
    outcomes, best = [], []
    for model in models:
        scores = np.concatenate([m.scores for m in model.matchings.values()])
        outcome = np.concatenate([m.outcome for m in model.matchings.values()])
        order = np.argsort(-scores[outcome != NEUTRAL], kind="stable")
        scores, outcome = scores[outcome != NEUTRAL][order], outcome[outcome != NEUTRAL][order]
        outcomes.append((scores, outcome))
        index = PrecisionRecall(np.cumsum(outcome == TRUE_POSITIVE), scores, model.objects()).best_f1()
        best.append(scores[:1] if index is None else scores[[index]])
    everything = np.concatenate([scores for scores, _ in outcomes])
    low, high = (everything.min(), everything.max()) if len(everything) else (0.0, 1.0)
    thresholds = np.unique(np.concatenate([np.linspace(low, high, steps), *best]))
    found, false = (
        np.stack([_kept(scores[of == outcome], thresholds) for scores, of in outcomes])
        for outcome in (TRUE_POSITIVE, FALSE_POSITIVE)
    )
    places = [int(np.searchsorted(thresholds, at[0])) if len(at) else 0 for at in best]
    return Counts(thresholds, found, false, models[0].objects(), np.array(places, np.int64))


def _kept(scores: Floats, thresholds: Floats) -> Integers:
    """Returns [S] how many scores reach each threshold."""
    return (len(scores) - np.searchsorted(np.sort(scores), thresholds)).astype(np.int64)
