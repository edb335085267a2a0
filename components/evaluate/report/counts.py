"""How many detections are right and false, whatever threshold one chooses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.measure.average_precision import Measured
from components.measure.boxes import Floats
from components.measure.curve import PrecisionRecall
from components.measure.dataset import Integers
from components.measure.matching import FALSE_POSITIVE, NEUTRAL, TRUE_POSITIVE


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
