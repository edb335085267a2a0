"""Whether two evaluations of the same images found the same boxes: a model here, and the same model served."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.measure.dataset import Predictions

Boxes = NDArray[np.floating[Any]]

# Pixels of the stored image by which an edge may be off.
TOLERANCE = 0.5


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two evaluations agree.

    Attributes:
        images: How many were compared.
        differing: Those with a box that has no counterpart of its own in the other evaluation.
        edge: Farthest that an edge of a box lies from its counterpart's, pixels of the stored image.
        score: Farthest that a score lies from its counterpart's.
    """

    images: int
    differing: list[str]
    edge: float
    score: float

    @property
    def share(self) -> float:
        """Share of the images that differ, 0 to 1."""
        return len(self.differing) / self.images


def compare(
    images: Sequence[str],
    one: Predictions,
    other: Predictions,
    scales: Sequence[float],
    tolerance: float = TOLERANCE,
) -> Difference:
    """Compares what two predictors found in the same images.

    Args:
        images: Their names.
        one: What one model found in them.
        other: What the other one found; the same classes.
        scales: For each image, pixels of the network's input (in which both have their boxes) per stored pixel.
        tolerance: Stored pixels by which each of a box's edges may be off.
    """
    differing, edge, score = [], 0.0, 0.0
    for index, image in enumerate(images):
        here, there = (slice(*each.offsets[index : index + 2]) for each in (one, other))
        same = True
        for kind in np.union1d(one.classes[here], other.classes[there]):
            left, right = (
                np.flatnonzero(each.classes[rows] == kind) + rows.start for each, rows in ((one, here), (other, there))
            )
            boxes, others = one.boxes[left] / scales[index], other.boxes[right] / scales[index]
            pairs = counterparts(boxes, others, tolerance)
            same &= len(pairs) == len(left) == len(right)
            for i, j in pairs:
                edge = max(edge, float(np.abs(boxes[i] - others[j]).max()))
                score = max(score, abs(float(one.scores[left[i]] - other.scores[right[j]])))
        if not same:
            differing.append(image)
    return Difference(len(images), differing, edge, score)


def counterparts(left: Boxes, right: Boxes, tolerance: float) -> list[tuple[int, int]]:
    """Pairs boxes [N, 4] with boxes [M, 4] none of whose edges is off by more than `tolerance`, nearest first.

    Each box is in one pair at most.
    """
    distance = np.abs(left[:, None].astype(np.float64) - right[None]).max(axis=-1)
    near = np.argwhere(distance <= tolerance)
    pairs: dict[int, int] = {}
    for i, j in near[np.argsort(distance[tuple(near.T)], kind="stable")].tolist():
        if i not in pairs and j not in pairs.values():
            pairs[i] = j
    return list(pairs.items())
