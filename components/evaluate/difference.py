"""Whether two evaluations of the same images found the same boxes: a model here, and the same model served."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.vision.scoring import Scored

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


def compare(one: Scored, other: Scored, scales: Sequence[float], tolerance: float = TOLERANCE) -> Difference:
    """Compares what two predictors found in the same images.

    Args:
        one: An evaluation.
        other: One of the same images and classes.
        scales: For each image, pixels of the network's input (in which both have their boxes) per stored pixel.
        tolerance: Stored pixels by which each of a box's edges may be off.
    """
    differing, edge, score = [], 0.0, 0.0
    for index, image in enumerate(one.ids):
        same = True
        for name, rows in one.boxes.items():
            left, right = rows[index].detections, other.boxes[name][index].detections
            pairs = counterparts(left[:, :4] / scales[index], right[:, :4] / scales[index], tolerance)
            same &= len(pairs) == len(left) == len(right)
            for i, j in pairs:
                edge = max(edge, float(np.abs(left[i, :4] - right[j, :4]).max()) / scales[index])
                score = max(score, abs(float(left[i, 4] - right[j, 4])))
        if not same:
            differing.append(image)
    return Difference(len(one.ids), differing, edge, score)


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
