"""Average precision as TAO 5.0 computes it, with its defects, for comparing numbers (`evaluation/compute_metrics.py`).

It differs from `matching` and `curve`, which are right, in that

- boxes are rounded to whole pixels and their borders belong to them: a box is x2 - x1 + 1 pixels wide;
- labels and detections of other sizes, and ignore regions, are as if they were not there: a detection of an object
  that does not count is false;
- a detection only ever looks at the object it overlaps most, and is false when that one has been taken;
- `integrate` loses what lies left of the first detection's recall, and the precision of the last recall: a perfect
  detector of n objects scores (n - 1) / n;
- a class without objects scores 0 and counts in the mean.
"""

import numpy as np
from numpy.typing import NDArray

from components.measure.boxes import Floats
from components.measure.curve import AveragePrecisionMode
from components.measure.matching import ClassBoxes, Sizes


def average_precision(boxes: ClassBoxes, sizes: Sizes, iou_threshold: float, mode: AveragePrecisionMode) -> float:
    """Returns TAO's average precision of one class, 0 to 1.

    Args:
        boxes: What was found and what is there, in pixels of the network's input.
        sizes: The boxes that count, by their width and height before rounding.
        iou_threshold: Smallest IoU of a match.
        mode: See `PrecisionRecall.average_precision`.
    """
    true_positive, objects = _match(boxes, sizes, iou_threshold)
    if not objects:
        return 0.0
    found = np.cumsum(true_positive)
    recall, precision = found / objects, found / np.arange(1, len(found) + 1)
    return _sample(recall, precision) if mode == "sample" else _integrate(recall, precision)


def _match(boxes: ClassBoxes, sizes: Sizes, iou_threshold: float) -> tuple[NDArray[np.bool_], int]:
    """Returns whether each detection, by descending score, is right [K], and the number of objects.

    TAO sorts unstably; here equal scores keep their order.
    """
    scores, favourites, objects = [np.zeros(0)], [np.zeros(0, np.int64)], 0
    found, wanted = sizes.contains(boxes.detections), sizes.contains(boxes.truths) & ~boxes.regions
    for image in range(boxes.images):
        rows, there = (slice(*edges[image : image + 2]) for edges in (boxes.detection_offsets, boxes.truth_offsets))
        detections, truths = boxes.detections[rows][found[rows]], boxes.truths[there][wanted[there]]
        favourite = np.full(len(detections), -1)
        if len(truths):
            # Python's round and NumPy's rint both take halves to the even neighbour.
            overlaps = _overlap(np.rint(detections), np.rint(truths))
            best = overlaps.argmax(axis=1)
            near = overlaps[np.arange(len(detections)), best] >= iou_threshold
            favourite = np.where(near, objects + best, -1)
        scores.append(boxes.scores[rows][found[rows]])
        favourites.append(favourite)
        objects += len(truths)
    taken = np.concatenate(favourites)[np.argsort(-np.concatenate(scores).astype(np.float32), kind="stable")]
    right = np.zeros(len(taken), bool)
    right[np.unique(taken, return_index=True)[1]] = True  # the first one that wants an object gets it
    return right & (taken >= 0), objects


def _overlap(a: Floats, b: Floats) -> Floats:
    """Returns the IoU [N, M] of boxes [N, 4] and [M, 4] in whole pixels, borders included."""
    first, second = a[:, None], b[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2]) + 1
    common = np.maximum(sides, 0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(axis=-1) for boxes in (first, second)]
    return np.asarray(common / (areas[0] + areas[1] - common), np.float64)


def _sample(recall: Floats, precision: Floats) -> float:
    """Mean over 11 recalls of the best precision at this recall or a higher one; a recall of 3/10 is below 0.3."""
    return float(np.mean([precision[recall >= at].max(initial=0.0) for at in np.linspace(0, 1, 11)]))


def _integrate(recall: Floats, precision: Floats) -> float:
    """Sum over the recalls r_0 < … < r_k of (r_{i+1} - r_i) times the best precision where r_i <= recall < r_k."""
    recalls, first = np.unique(recall, return_index=True)
    if len(recalls) < 2:
        return 0.0
    before_last = precision[: first[-1]]
    best = np.maximum.accumulate(before_last[::-1])[::-1][first[:-1]]
    return float(np.sum(np.diff(recalls) * best))
