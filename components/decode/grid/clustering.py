"""Candidate cells to detections: as DetectNet_v2 evaluates, and with its slightly different numerics at inference."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.decode.grid.dbscan import NOISE, density_labels
from components.decode.grid.decode import clip, decode, decode_unclipped
from components.decode.grid.geometry import GridGeometry
from components.decode.grid.nms import nms
from components.decode.grid.overlap import Flags, Overlap, overlapping

ConfidenceModel = Literal["aggregate_cov", "mean_cov"]


@dataclass(frozen=True, slots=True)
class Clustering:
    """How one class's candidate cells become detections (a `clustering_config` message).

    Attributes:
        algorithm: `dbscan` merges candidates; `nms` picks the best ones (score = coverage of one cell); `hybrid`
            picks the best ones among the members of the clusters that `dbscan` would return.
        coverage_threshold: Cells with more coverage than this are candidates, 0 to 1.
        minimum_height: Detections of at most this height in pixels are dropped.
        dbscan_eps: Candidates with 1 - IoU of at most this are neighbours, 0 to 1.
        dbscan_min_samples: A candidate is a core point when the coverage of its neighbourhood sums up to this.
        dbscan_confidence_threshold: Clusters with a lower score are dropped.
        nms_iou_threshold: A candidate overlapping a better one by more than this is dropped, 0 to 1.
        nms_confidence_threshold: Candidates with a lower score are dropped.
        confidence_model: A cluster's score at inference: `aggregate_cov`, the sum of its members' coverage, which
            may exceed 1, or `mean_cov`, where their mean lies between their least (0) and greatest (1). Evaluation
            always takes the sum.
    """

    algorithm: Literal["dbscan", "nms", "hybrid"] = "dbscan"
    coverage_threshold: float = 0.005
    minimum_height: int = 4
    dbscan_eps: float = 0.15
    dbscan_min_samples: float = 1.0
    dbscan_confidence_threshold: float = 0.0
    nms_iou_threshold: float = 0.3
    nms_confidence_threshold: float = 0.0
    confidence_model: ConfidenceModel = "aggregate_cov"


@dataclass(frozen=True, slots=True)
class _Numerics:
    """In what the two paths differ.

    Attributes:
        cluster_overlap: IoU between candidates that may form a cluster.
        nms_overlap: IoU between candidates that may suppress each other.
        eps_margin: Added to `dbscan_eps`.
        confident: Whether scores [K] of clusters satisfy a threshold.
        nms_confident: Whether scores [K] of what NMS keeps satisfy one.
        nms_minds_height: Whether NMS drops what is not higher than `minimum_height`.
        clips_last: Whether detections are clipped to the network's input, and not the candidates they are made of; the
            candidates then go column by column, and not row by row.
    """

    cluster_overlap: Overlap
    nms_overlap: Overlap
    eps_margin: float
    confident: Callable[[NDArray[np.float32], float], Any]
    nms_confident: Callable[[NDArray[np.float32], float], Any]
    nms_minds_height: bool = True
    clips_last: bool = False


_EVALUATION = _Numerics(Overlap(smoothing=1e-5), Overlap(smoothing=1e-5), 0.0, np.greater_equal, np.greater_equal)
_INFERENCE = _Numerics(Overlap(smoothing=0.01), Overlap(border=1.0), 1e-12, np.greater, np.greater, clips_last=True)
# TAO 5 has one NMS for both paths (`postprocessor/utilities.py`), which takes no notice of heights.
_EVALUATION_OF_TAO5 = replace(
    _EVALUATION, nms_overlap=_INFERENCE.nms_overlap, nms_confident=np.greater, nms_minds_height=False
)
_INFERENCE_OF_TAO5 = replace(_INFERENCE, nms_minds_height=False)


def detect(
    coverage: NDArray[np.float32], bbox: NDArray[np.float32], geometry: GridGeometry, clustering: Clustering
) -> NDArray[np.float32]:
    """Returns one class's detections in one image as TAO's evaluation finds them, best first.

    A score must reach its threshold. NMS, too, measures overlap as DBSCAN does here and drops low boxes, which TAO's
    does not, see `detect_like_tao5`. TAO refuses `hybrid`; it gets what inference does, in these numerics.

    Args:
        coverage: [rows, columns], the network's coverage output.
        bbox: [4, rows, columns], the network's bbox output.
        geometry: The grid.
        clustering: The settings.

    Returns:
        [K, 5] x1, y1, x2, y2 in pixels of the network's input, and score.
    """
    return _detect(coverage, bbox, geometry, clustering, "aggregate_cov", _EVALUATION)


def detect_for_inference(
    coverage: NDArray[np.float32], bbox: NDArray[np.float32], geometry: GridGeometry, clustering: Clustering
) -> NDArray[np.float32]:
    """Returns one class's detections in one image as TAO's inference finds them, best first.

    A score must exceed its threshold, and `confidence_model` counts. Boxes are clipped to the network's input once they
    are found, so that a minimum height is that of the whole box. Arguments and result as for `detect`.
    """
    return _detect(coverage, bbox, geometry, clustering, clustering.confidence_model, _INFERENCE)


def detect_like_tao5(
    coverage: NDArray[np.float32], bbox: NDArray[np.float32], geometry: GridGeometry, clustering: Clustering
) -> NDArray[np.float32]:
    """As `detect`, but NMS is TAO 5's own: boxes a pixel larger, scores above their threshold, heights ignored."""
    return _detect(coverage, bbox, geometry, clustering, "aggregate_cov", _EVALUATION_OF_TAO5)


def detect_for_inference_like_tao5(
    coverage: NDArray[np.float32], bbox: NDArray[np.float32], geometry: GridGeometry, clustering: Clustering
) -> NDArray[np.float32]:
    """As `detect_for_inference`, but NMS ignores heights."""
    return _detect(coverage, bbox, geometry, clustering, clustering.confidence_model, _INFERENCE_OF_TAO5)


def _detect(
    coverage: NDArray[np.float32],
    bbox: NDArray[np.float32],
    geometry: GridGeometry,
    clustering: Clustering,
    confidence_model: ConfidenceModel,
    numerics: _Numerics,
) -> NDArray[np.float32]:
    if numerics.clips_last:
        grid, coverage = decode_unclipped(bbox, geometry).swapaxes(0, 1), coverage.T
    else:
        grid = decode(bbox, geometry)
    candidate = coverage > clustering.coverage_threshold
    boxes, scores = grid[candidate], coverage[candidate]

    def tall(boxes: NDArray[np.float32]) -> Flags:
        return np.asarray(boxes[:, 3] - boxes[:, 1] > clustering.minimum_height, bool)

    if clustering.algorithm != "nms":
        labels = _cluster(boxes, scores, clustering, numerics)
        merged = merge_clusters(boxes, scores, labels, confidence_model)
        surviving = tall(merged[0]) & numerics.confident(merged[1], clustering.dbscan_confidence_threshold)
        if clustering.algorithm == "dbscan":
            boxes, scores = (values[surviving] for values in merged)
        else:
            # The last entry answers for noise, whose label is -1.
            member = np.append(surviving, False)[labels]
            boxes, scores = boxes[member], scores[member]
    if clustering.algorithm != "dbscan":
        best = nms(boxes, scores, clustering.nms_iou_threshold, numerics.nms_overlap)
        best = best[numerics.nms_confident(scores[best], clustering.nms_confidence_threshold)]
        best = best[tall(boxes[best])] if numerics.nms_minds_height else best
        boxes, scores = boxes[best], scores[best]
    if numerics.clips_last:
        boxes = clip(boxes, geometry)
    order = np.argsort(-scores, kind="stable")
    return np.column_stack([boxes, scores])[order]


def _cluster(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], clustering: Clustering, numerics: _Numerics
) -> NDArray[np.int64]:
    """Returns the DBSCAN label [N] of every candidate; the distance is 1 - IoU."""
    eps = clustering.dbscan_eps + numerics.eps_margin
    near = overlapping(boxes, numerics.cluster_overlap, 1.0 - eps, lambda iou: 1.0 - iou <= eps)
    return density_labels(near, scores, clustering.dbscan_min_samples)


def merge_clusters(
    boxes: NDArray[np.float32],
    weights: NDArray[np.float32],
    labels: NDArray[np.int64],
    confidence_model: ConfidenceModel = "aggregate_cov",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turns clusters of candidates into one box each.

    Args:
        boxes: [N, 4].
        weights: [N], the candidates' coverage.
        labels: [N], clusters 0 to K - 1; noise is dropped.
        confidence_model: See `Clustering`. A cluster whose members all have the same coverage has no range to
            rescale `mean_cov` in (TAO divides by zero): it keeps that coverage.

    Returns:
        Each cluster's weighted mean box [K, 4] and confidence [K].
    """
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels == NOISE) :]
    if not len(order):
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    boxes, weights, labels = boxes[order], weights[order].astype(np.float64), labels[order]
    total = np.bincount(labels, weights)
    merged = np.stack([np.bincount(labels, weights * edge) for edge in boxes.T], axis=1) / total[:, None]
    confidence = total
    if confidence_model == "mean_cov":
        first = np.searchsorted(labels, np.arange(len(total)))
        least, greatest = np.minimum.reduceat(weights, first), np.maximum.reduceat(weights, first)
        mean, spread = total / np.bincount(labels), greatest - least
        confidence = np.divide(mean - least, spread, out=greatest, where=spread > 0)
    return merged.astype(np.float32), confidence.astype(np.float32)
