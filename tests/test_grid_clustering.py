"""Clustering against scikit-learn, and both paths from grid to detections against plain loops over their definition."""

import json
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import sklearn
from sklearn.cluster import DBSCAN

from components.decode.grid.clustering import (
    Clustering,
    detect,
    detect_for_inference,
    detect_for_inference_like_tao5,
    detect_like_tao5,
    merge_clusters,
)
from components.decode.grid.dbscan import NOISE, density_labels
from components.decode.grid.decode import decode
from components.decode.grid.encode import CoverageShape, encode
from components.decode.grid.geometry import GridGeometry
from components.decode.grid.nms import nms
from components.decode.grid.overlap import Overlap, overlapping

GEOMETRY = GridGeometry(160, 96)
PATHS = {"evaluation": detect, "inference": detect_for_inference}
PATHS_OF_TAO5 = {"evaluation of TAO 5": detect_like_tao5, "inference of TAO 5": detect_for_inference_like_tao5}


def distance_matrix(boxes, smoothing):
    """Returns 1 - IoU in float64, `smoothing` in the denominator."""
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    width = np.maximum(np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1), 0)
    height = np.maximum(np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1), 0)
    area = (x2 - x1) * (y2 - y1)
    return 1 - width * height / (np.add.outer(area, area) - width * height + smoothing)


def labels_from_boxes(boxes, weights, eps, min_samples, smoothing):
    near = overlapping(boxes, Overlap(smoothing), 1 - eps, lambda iou: 1 - iou <= eps)
    return density_labels(near, weights, min_samples)


def scikit_learn_labels(distances, weights, eps, min_samples):
    # Parameter checks are off because scikit-learn wants a whole min_samples, and TAO 4 had fractions.
    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):
        model = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
        return model.fit(distances, sample_weight=weights).labels_


def random_boxes(random, count):
    """Draws boxes of one kind: anywhere, on small integers (equal boxes, exact IoUs), without area, or in a chain."""
    kind = random.choice(["anywhere", "integers", "lines", "chain", "clumps"])
    if kind == "anywhere":
        corner = random.uniform(0, 60, (count, 2))
        boxes = np.concatenate([corner, corner + random.uniform(0.01, 60, (count, 2))], axis=1)
    elif kind == "chain":
        x = random.permutation(count)[:, None] * random.choice([1.0, 2.0, 2.5])
        boxes = np.concatenate([x, x * 0, x + random.choice([6, 10, 12.5]), x * 0 + 8], axis=1)
    elif kind == "clumps":
        center, size = random.uniform(0, 200, (max(count // 6, 1), 2)), random.uniform(5, 40, (max(count // 6, 1), 2))
        clump = random.integers(0, len(center), count)
        boxes = np.concatenate([center[clump], (center + size)[clump]], axis=1) + random.normal(0, 1.0, (count, 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    else:
        corner = random.integers(0, 4, (count, 2))
        boxes = np.concatenate([corner, corner + random.integers(kind == "integers", 5, (count, 2))], axis=1)
    return boxes.astype(np.float32)


def random_weights(random, count):
    """Draws coverages: any, in sixteenths (sums hit 1 exactly) or in tenths (sums hit 1 but for rounding)."""
    kind = random.integers(3)
    weights = random.uniform(0.005, 1, count) if kind == 0 else random.integers(1, 9, count) / (16, 10)[kind - 1]
    return weights.astype(np.float32 if random.random() < 0.7 else np.float64)


def test_labels_from_boxes_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    counts = [*random.integers(1, 25, 2500), *random.integers(40, 150, 60), 400, 1196]
    clustered = bordering = 0
    for count in counts:
        boxes, weights = random_boxes(random, count), random_weights(random, count)
        # Without smoothing the IoU of small integer boxes hits these limits exactly; it is undefined without area.
        has_area = ((boxes[:, 2:] > boxes[:, :2]).all(axis=1)).all()
        smoothing = float(random.choice([1e-5, 0.01, 0.0] if has_area else [1e-5, 0.01]))
        eps = float(random.choice([0.0, 0.05, 0.15, 0.25, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.999999, 1.0]))
        min_samples = float(random.choice([0.0, 0.03, 0.5, 1, 1, 1, 2, 3]))
        distances = distance_matrix(boxes, smoothing)
        theirs = scikit_learn_labels(distances, weights, eps, min_samples)
        ours = labels_from_boxes(boxes, weights, eps, min_samples, smoothing)
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(density_labels(distances <= eps, weights, min_samples), theirs)
        clustered += theirs.max() > 0
        core = (distances <= eps) @ weights.astype(np.float64) >= min_samples
        bordering += bool(((theirs != NOISE) & ~core).any())
    assert clustered > 500
    assert bordering > 200


@pytest.mark.parametrize(
    ("positions", "expected"),
    [([0, 2, 1, -1, -2], [0, 0, 0, 1, 1]), ([0, -1, 1, -2, 2], [0, 0, 1, 0, 1]), ([2, 0, -2, -1, 1], [0, 0, 1, 1, 0])],
)
def test_a_border_point_joins_the_first_of_the_clusters_that_reach_it(positions, expected):
    weight = {0: 0.1, 1: 0.5, -1: 0.5, 2: 2.0, -2: 2.0}
    distances = np.abs(np.subtract.outer(positions, positions)).astype(np.float64)
    weights = np.array([weight[position] for position in positions])
    np.testing.assert_array_equal(density_labels(distances <= 1, weights, 2.4), expected)


def test_sums_within_rounding_of_min_samples_are_taken_as_scikit_learn_takes_them():
    # Ten float32 tenths: 1.0000001 one after another, 1.0 pairwise; others fall short of 1 by an ulp.
    random, decided = np.random.default_rng(1), set()
    for count in [*range(2, 40), 200, 1000]:
        for _ in range(5):
            weights = random.dirichlet(np.ones(count)).astype(np.float32)
            distances = np.zeros((count, count))
            theirs = scikit_learn_labels(distances, weights, 0.5, 1)
            np.testing.assert_array_equal(density_labels(distances <= 0.5, weights, 1), theirs)
            decided.add(int(theirs[0]))
    assert decided == {0, NOISE}


def test_core_points_and_their_clusters_do_not_depend_on_the_order_of_the_candidates():
    random = np.random.default_rng(2)
    for _ in range(200):
        count = int(random.integers(2, 40))
        boxes, weights = random_boxes(random, count), random.integers(1, 16, count).astype(np.float32) / 16
        order = random.permutation(count)
        near = distance_matrix(boxes, 1e-5) <= 0.4
        core = near @ weights >= 1
        first = labels_from_boxes(boxes, weights, 0.4, 1, 1e-5)
        second = np.empty_like(first)
        second[order] = labels_from_boxes(boxes[order], weights[order], 0.4, 1, 1e-5)
        np.testing.assert_array_equal(first == NOISE, second == NOISE)
        np.testing.assert_array_equal(
            np.equal.outer(first[core], first[core]), np.equal.outer(second[core], second[core])
        )


def slow_iou(a, b, smoothing=0.0, border=0.0):
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + border, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + border, 0)
    areas = [(box[2] - box[0] + border) * (box[3] - box[1] + border) for box in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height + smoothing)


def slow_dbscan(boxes, weights, eps, min_samples, smoothing):
    """Grows one cluster after the other, breadth first."""
    everyone = range(len(boxes))
    neighbours = [[j for j in everyone if 1 - slow_iou(boxes[i], boxes[j], smoothing) <= eps] for i in everyone]
    core = [sum(weights[j] for j in neighbours[i]) >= min_samples for i in everyone]
    labels, cluster = [NOISE] * len(boxes), 0
    for seed in everyone:
        if not core[seed] or labels[seed] != NOISE:
            continue
        labels[seed], queue = cluster, [seed]
        while queue:
            point = queue.pop(0)
            for other in neighbours[point] if core[point] else []:
                if labels[other] == NOISE:
                    labels[other] = cluster
                    queue.append(other)
        cluster += 1
    return labels


def slow_nms(boxes, weights, threshold, smoothing, border):
    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: -weights[i]):
        if all(slow_iou(boxes[index], boxes[other], smoothing, border) <= threshold for other in kept):
            kept.append(index)
    return kept


def slow_clip(box, geometry):
    x1, y1 = min(max(box[0], 0), geometry.width), min(max(box[1], 0), geometry.height)
    return [x1, y1, min(max(box[2], x1), geometry.width), min(max(box[3], y1), geometry.height), *box[4:]]


def slow_detect(coverage, bbox, geometry, settings, path):
    """Follows the definition of a path; returns [x1, y1, x2, y2, score], best first."""
    inference, tao5 = path.startswith("inference"), path.endswith("TAO 5")
    boxes, weights = [], []
    cells = [(row, column) for row in range(geometry.rows) for column in range(geometry.columns)]
    for row, column in sorted(cells, key=lambda cell: cell[::-1]) if inference else cells:
        if coverage[row, column] > settings.coverage_threshold:
            gx, gy = np.float32(column * 16 + 0.5), np.float32(row * 16 + 0.5)
            left, top, right, bottom = (np.float32(35) * v for v in bbox[:, row, column])
            x1, y1 = gx - left, gy - top
            box = [float(v) for v in (x1, y1, max(gx + right, x1), max(gy + bottom, y1))]
            boxes.append(box if inference else slow_clip(box, geometry))
            weights.append(float(coverage[row, column]))

    def passes(score, threshold, strict):
        return score > threshold if strict else score >= threshold

    def tall(box):
        return box[3] - box[1] > settings.minimum_height

    found = [[*box, weight] for box, weight in zip(boxes, weights, strict=True)]
    if settings.algorithm in ("dbscan", "hybrid"):
        eps, smoothing = (settings.dbscan_eps + 1e-12, 0.01) if inference else (settings.dbscan_eps, 1e-5)
        labels = slow_dbscan(boxes, weights, eps, settings.dbscan_min_samples, smoothing)
        clusters, members = [], []
        for cluster in range(max(labels, default=NOISE) + 1):
            inside = [i for i, label in enumerate(labels) if label == cluster]
            total = sum(weights[i] for i in inside)
            box = [sum(weights[i] * boxes[i][edge] for i in inside) / total for edge in range(4)]
            score = total
            if inference and settings.confidence_model == "mean_cov":
                mean, least, most = (
                    total / len(inside),
                    min(weights[i] for i in inside),
                    max(weights[i] for i in inside),
                )
                score = (mean - least) / (most - least) if most > least else mean
            if tall(box) and passes(score, settings.dbscan_confidence_threshold, inference):
                clusters.append([*box, score])
                members += inside
        found = clusters if settings.algorithm == "dbscan" else [found[i] for i in sorted(members)]
    if settings.algorithm in ("nms", "hybrid"):
        strict = inference or tao5
        definition = {"smoothing": 0.0, "border": 1.0} if strict else {"smoothing": 1e-5, "border": 0.0}
        kept = slow_nms(found, [one[4] for one in found], settings.nms_iou_threshold, **definition)
        found = [found[i] for i in kept if tao5 or tall(found[i])]
        found = [one for one in found if passes(one[4], settings.nms_confidence_threshold, strict)]
    return [slow_clip(one, geometry) for one in sorted(found, key=lambda one: -one[4])]


def random_grids(random, geometry):
    """Draws grids as a trained network gives them: cells near an object agree on its box, some cells stray."""
    x, y = np.meshgrid(*geometry.reference_points())
    centers, sizes = random.uniform((0, 0), (160, 96), (5, 2)), random.uniform(3, 60, (5, 2))
    owner = ((x[..., None] - centers[:, 0]) ** 2 + (y[..., None] - centers[:, 1]) ** 2).argmin(-1)
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)[owner]
    boxes = boxes + random.normal(0, random.choice([0.5, 3, 10]), boxes.shape)
    bbox = np.stack([x - boxes[..., 0], y - boxes[..., 1], boxes[..., 2] - x, boxes[..., 3] - y]) / 35
    return random.uniform(0, 1, x.shape).astype(np.float32) ** 2, bbox.astype(np.float32)


@pytest.mark.parametrize("algorithm", ["dbscan", "nms", "hybrid"])
@pytest.mark.parametrize("path", PATHS | PATHS_OF_TAO5)
def test_detections_equal_the_slow_reference(path, algorithm):
    random = np.random.default_rng(3)
    detections = 0
    for _ in range(60):
        coverage, bbox = random_grids(random, GEOMETRY)
        settings = Clustering(
            algorithm,
            coverage_threshold=random.choice([0.0, 0.1, 0.4]),
            minimum_height=int(random.choice([0, 4, 20])),
            dbscan_eps=random.choice([0.15, 0.3, 0.6]),
            dbscan_min_samples=random.choice([0.05, 1.0, 2.0]),
            dbscan_confidence_threshold=random.choice([0.0, 0.3, 1.0]),
            nms_iou_threshold=random.choice([0.1, 0.3, 0.6]),
            nms_confidence_threshold=random.choice([0.0, 0.2, 0.5]),
            confidence_model=random.choice(["aggregate_cov", "mean_cov"]),
        )
        found = (PATHS | PATHS_OF_TAO5)[path](coverage, bbox, GEOMETRY, settings)
        expected = slow_detect(coverage, bbox, GEOMETRY, settings, path)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.array(expected).reshape(-1, 5), rtol=1e-5, atol=1e-4)
        detections += len(found)
    assert detections > 60


def test_a_cluster_is_the_weighted_mean_and_scores_the_sum_of_coverage():
    boxes = np.array([[0, 0, 10, 10], [2, 2, 12, 12], [50, 50, 60, 60]], np.float32)
    merged, scores = merge_clusters(boxes, np.array([1.0, 3.0, 0.5], np.float32), np.array([0, 0, NOISE]))
    np.testing.assert_allclose(merged, [[1.5, 1.5, 11.5, 11.5]])
    np.testing.assert_allclose(scores, [4.0])


def test_mean_coverage_is_rescaled_within_the_cluster_and_kept_where_all_members_agree():
    boxes, labels = np.zeros((6, 4), np.float32), np.array([0, 1, 0, 0, 1, 2])
    weights = np.array([0.2, 0.5, 0.6, 0.4, 0.5, 0.9], np.float32)
    _, scores = merge_clusters(boxes, weights, labels, "mean_cov")
    np.testing.assert_allclose(scores, [(0.4 - 0.2) / (0.6 - 0.2), 0.5, 0.9], rtol=1e-6)


def one_face(coverage, height=20.0):
    """Returns grids with one candidate cell that predicts a 20 px wide box."""
    cov, bbox = np.zeros((6, 10), np.float32), np.zeros((4, 6, 10), np.float32)
    cov[2, 3] = coverage
    bbox[:, 2, 3] = np.array([10, height / 2, 10, height / 2]) / 35
    return cov, bbox


@pytest.mark.parametrize("algorithm", ["dbscan", "nms", "hybrid"])
def test_a_score_at_its_threshold_counts_in_evaluation_but_not_at_inference(algorithm):
    settings = Clustering(
        algorithm, dbscan_min_samples=0.5, dbscan_confidence_threshold=0.5, nms_confidence_threshold=0.5
    )
    assert len(detect(*one_face(0.5), GEOMETRY, settings)) == 1
    assert len(detect_for_inference(*one_face(0.5), GEOMETRY, settings)) == 0
    assert len(detect_for_inference(*one_face(0.75), GEOMETRY, settings)) == 1


@pytest.mark.parametrize(("algorithm", "found"), [("dbscan", 1), ("nms", 0), ("hybrid", 0)])
def test_a_score_at_its_threshold_counts_in_taos_evaluation_except_after_nms(algorithm, found):
    settings = Clustering(
        algorithm, dbscan_min_samples=0.5, dbscan_confidence_threshold=0.5, nms_confidence_threshold=0.5
    )
    assert len(detect_like_tao5(*one_face(0.5), GEOMETRY, settings)) == found


@pytest.mark.parametrize("path", PATHS_OF_TAO5)
def test_taos_nms_takes_no_notice_of_heights(path):
    found = {
        algorithm: len(
            PATHS_OF_TAO5[path](*one_face(1.0, 20.0), GEOMETRY, Clustering(algorithm, minimum_height=height))
        )
        for algorithm, height in (("nms", 20), ("dbscan", 20), ("hybrid", 20))
    }
    assert found == {"nms": 1, "dbscan": 0, "hybrid": 0}  # a hybrid's clusters are measured before


def test_taos_nms_measures_overlap_with_a_pixel_more():
    cov, bbox = np.zeros((6, 10), np.float32), np.zeros((4, 6, 10), np.float32)
    for column, left in ((3, 0), (4, 10)):  # 9 x 9 pixels, the second 6 to the right: IoU 0.2, a pixel larger 0.25
        cov[2, column], bbox[:, 2, column] = 1, np.array([left, 0, 9 - left, 9]) / 35
    settings = Clustering("nms", nms_iou_threshold=0.225)
    assert (len(detect(cov, bbox, GEOMETRY, settings)), len(detect_like_tao5(cov, bbox, GEOMETRY, settings))) == (2, 1)


def test_inference_measures_a_face_at_the_border_whole_and_clips_it_afterwards():
    cov, bbox = one_face(1.0, 20.0)
    cov, bbox = np.roll(cov, -2, axis=0), np.roll(bbox, -2, axis=1)  # now it reaches 9.5 pixels beyond the upper edge
    settings = Clustering(minimum_height=15)
    assert len(detect(cov, bbox, GEOMETRY, settings)) == 0
    np.testing.assert_allclose(detect_for_inference(cov, bbox, GEOMETRY, settings), [[38.5, 0, 58.5, 10.5, 1]])


def test_inference_goes_through_the_grid_by_columns():
    cov, bbox = np.zeros((6, 10), np.float32), np.zeros((4, 6, 10), np.float32)
    for row, column in ((1, 8), (4, 2)):
        cov[row, column], bbox[:, row, column] = 1, 10 / 35
    assert detect(cov, bbox, GEOMETRY, Clustering())[:, 0].tolist() == [118.5, 22.5]
    assert detect_for_inference(cov, bbox, GEOMETRY, Clustering())[:, 0].tolist() == [22.5, 118.5]


@pytest.mark.parametrize("path", PATHS)
def test_heights_and_coverages_at_their_limit_are_dropped(path):
    settings = Clustering("nms", coverage_threshold=0.25, minimum_height=20)
    assert len(PATHS[path](*one_face(0.25, 30.0), GEOMETRY, settings)) == 0
    assert len(PATHS[path](*one_face(0.5, 20.0), GEOMETRY, settings)) == 0
    assert len(PATHS[path](*one_face(0.5, 20.5), GEOMETRY, settings)) == 1


def test_nms_keeps_what_overlaps_by_exactly_the_threshold():
    boxes = np.array([[0, 0, 9, 9], [0, 5, 9, 14], [0, 4, 9, 13]], np.float32)
    # With last pixels inside the box: 10 x 10 pixels each, 50 and 60 of them common with the first one.
    pixels = Overlap(border=1.0)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    np.testing.assert_array_equal(nms(boxes[:2], scores[:2], 50 / 150, pixels), [0, 1])
    np.testing.assert_array_equal(nms(boxes[[0, 2]], scores[:2], 50 / 150, pixels), [0])
    np.testing.assert_array_equal(nms(boxes, scores[::-1].copy(), 0.9, pixels), [2, 1, 0])


def test_equal_scores_go_by_index():
    corner = np.arange(300, dtype=np.float32)[:, None] * 20 + np.zeros(2, np.float32)
    scores = np.random.default_rng(4).choice([0.25, 0.5, 0.75], 300).astype(np.float32)
    kept = nms(np.concatenate([corner, corner + 10], axis=1), scores, 0.3, Overlap(border=1.0))
    np.testing.assert_array_equal(kept, sorted(range(300), key=lambda i: -scores[i]))


def two_faces():
    """Returns grids of two small overlapping boxes with a coverage of 1, and the boxes."""
    cov, bbox = np.zeros((6, 10), np.float32), np.zeros((4, 6, 10), np.float32)
    for column, right in ((3, 3.0), (4, -12.5)):
        cov[2, column], bbox[:, 2, column] = 1, np.array([2 if column == 3 else 18, 2, right, 3]) / 35
    return cov, bbox, decode(bbox, GEOMETRY)[2, 3:5].tolist()


def test_candidates_exactly_eps_apart_form_a_cluster_in_evaluation():
    cov, bbox, boxes = two_faces()
    apart = 1 - slow_iou(*boxes, smoothing=1e-5)
    assert len(detect(cov, bbox, GEOMETRY, Clustering(dbscan_eps=apart))) == 1
    assert len(detect(cov, bbox, GEOMETRY, Clustering(dbscan_eps=np.nextafter(apart, 0)))) == 2


def test_candidates_a_trillionth_beyond_eps_form_a_cluster_at_inference():
    cov, bbox, boxes = two_faces()
    apart = 1 - slow_iou(*boxes, smoothing=0.01)
    assert len(detect_for_inference(cov, bbox, GEOMETRY, Clustering(dbscan_eps=apart - 0.9e-12))) == 1
    assert len(detect_for_inference(cov, bbox, GEOMETRY, Clustering(dbscan_eps=apart - 1.1e-12))) == 2


def test_hybrid_gives_member_boxes_of_clusters_and_never_a_stray_cell():
    cov, bbox = one_face(0.6)
    cov[2, 4], bbox[:, 2, 4] = 0.7, bbox[:, 2, 3] + np.array([16, 0, -16, 0]) / 35  # the same box, seen from next door
    cov[5, 9], bbox[:, 5, 9] = 0.9, 10 / 35  # alone, below min_samples
    for path in PATHS.values():
        found = path(cov, bbox, GEOMETRY, Clustering("hybrid", dbscan_eps=0.2))
        np.testing.assert_allclose(found, [[38.5, 22.5, 58.5, 42.5, 0.7]], rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("algorithm", ["dbscan", "nms", "hybrid"])
def test_targets_fed_back_as_predictions_find_every_separate_face(path, algorithm):
    boxes = np.array([[10, 10, 50, 60], [90, 20, 140, 80]], np.float32)
    targets = encode(boxes, np.zeros(2, np.int64), (CoverageShape(),), GEOMETRY)
    found = PATHS[path](targets.coverage[0], targets.bbox[0], GEOMETRY, Clustering(algorithm, dbscan_eps=0.3))
    assert len(found) == 2
    np.testing.assert_allclose(sorted(found[:, :4].tolist()), boxes, atol=0.01)
    assert (np.diff(found[:, 4]) <= 0).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("algorithm", ["dbscan", "nms", "hybrid"])
def test_an_empty_grid_gives_no_detection(path, algorithm):
    empty, bbox = np.zeros((6, 10), np.float32), np.zeros((4, 6, 10), np.float32)
    found = PATHS[path](empty, bbox, GEOMETRY, Clustering(algorithm))
    assert found.shape == (0, 5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("path", PATHS)
def test_boxes_stay_inside_the_network_frame(path):
    cov, bbox = np.full((6, 10), 0.9, np.float32), np.full((4, 6, 10), 100, np.float32)
    (box,) = PATHS[path](cov, bbox, GEOMETRY, Clustering())
    np.testing.assert_allclose(box, [0, 0, 160, 96, 54], rtol=1e-6)


def test_settings_survive_json_and_old_ones_still_load():
    settings = Clustering("hybrid", confidence_model="mean_cov", dbscan_min_samples=0.03)
    assert Clustering(**json.loads(json.dumps(asdict(settings)))) == settings
    before = {key: value for key, value in asdict(Clustering()).items() if key != "confidence_model"}
    assert Clustering(**before) == replace(
        settings, algorithm="dbscan", confidence_model="aggregate_cov", dbscan_min_samples=1.0
    )


def test_a_full_grid_in_one_long_chain_stays_far_below_a_second():
    geometry = GridGeometry(736, 416)
    x, y = np.meshgrid(*geometry.reference_points())
    left = np.arange(x.size).reshape(x.shape) * 0.5
    bbox = (np.stack([x - left, y - 100, left + 12 - x, 160 - y]) / 35).astype(np.float32)
    start = time.perf_counter()
    detect(np.full(x.shape, 0.5, np.float32), bbox, geometry, Clustering())
    assert time.perf_counter() - start < 0.5
