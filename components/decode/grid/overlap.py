"""Which boxes overlap enough: the whole N x N table at float32 speed, every entry as float64 decides it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.measure.boxes import Floats, area, intersection

Flags = NDArray[np.bool_]

# Rows worked on at a time, so that the three float32 buffers stay in a core's second-level cache.
_ROWS = 48
# float32 boxes give a pair's share (see `overlapping`) within 5 float32 roundings = 3e-7; nearer pairs are decided
# in float64.
_DOUBT = 1e-6


@dataclass(frozen=True, slots=True)
class Overlap:
    """One definition of intersection over union; with both at 0, boxes without area have none (NaN).

    Attributes:
        smoothing: Added to the union, square pixels.
        border: Pixels added to every width and height, also to the intersection's: 1 where x2 and y2 are the last
            pixels inside a box.
    """

    smoothing: float = 0.0
    border: float = 0.0

    def of_pairs(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> Floats:
        """Returns the float64 IoU [...] of boxes [..., 4] with boxes [..., 4]."""
        widened = np.array([0.0, 0.0, self.border, self.border])
        a, b = first + widened, second + widened
        common = intersection(a, b)
        return common / (area(a) + area(b) - common + self.smoothing)


def overlapping(boxes: NDArray[np.float32], overlap: Overlap, limit: float, enough: Callable[[Floats], Flags]) -> Flags:
    """Returns the symmetric table [N, N] of `enough(IoU)` for every pair of boxes, each with itself included.

    With share = intersection / (area + area + smoothing), IoU >= limit is share >= limit / (1 + limit). A share needs
    no union and one half of the table gives the other; only pairs too close to the limit for float32 go to `enough`.

    Args:
        boxes: [N, 4] x1, y1, x2, y2, x1 <= x2 and y1 <= y2.
        overlap: The definition of IoU.
        limit: Where `enough` turns from false to true.
        enough: The exact decision on float64 IoUs [M].
    """
    count = len(boxes)
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T, np.float32)
    widened = boxes + np.array([0.0, 0.0, overlap.border, overlap.border])
    size = (area(widened) + overlap.smoothing / 2).astype(np.float32)
    share = max(limit, 0.0) / (1.0 + max(limit, 0.0))
    zero = np.zeros(count, np.float32)  # NumPy takes the maximum with an array faster than with a number
    table = np.empty((count, count), bool)
    buffers = np.empty((3, _ROWS * count), np.float32)
    for start in range(0, count, _ROWS):
        rows, columns = slice(start, min(start + _ROWS, count)), slice(start, count)
        shape = rows.stop - start, count - start
        common, other, nearest = (buffer[: shape[0] * shape[1]].reshape(shape) for buffer in buffers)
        for low, high, extent in ((x1, x2, common), (y1, y2, other)):
            np.minimum(high[rows, None], high[columns], out=extent)
            extent -= np.maximum(low[rows, None], low[columns], out=nearest)
            if overlap.border:
                extent += np.float32(overlap.border)
            np.maximum(extent, zero[columns], out=extent)
        common *= other
        np.add(size[rows, None], size[columns], out=other)
        common /= other
        near, sure = common >= share - _DOUBT, common >= share + _DOUBT
        doubtful = np.flatnonzero(near != sure)
        if len(doubtful):
            row, column = np.divmod(doubtful, shape[1])
            near.flat[doubtful] = enough(overlap.of_pairs(boxes[start + row], boxes[start + column]))
        table[rows, columns] = near
        table[columns, rows] = near.T
    return table
