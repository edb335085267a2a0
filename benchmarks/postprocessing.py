"""Grids to detections (26 x 46 cells, DBSCAN, IoU included) on one core, against scikit-learn and float64 IoU.

Bounds: a median of 1.0 ms with 200 candidates, 8 ms with all 1,196, for grids as a trained network gives them and for
the worst ones: every box alone, all of them one cluster, one long chain, boxes anywhere. Both sides start from the
same grids, share decoding and merging, and alternate within one run; the median of each counts. The load average is
printed because neighbours on the machine cost memory speed. Run: python benchmarks/postprocessing.py
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN

from components.decode.grid.clustering import Clustering, detect, merge_clusters
from components.decode.grid.decode import decode
from components.decode.grid.geometry import GridGeometry

GEOMETRY = GridGeometry(736, 416)
SETTINGS = Clustering(coverage_threshold=0.004, dbscan_eps=0.15)
BOUNDS = {200: 1.0, GEOMETRY.rows * GEOMETRY.columns: 8.0}  # candidates: milliseconds
ROUNDS, SEED = 31, 0

Grid = NDArray[np.float32]
X, Y = np.meshgrid(*GEOMETRY.reference_points())


def trained(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Returns boxes [rows, columns, 4]: some 25 cells around each face agree on its box within pixels."""
    faces = max(count // 25, 1)
    center = random.uniform((20, 20), (716, 396), (faces, 2))
    size = np.exp(random.uniform(np.log(20), np.log(150), (faces, 1))) * (0.8, 1.0)
    nearest = np.hypot(X[..., None] - center[:, 0], Y[..., None] - center[:, 1]).argmin(-1)
    boxes: NDArray[np.float64] = np.concatenate([center - size / 2, center + size / 2], axis=1)[nearest]
    boxes += random.normal(0, 0.03, boxes.shape) * (boxes[..., 2:3] - boxes[..., :1])
    return boxes


def alone(_: np.random.Generator, __: int) -> NDArray[np.float64]:
    return np.stack([X + 2, Y + 2, X + 12, Y + 12], axis=-1)


def one_cluster(random: np.random.Generator, _: int) -> NDArray[np.float64]:
    return np.array([100, 80, 600, 330]) + random.normal(0, 3, (*X.shape, 4))


def chain(_: np.random.Generator, __: int) -> NDArray[np.float64]:
    left = np.arange(X.size).reshape(X.shape) * 0.5
    return np.stack([left, left * 0 + 100, left + 10, left * 0 + 160], axis=-1)


def anywhere(random: np.random.Generator, _: int) -> NDArray[np.float64]:
    corner = random.uniform((0, 0), (700, 380), (*X.shape, 2))
    return np.concatenate([corner, corner + random.uniform(4, 120, corner.shape)], axis=-1)


def grids(boxes: NDArray[np.float64], count: int, random: np.random.Generator) -> tuple[Grid, Grid]:
    """Returns coverage [rows, columns], above the threshold in `count` random cells, often 1, and bbox [4, ...]."""
    coverage = np.zeros(X.size, np.float32)
    coverage[random.permutation(X.size)[:count]] = random.uniform(0.02, 1.3, count).clip(max=1)
    edges = np.stack([X - boxes[..., 0], Y - boxes[..., 1], boxes[..., 2] - X, boxes[..., 3] - Y])
    return coverage.reshape(X.shape), (edges / GEOMETRY.scale).astype(np.float32)


def ours(coverage: Grid, bbox: Grid) -> Grid:
    return detect(coverage, bbox, GEOMETRY, SETTINGS)


def theirs(coverage: Grid, bbox: Grid) -> Grid:
    """Does the same by the book: the N x N distances in float64, then scikit-learn."""
    candidate = coverage > SETTINGS.coverage_threshold
    boxes, weights = decode(bbox, GEOMETRY)[candidate], coverage[candidate]
    x1, y1, x2, y2 = boxes.T.astype(np.float64)
    width = np.maximum(np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1), 0)
    height = np.maximum(np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1), 0)
    common, area = width * height, (x2 - x1) * (y2 - y1)
    distances = 1 - common / (np.add.outer(area, area) - common + 1e-5)
    model = DBSCAN(eps=SETTINGS.dbscan_eps, min_samples=int(SETTINGS.dbscan_min_samples), metric="precomputed")
    labels = model.fit(distances, sample_weight=weights).labels_
    boxes, scores = merge_clusters(boxes, weights, labels)
    kept = boxes[:, 3] - boxes[:, 1] > SETTINGS.minimum_height
    return np.column_stack([boxes[kept], scores[kept]])[np.argsort(-scores[kept], kind="stable")]


def stay_on_one_core() -> None:
    """Pins every thread of this process, NumPy's included, to one and the same core."""
    core = max(os.sched_getaffinity(0))
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def milliseconds(function: Callable[[Grid, Grid], Grid], coverage: Grid, bbox: Grid) -> float:
    """Returns processor time: on one core that is the time passed, less what other programs took in between."""
    start = time.process_time()
    function(coverage, bbox)
    return (time.process_time() - start) * 1e3


def main() -> None:
    stay_on_one_core()
    print(f"medians of {ROUNDS} on one core, load average {os.getloadavg()[0]:.1f}")
    for count, bound in BOUNDS.items():
        for scene in (trained, alone, one_cluster, chain, anywhere):
            random = np.random.default_rng(SEED)
            coverage, bbox = grids(scene(random, count), count, random)
            found = ours(coverage, bbox)
            if not np.array_equal(found, theirs(coverage, bbox)):
                raise SystemExit(f"{scene.__name__}, {count} candidates: the detections differ")
            rounds = [(milliseconds(ours, coverage, bbox), milliseconds(theirs, coverage, bbox)) for _ in range(ROUNDS)]
            mine, other = (statistics.median(times) for times in zip(*rounds, strict=True))
            print(
                f"{count:5} candidates, {scene.__name__:11}: {len(found):4} detections, "
                f"{mine:5.2f} ms ({'within' if mine <= bound else 'MISSES'} {bound:.1f} ms); "
                f"scikit-learn {other:6.2f} ms, ratio {other / mine:.1f}"
            )


if __name__ == "__main__":
    main()
