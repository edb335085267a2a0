"""Grid targets, decoding and clustering against slow versions written straight from the formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from components.grid.clustering import Clustering, dbscan, detect, merge_clusters, nms
from components.grid.decode import decode
from components.grid.encode import CoverageShape, encode
from components.grid.geometry import GridGeometry
from components.measure.boxes import iou

GEOMETRY = GridGeometry(160, 96)

shapes = st.builds(
    CoverageShape,
    center_x=st.sampled_from([0.3, 0.5, 0.7]),
    center_y=st.sampled_from([0.4, 0.5]),
    radius_x=st.floats(0.2, 1.0),
    radius_y=st.floats(0.2, 1.0),
    min_radius=st.sampled_from([0.25, 0.5, 1.0]),
)


@st.composite
def box_lists(draw, most=6):
    count = draw(st.integers(0, most))
    coordinate = st.floats(-30, 180, allow_nan=False, width=32)
    boxes = []
    for _ in range(count):
        x, y = draw(coordinate), draw(coordinate)
        boxes.append((x, y, x + draw(st.floats(1, 120, width=32)), y + draw(st.floats(1, 90, width=32))))
    return np.array(boxes, np.float32).reshape(-1, 4)


def slow_encode(boxes, shape, geometry, deadzone):
    """One cell, one sample, one box at a time."""
    s = geometry.stride
    cov = np.zeros((geometry.rows, geometry.columns))
    norm, edges = np.zeros_like(cov), np.zeros((4, geometry.rows, geometry.columns))
    for x1, y1, x2, y2 in sorted(boxes.astype(np.float64), key=lambda box: np.float32(box[3])):
        bx1, by1, bx2, by2 = (np.float32(v) / np.float32(s) for v in (x1, y1, x2, y2))
        bx1, by1, bx2, by2 = float(bx1), float(by1), float(bx2), float(by2)
        cx, cy = bx1 + shape.center_x * (bx2 - bx1), by1 + shape.center_y * (by2 - by1)
        sx = cx - bx1 if shape.center_x < 0.5 else bx2 - cx
        sy = cy - by1 if shape.center_y < 0.5 else by2 - cy
        csx, csy = max(shape.radius_x * sx, 0.1), max(shape.radius_y * sy, 0.1)
        if csx < shape.min_radius:
            csy, csx = shape.min_radius * csy / csx, shape.min_radius
        if csy < shape.min_radius:
            csx, csy = shape.min_radius * csx / csy, shape.min_radius
        dsx = max((1 - deadzone) * csx + deadzone * sx, csx)
        dsy = max((1 - deadzone) * csy + deadzone * sy, csy)
        for row in range(geometry.rows):
            for column in range(geometry.columns):
                inside = dead = 0
                for j in range(4):
                    for i in range(4):
                        fx, fy = column + (i + 0.5) / 4, row + (j + 0.5) / 4
                        inside += ((fx - cx) / csx) ** 2 + ((fy - cy) / csy) ** 2 < 1
                        dead += ((fx - cx) / dsx) ** 2 + ((fy - cy) / dsy) ** 2 < 1
                c, a = inside / 16, dead / 16
                if a >= cov[row, column] and a > 0:
                    cov[row, column] = norm[row, column] = 0
                    edges[:, row, column] = 0
                if c >= cov[row, column] and c > 0:
                    gx, gy = column * s + geometry.offset, row * s + geometry.offset
                    cov[row, column] = c
                    norm[row, column] = c / max(4 * csx * csy, 1)
                    edges[:, row, column] = np.array([gx - x1, gy - y1, x2 - gx, y2 - gy]) / geometry.scale
    return cov, norm, edges


@settings(max_examples=60, deadline=None)
@given(box_lists(), shapes, st.sampled_from([0.0, 0.5, 0.67, 1.0]))
def test_targets_equal_the_slow_reference(boxes, shape, deadzone):
    targets = encode(boxes, np.zeros(len(boxes), np.int64), (shape,), GEOMETRY, deadzone)
    cov, norm, edges = slow_encode(boxes, shape, GEOMETRY, deadzone)
    np.testing.assert_allclose(targets.coverage[0], cov, atol=1e-6)
    np.testing.assert_allclose(targets.coverage_norm[0], norm, atol=1e-5)
    np.testing.assert_allclose(targets.bbox[0], edges, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(box_lists(most=5))
def test_every_box_that_owns_a_cell_decodes_to_itself(boxes):
    targets = encode(boxes, np.zeros(len(boxes), np.int64), (CoverageShape(),), GEOMETRY)
    decoded = decode(targets.bbox[0], GEOMETRY)[targets.coverage[0] > 0]
    limits = np.array([GEOMETRY.width, GEOMETRY.height] * 2)
    clipped = np.clip(boxes, 0, limits)
    for box in decoded:
        assert np.abs(clipped - box).max(axis=1).min() < 0.5


def test_classes_do_not_touch_each_other():
    boxes = np.array([[16, 16, 80, 80], [20, 20, 84, 84]], np.float32)
    both = encode(boxes, np.array([0, 1]), (CoverageShape(), CoverageShape()), GEOMETRY)
    for class_id in (0, 1):
        alone = encode(boxes[[class_id]], np.array([0]), (CoverageShape(),), GEOMETRY)
        np.testing.assert_array_equal(both.coverage[class_id], alone.coverage[0])
        np.testing.assert_array_equal(both.bbox[class_id], alone.bbox[0])


def test_input_size_that_is_no_multiple_of_the_stride_is_refused():
    with pytest.raises(ValueError, match="not divisible by 16"):
        GridGeometry(736, 146 + 1)


def slow_decode(bbox, geometry):
    boxes = np.zeros((geometry.rows, geometry.columns, 4))
    for row in range(geometry.rows):
        for column in range(geometry.columns):
            gx, gy = column * 16 + 0.5, row * 16 + 0.5
            left, top, right, bottom = (float(v) * 35 for v in bbox[:, row, column])
            x1 = min(max(gx - left, 0), geometry.width)
            y1 = min(max(gy - top, 0), geometry.height)
            boxes[row, column] = (
                x1,
                y1,
                min(max(gx + right, x1), geometry.width),
                min(max(gy + bottom, y1), geometry.height),
            )
    return boxes


def test_decoding_equals_the_slow_reference():
    bbox = np.random.default_rng(0).normal(0, 2, (4, GEOMETRY.rows, GEOMETRY.columns)).astype(np.float32)
    np.testing.assert_allclose(decode(bbox, GEOMETRY), slow_decode(bbox, GEOMETRY), atol=1e-3)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.floats(0.05, 0.9), st.integers(1, 3))
def test_dbscan_labels_are_those_of_scikit_learn(seed, count, eps, min_samples):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 40, (count, 2))], axis=1)
    weights = random.uniform(0, 1, count).astype(np.float32)
    distances = 1 - iou(boxes, boxes)
    ours = dbscan(distances, weights, eps, min_samples)
    if count:
        model = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
        theirs = model.fit(distances, sample_weight=weights).labels_
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours.shape == (0,)


def test_a_cluster_is_the_weighted_mean_and_scores_the_sum_of_coverage():
    boxes = np.array([[0, 0, 10, 10], [2, 2, 12, 12], [50, 50, 60, 60]], np.float32)
    weights = np.array([1.0, 3.0, 0.5], np.float32)
    merged, scores = merge_clusters(boxes, weights, np.array([0, 0, -1]))
    np.testing.assert_allclose(merged, [[1.5, 1.5, 11.5, 11.5]])
    np.testing.assert_allclose(scores, [4.0])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.floats(0.1, 0.9))
def test_nms_equals_the_slow_reference(seed, count, threshold):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 50, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 40, (count, 2))], axis=1).astype(np.float32)
    scores = random.uniform(0, 1, count).astype(np.float32)
    kept = []
    for index in sorted(range(count), key=lambda i: -scores[i]):
        if all(iou(boxes[[index]], boxes[[other]])[0, 0] <= threshold for other in kept):
            kept.append(index)
    np.testing.assert_array_equal(nms(boxes, scores, threshold), kept)


@pytest.mark.parametrize("algorithm", ["dbscan", "nms"])
def test_targets_fed_back_as_predictions_find_every_separate_face(algorithm):
    boxes = np.array([[10, 10, 50, 60], [90, 20, 140, 80]], np.float32)
    targets = encode(boxes, np.zeros(2, np.int64), (CoverageShape(),), GEOMETRY)
    found = detect(targets.coverage[0], targets.bbox[0], GEOMETRY, Clustering(algorithm, dbscan_eps=0.3))
    assert len(found) == 2
    assert iou(boxes, found[:, :4]).max(axis=1).min() > 0.98
    assert (np.diff(found[:, 4]) <= 0).all()


def test_an_empty_grid_gives_no_detection():
    empty = np.zeros((GEOMETRY.rows, GEOMETRY.columns), np.float32)
    bbox = np.zeros((4, *empty.shape), np.float32)
    for algorithm in ("dbscan", "nms"):
        assert detect(empty, bbox, GEOMETRY, Clustering(algorithm)).shape == (0, 5)
