"""Greedy non-maximum suppression."""

import numpy as np
from numpy.typing import NDArray

from components.decode.grid.overlap import Overlap, overlapping


def nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], iou_threshold: float, overlap: Overlap
) -> NDArray[np.int64]:
    """Returns the indices [K] that greedy non-maximum suppression keeps, best score first, equal ones by index.

    Args:
        boxes: [N, 4] in pixels.
        scores: [N].
        iou_threshold: A box that overlaps an already kept one by more than this is dropped.
        overlap: The definition of IoU.
    """
    order = np.argsort(-scores, kind="stable")
    suppresses = overlapping(boxes[order], overlap, iou_threshold, lambda iou: iou > iou_threshold)
    suppressed = np.zeros(len(order), bool)
    kept = []
    for position in range(len(order)):
        if not suppressed[position]:
            kept.append(position)
            suppressed |= suppresses[position]
    return order[kept]
