"""Candidate cells to detections: weighted DBSCAN and greedy NMS, as DetectNet_v2's evaluation clusters them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.grid.decode import decode
from components.grid.geometry import GridGeometry
from components.measure.boxes import iou

NOISE = -1


@dataclass(frozen=True, slots=True)
class Clustering:
    """How one class's candidate cells become detections (a `clustering_config` message).

    Attributes:
        algorithm: `dbscan` merges candidates (score = sum of coverage, may exceed 1); `nms` picks the best ones
            (score = coverage of one cell).
        coverage_threshold: Cells with more coverage than this are candidates, 0 to 1.
        minimum_height: Detections of at most this height in pixels are dropped.
        dbscan_eps: Candidates with 1 - IoU of at most this are neighbours, 0 to 1.
        dbscan_min_samples: A candidate is a core point when the coverage of its neighbourhood sums up to this.
        dbscan_confidence_threshold: Clusters with a lower score are dropped.
        nms_iou_threshold: A candidate overlapping a better one by more than this is dropped, 0 to 1.
        nms_confidence_threshold: Candidates with a lower score are dropped.
    """

    algorithm: Literal["dbscan", "nms"] = "dbscan"
    coverage_threshold: float = 0.005
    minimum_height: int = 4
    dbscan_eps: float = 0.15
    dbscan_min_samples: float = 1.0
    dbscan_confidence_threshold: float = 0.0
    nms_iou_threshold: float = 0.3
    nms_confidence_threshold: float = 0.0


def detect(
    coverage: NDArray[np.float32], bbox: NDArray[np.float32], geometry: GridGeometry, clustering: Clustering
) -> NDArray[np.float32]:
    """Returns one class's detections in one image, best first.

    Args:
        coverage: [rows, columns], the network's coverage output.
        bbox: [4, rows, columns], the network's bbox output.
        geometry: The grid.
        clustering: The settings.

    Returns:
        [K, 5] x1, y1, x2, y2 in pixels of the network's input, and score.
    """
    candidate = coverage > clustering.coverage_threshold
    boxes, scores = decode(bbox, geometry)[candidate], coverage[candidate]
    if clustering.algorithm == "dbscan":
        boxes, scores = merge_clusters(
            boxes, scores, dbscan(1.0 - iou(boxes, boxes), scores, clustering.dbscan_eps, clustering.dbscan_min_samples)
        )
        threshold = clustering.dbscan_confidence_threshold
    else:
        best = nms(boxes, scores, clustering.nms_iou_threshold)
        boxes, scores = boxes[best], scores[best]
        threshold = clustering.nms_confidence_threshold
    kept = (boxes[:, 3] - boxes[:, 1] > clustering.minimum_height) & (scores >= threshold)
    order = np.argsort(-scores[kept], kind="stable")
    return np.column_stack([boxes[kept], scores[kept]])[order].astype(np.float32)


def dbscan(
    distances: NDArray[np.float64], weights: NDArray[np.float32], eps: float, min_samples: float
) -> NDArray[np.int64]:
    """Clusters points by density; the labels are those of scikit-learn's DBSCAN on precomputed distances.

    Args:
        distances: [N, N] symmetric.
        weights: [N] sample weights; they count towards `min_samples`.
        eps: Largest distance of neighbours.
        min_samples: Weight in a point's neighbourhood (itself included) that makes it a core point.

    Returns:
        [N] cluster of each point, numbered by first core point, or `NOISE`. A border point belongs to the first
        cluster that reaches it.
    """
    count = len(weights)
    if count == 0:
        return np.zeros(0, np.int64)
    near = distances <= eps
    core = near @ weights.astype(np.float64) >= min_samples
    # Connected components of the core points: every point takes the smallest index it can see, until none changes.
    reach = near & core
    root = np.where(core, np.arange(count), count)
    while True:
        seen = np.where(reach, root, count).min(axis=1)
        seen = np.where(core, np.minimum(root, seen), count)
        jumped = np.append(seen, count)[seen]
        if np.array_equal(jumped, root):
            break
        root = jumped
    # A border point joins the earliest cluster among its core neighbours; a point without one is noise.
    first = np.where(reach, root, count).min(axis=1)
    labels = np.full(count, NOISE, np.int64)
    reached = first < count
    labels[reached] = np.unique(first[reached], return_inverse=True)[1]
    return labels


def merge_clusters(
    boxes: NDArray[np.float32], weights: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns each cluster's weighted mean box [K, 4] and its sum of weights [K]; noise is dropped."""
    member = labels != NOISE
    boxes, weights, labels = boxes[member], weights[member], labels[member]
    clusters = int(labels.max()) + 1 if len(labels) else 0
    total = np.bincount(labels, weights, minlength=clusters)
    merged = np.stack([np.bincount(labels, weights * boxes[:, edge], minlength=clusters) for edge in range(4)], axis=1)
    return (merged / total[:, None]).astype(np.float32), total.astype(np.float32)


def nms(boxes: NDArray[np.float32], scores: NDArray[np.float32], iou_threshold: float) -> NDArray[np.int64]:
    """Returns the indices [K] that greedy non-maximum suppression keeps, best score first.

    Args:
        boxes: [N, 4] in pixels.
        scores: [N].
        iou_threshold: A box that overlaps an already kept one by more than this is dropped.
    """
    order = np.argsort(-scores, kind="stable")
    overlapping = iou(boxes[order], boxes[order]) > iou_threshold
    suppressed = np.zeros(len(order), bool)
    kept = []
    for position in range(len(order)):
        if not suppressed[position]:
            kept.append(order[position])
            suppressed |= overlapping[position]
    return np.array(kept, np.int64)
