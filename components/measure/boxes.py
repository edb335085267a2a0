"""Geometry of axis-aligned boxes (x1, y1, x2, y2), continuous coordinates, any one unit."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def area(boxes: ArrayLike) -> Floats:
    """Returns the areas [...] of boxes [..., 4]; a box turned inside out has none."""
    b = np.asarray(boxes, np.float64)
    return np.asarray(np.maximum(b[..., 2] - b[..., 0], 0.0) * np.maximum(b[..., 3] - b[..., 1], 0.0), np.float64)


def intersection(a: ArrayLike, b: ArrayLike) -> Floats:
    """Returns the common areas [...] of boxes `a` and `b`, each [..., 4], broadcast against each other."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    width = np.minimum(first[..., 2], second[..., 2]) - np.maximum(first[..., 0], second[..., 0])
    height = np.minimum(first[..., 3], second[..., 3]) - np.maximum(first[..., 1], second[..., 1])
    return np.asarray(np.maximum(width, 0.0) * np.maximum(height, 0.0), np.float64)


def overlap(a: ArrayLike, b: ArrayLike, of_first: ArrayLike = False) -> Floats:
    """Returns the overlap [...], 0 to 1, of boxes `a` and `b`, each [..., 4], broadcast against each other.

    Args:
        a: The first boxes.
        b: The second boxes.
        of_first: Boolean [...]. False: intersection over union. True: the share of `a` that lies in `b`, which is
            how COCO measures a detection against a crowd region.

    Returns:
        The overlaps. A degenerate box (no width or no height) overlaps nothing: 0, never NaN.
    """
    common = intersection(a, b)
    whole = np.where(of_first, area(a), area(a) + area(b) - common)
    return np.divide(common, whole, out=np.zeros_like(common), where=common > 0)


def iou(a: ArrayLike, b: ArrayLike) -> Floats:
    """Returns the intersection over union [N, M], 0 to 1, of every box of `a` [N, 4] with every box of `b` [M, 4]."""
    return overlap(np.reshape(a, (-1, 1, 4)), np.reshape(b, (1, -1, 4)))
