"""Average precision by the official protocol of WIDER FACE: Easy, Medium and Hard.

Source: the evaluation tools of http://shuoyang1213.me/WIDERFACE (`wider_eval.m`) and their ports. What sets the
protocol apart from `matching` and `curve`:

- scores are stretched so that the lowest one of the whole set becomes 0 and the highest 1;
- boxes are whole pixels and their borders belong to them: x, y, w, h covers w + 1 times h + 1 pixels;
- a detection, by descending score within its image, only ever looks at the face it overlaps most, of equal ones the
  first. Under IoU 0.5 with that, it is false. When that face is not in the subset, the detection is as if it were not
  there. Otherwise the first to come finds the face, and the others are false;
- an image in which no face at all is annotated is left out with all that was detected there;
- precision and recall stand at 1,000 thresholds, 0.999, 0.998, …, 0 of the stretched score, and the average precision
  is the area under the interpolated precision at these.

The faces outside the subset include those that are only in a harder one, so that no face is counted against a detector
that finds more than is asked for.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.measure.boxes import Floats
from components.measure.dataset import Booleans, Integers, Predictions, Truth
from components.measure.pairs import overlapping_pairs

SUBSETS = ("easy", "medium", "hard")
THRESHOLDS = 1000
IOU = 0.5
_BORDER = np.array([0.0, 0.0, 1.0, 1.0])
_NONE = -1


@dataclass(frozen=True, slots=True)
class WiderOutcomes:
    """What a detector did in one subset, sorted by image, ready to be counted with images left out or repeated.

    Attributes:
        image: [K] the image of each detection that counts.
        step: [K] the first of the 1,000 thresholds, from the highest, that lets it through.
        right: [K] whether it finds a face.
        faces: [I] faces of the subset in each image.
        score_range: Lowest and highest score of the set, which became 0 and 1.
    """

    image: Integers
    step: Integers
    right: Booleans
    faces: Integers
    score_range: tuple[float, float]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.faces)

    def thresholds(self) -> Floats:
        """Returns [1000] the thresholds, descending, in the detector's own scores."""
        low, high = self.score_range
        return low + _thresholds() * (high - low)

    def curve(self) -> tuple[Floats, Floats]:
        """Returns precision [1000] and recall [1000] at the thresholds, 0 to 1; recall is NaN when there is no face."""
        kept = np.cumsum(np.bincount(self.step, minlength=THRESHOLDS))
        found = np.cumsum(np.bincount(self.step[self.right], minlength=THRESHOLDS))
        return _curve(kept.astype(np.float64), found.astype(np.float64), np.asarray(self.faces.sum(), np.float64))

    def value(self) -> float:
        """Returns the average precision, 0 to 1; NaN when there is no face."""
        return float(_average_precision(*self.curve()))

    def resampled(self, weights: Integers) -> Floats:
        """Returns [B] the average precision, in each row of `weights` [B, I] with image i counted so often.

        Scores stay stretched as in the whole set.
        """
        counts = weights.astype(np.float32)  # whole numbers below 2^24: exact
        kept = np.cumsum(counts @ self._histogram(np.ones_like(self.right)), axis=1, dtype=np.float64)
        found = np.cumsum(counts @ self._histogram(self.right), axis=1, dtype=np.float64)
        return _average_precision(*_curve(kept, found, (weights @ self.faces).astype(np.float64)[:, None]))

    def _histogram(self, which: Booleans) -> NDArray[np.float32]:
        """Returns [I, 1000] how many of these detections each threshold is the first to let through."""
        places = self.image[which] * THRESHOLDS + self.step[which]
        histogram = np.bincount(places, minlength=self.images * THRESHOLDS)
        return histogram.reshape(self.images, THRESHOLDS).astype(np.float32)


def _curve(kept: Floats, found: Floats, faces: Floats) -> tuple[Floats, Floats]:
    """Returns precision and recall [..., 1000] from what is kept and found at the thresholds and all faces [...]."""
    precision = np.divide(found, kept, out=np.zeros_like(found), where=kept > 0)
    return precision, np.divide(found, faces, out=np.full_like(found, np.nan), where=np.asarray(faces > 0))


def _average_precision(precision: Floats, recall: Floats) -> Floats:
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    return np.asarray(np.sum(np.diff(recall, prepend=0.0, axis=-1) * envelope, axis=-1))


def score(truth: Truth, predictions: Predictions) -> dict[str, WiderOutcomes]:
    """Scores detections of faces by the official protocol.

    Args:
        truth: All annotated faces, with `SUBSETS`.
        predictions: Detections in the same pixels.

    Returns:
        By subset, in the order of `SUBSETS`.

    Raises:
        ValueError: A subset is missing in `truth`.
    """
    missing = [name for name in SUBSETS if name not in truth.subsets]
    if missing:
        raise ValueError(f"the truth does not say which faces are {', '.join(missing)}")
    favourite = _favourites(truth, predictions)
    image = predictions.images
    annotated = np.diff(truth.offsets)[image] > 0
    first = _first_of_each(favourite, np.lexsort((-predictions.scores, image)))
    step, score_range = _steps(predictions.scores)
    scores = {}
    for name in SUBSETS:
        inside = truth.subsets[name]
        counts = annotated & ((favourite == _NONE) | inside[favourite]) if len(inside) else annotated
        faces = np.bincount(truth.image_of_box[inside], minlength=len(truth.images))
        scores[name] = WiderOutcomes(image[counts], step[counts], first[counts], faces, score_range)
    return scores


def _favourites(truth: Truth, predictions: Predictions) -> Integers:
    """Returns [D] the face that each detection overlaps most, by at least `IOU`, or `_NONE`."""
    pairs = overlapping_pairs(
        predictions.boxes + _BORDER,
        predictions.offsets,
        truth.boxes + _BORDER,
        truth.offsets,
        np.zeros(len(truth.boxes), bool),
        IOU,
    )
    order = np.lexsort((pairs.truth, -pairs.share, pairs.detection))
    detection, best = np.unique(pairs.detection[order], return_index=True)
    favourite = np.full(len(predictions.boxes), _NONE)
    favourite[detection] = pairs.truth[order][best]
    return favourite


def _first_of_each(favourite: Integers, order: Integers) -> Booleans:
    """Returns [D] whether a detection is the first, in this `order`, with its favourite."""
    first = np.zeros(len(favourite), bool)
    wanting = order[favourite[order] != _NONE]
    first[wanting[np.unique(favourite[wanting], return_index=True)[1]]] = True
    return first


def _thresholds() -> Floats:
    """Returns [1000] the thresholds of the stretched score, as the protocol computes them."""
    return 1 - np.arange(1, THRESHOLDS + 1) / THRESHOLDS


def _steps(scores: Floats) -> tuple[Integers, tuple[float, float]]:
    """Returns [D] the index of the first threshold that each score reaches, and the lowest and the highest score.

    Where all scores are equal, which the protocol leaves undefined (0 / 0), they all count as 1.
    """
    low, high = float(scores.min(initial=np.inf)), float(scores.max(initial=-np.inf))
    stretched = (scores - low) / (high - low) if high > low else np.ones(len(scores))
    return np.searchsorted(-_thresholds(), -stretched).astype(np.int64), (low, high)
