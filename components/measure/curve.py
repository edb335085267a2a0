"""Precision and recall over the score threshold, and what is read off that curve."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.measure.boxes import Floats

# How a curve becomes one number: the area under it, or the mean over eleven recalls (TAO's `average_precision_mode`).
AveragePrecisionMode = Literal["integrate", "sample"]
# 0, 0.1, …, 1.
_SAMPLES = 11
# COCO's 101 recalls, computed as COCO does: 0.29 or 0.57 is not k / 100 to the last bit.
_COCO_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class PrecisionRecall:
    """What is right and what is found when the first 1, 2, … K detections by descending score are kept.

    Attributes:
        true_positives: [K] correct detections among those kept.
        scores: [K] the score of the last detection kept.
        objects: Number of objects to be found.
    """

    true_positives: NDArray[np.int64]
    scores: Floats
    objects: int

    @property
    def precision(self) -> Floats:
        """[K] true positives over detections kept, 0 to 1."""
        return self.true_positives / np.arange(1, len(self.scores) + 1)

    @property
    def recall(self) -> Floats:
        """[K] true positives over objects, 0 to 1; NaN when there is no object."""
        return self.true_positives / self.objects if self.objects else np.full(len(self.scores), np.nan)

    def envelope(self) -> Floats:
        """Returns [K] the interpolated precision: the best precision at this recall or any higher one."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]

    def average_precision(self, mode: AveragePrecisionMode = "integrate") -> float:
        """Returns the average precision, 0 to 1.

        NaN when there is no object; 0 when nothing was detected; 1 for a perfect detector. Detections of equal score
        are kept together, as any threshold keeps them, so that their order does not matter.

        Args:
            mode: `integrate`: the area under the interpolated curve, over all its points (VOC 2010 and later).
                `sample`: the mean of the interpolated precision at recall 0, 0.1, …, 1 (VOC 2007).
        """
        if not self.objects:
            return float("nan")
        kept = self.thresholds()
        found = self.true_positives[kept]
        envelope = np.maximum.accumulate((found / (kept + 1))[::-1])[::-1]
        if mode == "sample":
            # In whole numbers: a recall of 3/10 reaches the sample at 0.3, which a division may miss.
            reached = np.searchsorted(found * (_SAMPLES - 1), np.arange(_SAMPLES) * self.objects)
            return float(np.append(envelope, 0.0)[reached].mean())
        return float(np.sum(np.diff(found, prepend=0) * envelope) / self.objects)

    def coco_average_precision(self) -> float:
        """Returns the average precision as pycocotools has it at one IoU threshold, 0 to 1; NaN without an object.

        It is the mean of the interpolated precision at 101 recalls, and every detection is a point of the curve: the
        order of equal scores counts. pycocotools sorts images by their number.
        """
        if not self.objects:
            return float("nan")
        reached = np.searchsorted(self.recall, _COCO_RECALLS)
        return float(np.append(self.envelope(), 0.0)[reached].mean())

    def f1(self) -> Floats:
        """Returns [K] the harmonic mean of precision and recall."""
        return 2 * self.true_positives / (np.arange(1, len(self.scores) + 1) + self.objects)

    def thresholds(self) -> NDArray[np.int64]:
        """Returns the indices at which a threshold can stand: the last detection of each group of equal scores."""
        return np.flatnonzero(np.append(self.scores[1:] != self.scores[:-1], [True] * bool(len(self.scores))))

    def best_f1(self) -> int | None:
        """Returns the index of the threshold with the highest F1, of equal ones the highest; None without any."""
        thresholds = self.thresholds()
        if not self.objects or not len(thresholds):
            return None
        return int(thresholds[np.argmax(self.f1()[thresholds])])
