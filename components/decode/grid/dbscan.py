"""Weighted DBSCAN; the labels are those of scikit-learn's, border points by its first-cluster rule."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.decode.grid.overlap import Flags

NOISE = -1

# Rows summed at a time: `near` becomes numbers first, and the whole of it would cost more memory than all else.
_ROWS = 32

Weights = NDArray[np.floating[Any]]


def density_labels(near: Flags, weights: Weights, min_samples: float) -> NDArray[np.int64]:
    """Clusters points by density: `DBSCAN(eps, min_samples, metric="precomputed")` with `sample_weight`.

    The search keeps sets of points as the bits of Python integers: each point is visited once and costs a few
    operations on N / 8 bytes, whether the points are apart, one lump or one long chain.

    Args:
        near: [N, N]; row i holds the neighbours of point i, which are at most `eps` apart.
        weights: [N] sample weights, none negative; they count towards `min_samples`.
        min_samples: Weight in a point's neighbourhood (itself included) that makes it a core point.

    Returns:
        [N] cluster of each point, numbered by first core point, or `NOISE`. A border point belongs to the first
        cluster that reaches it.
    """
    core = _core_points(near, weights, min_samples)
    packed = np.packbits(near, axis=1, bitorder="little")
    # Only core points lead on to their neighbours.
    neighbours = [int.from_bytes(row, "little") if leads else 0 for row, leads in zip(packed, core, strict=True)]
    labels = [NOISE] * len(weights)
    unlabelled = (1 << len(weights)) - 1
    cluster = 0
    for seed in np.flatnonzero(core).tolist():
        if labels[seed] != NOISE:
            continue
        reached = 1 << seed
        unlabelled ^= reached
        while reached:
            point = reached.bit_length() - 1
            labels[point] = cluster
            new = neighbours[point] & unlabelled
            unlabelled ^= new
            reached = reached ^ (1 << point) | new
        cluster += 1
    return np.array(labels, np.int64)


def _core_points(near: Flags, weights: Weights, min_samples: float) -> Flags:
    """Returns [N]: whether the weights of a point's neighbours sum up to `min_samples`.

    Where rounding could decide, the sum is taken as scikit-learn takes it: by index, pairwise, in the weights' own
    precision.
    """
    count = len(weights)
    sums = np.empty_like(weights)
    for start in range(0, count, _ROWS):
        sums[start : start + _ROWS] = near[start : start + _ROWS] @ weights
    core: Flags = sums >= min_samples
    doubtful = np.flatnonzero(np.abs(sums - min_samples) <= count * np.finfo(weights.dtype).eps * sums)
    sizes = np.count_nonzero(near[doubtful], axis=1)
    for size in np.unique(sizes).tolist():
        points = doubtful[sizes == size]
        neighbours = np.flatnonzero(near[points]).reshape(len(points), size) % count
        core[points] = weights[neighbours].sum(axis=1) >= min_samples
    return core
