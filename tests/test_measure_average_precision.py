"""Average precision, the right one and TAO's, against slow loops written from the definitions."""

import math

import numpy as np
import pytest
from flat_sets import ImageBoxes, joined, matcher_of
from hypothesis import given, settings
from hypothesis import strategies as st

from components.measure import tao
from components.measure.curve import PrecisionRecall
from components.measure.matching import FALSE_POSITIVE, NEUTRAL, BoxSizes
from components.measure.summary import summarise

MODES = ("integrate", "sample")


def detections(*rows):
    return np.array(rows, float).reshape(-1, 5)


def boxes(*rows):
    return np.array(rows, float).reshape(-1, 4)


def curve_of(right, objects):
    return PrecisionRecall(np.cumsum(right, dtype=int), np.linspace(1, 0.5, len(right)), objects)


# ---- The right way ---------------------------------------------------------------------------------------------------


def slow_sample(right, objects):
    """Mean over 11 recall points of the highest precision at that recall or a higher one, in whole numbers."""
    total = 0.0
    for tenth in range(11):
        best, found = 0.0, 0
        for rank, hit in enumerate(right, start=1):
            found += hit
            if 10 * found >= tenth * objects:
                best = max(best, found / rank)
        total += best
    return total / 11


def slow_integrate(right, objects):
    """Area under the curve: each newly found object adds 1/n of the best precision from there on."""
    area, found = 0.0, 0
    for rank, hit in enumerate(right, start=1):
        if hit:
            found += 1
            later, best = found - 1, 0.0
            for other, other_hit in enumerate(right[rank - 1 :], start=rank):
                later += other_hit
                best = max(best, later / other)
            area += best / objects
    return area


@settings(max_examples=300, deadline=None)
@given(st.lists(st.booleans(), max_size=30), st.integers(0, 12))
def test_average_precision_is_that_of_the_slow_loops(right, missed):
    objects = sum(right) + missed
    curve = curve_of(right, objects)
    if not objects:
        assert all(math.isnan(curve.average_precision(mode)) for mode in MODES)
        return
    assert curve.average_precision("integrate") == pytest.approx(slow_integrate(right, objects), abs=1e-12)
    assert curve.average_precision("sample") == pytest.approx(slow_sample(right, objects), abs=1e-12)


@pytest.mark.parametrize("objects", [1, 2, 3, 10, 30, 49, 100])
def test_a_perfect_detector_scores_one_and_under_tao_loses_its_last_object(objects):
    faces = boxes(*[(30 * i, 0, 30 * i + 20, 20) for i in range(objects)])
    image = ImageBoxes(np.column_stack([faces, np.linspace(0.9, 0.1, objects)]), faces)
    for mode in MODES:
        assert matcher_of([image]).match().curve().average_precision(mode) == 1.0
    assert tao.average_precision(joined([image]), BoxSizes(), 0.5, "integrate") == pytest.approx(
        (objects - 1) / objects
    )
    assert tao.average_precision(joined([image]), BoxSizes(), 0.5, "sample") == 1.0


def test_three_of_ten_objects_reach_the_sample_at_three_tenths():
    curve = curve_of([True] * 3, 10)
    assert curve.average_precision("sample") == pytest.approx(4 / 11)
    faces = boxes(*[(30 * i, 0, 30 * i + 20, 20) for i in range(10)])
    image = ImageBoxes(np.column_stack([faces[:3], [0.9, 0.8, 0.7]]), faces)
    assert tao.average_precision(joined([image]), BoxSizes(), 0.5, "sample") == pytest.approx(3 / 11)  # 3/10 < 3 * 0.1


def test_summary_follows_the_mode():
    image = ImageBoxes(detections((0, 0, 20, 20, 0.9)), boxes((0, 0, 20, 20), (100, 0, 120, 20)))
    figures = {mode: summarise({"face": matcher_of([image])}, mode=mode) for mode in MODES}
    assert figures["integrate"]["mean_average_precision"] == pytest.approx(0.5)
    assert figures["sample"]["mean_average_precision"] == pytest.approx(6 / 11)
    assert figures["sample"]["average_precision_by_height"][1]["average_precision"] == pytest.approx(6 / 11)


# ---- Sizes -----------------------------------------------------------------------------------------------------------


def test_box_sizes_include_both_ends_of_width_and_height():
    sizes = BoxSizes(10, 20, 5, 8)
    rows = boxes((0, 0, 10, 5), (0, 0, 20, 8), (0, 0, 9.5, 6), (0, 0, 20.5, 6), (0, 0, 15, 4.5), (0, 0, 15, 8.5))
    assert sizes.contains(rows).tolist() == [True, True, False, False, False, False]


def test_what_is_too_narrow_neither_counts_nor_punishes_unless_tao_is_asked_for():
    sizes = BoxSizes(minimum_width=10)
    image = ImageBoxes(
        # the wide face; the narrow one, found by a box that is wide enough; a narrow stray
        detections((0, 0, 20, 20, 0.8), (100, 0, 112, 20, 0.9), (200, 0, 205, 20, 0.95)),
        boxes((0, 0, 20, 20), (100, 0, 109, 20)),
    )
    result = matcher_of([image]).match(sizes)
    assert result.outcome.tolist() == [1, NEUTRAL, NEUTRAL]
    assert result.curve().average_precision() == 1.0
    # TAO forgets the narrow face: the box that found it is false.
    assert tao.average_precision(joined([image]), sizes, 0.5, "sample") == pytest.approx(0.5)
    assert FALSE_POSITIVE not in result.outcome


# ---- TAO's way -------------------------------------------------------------------------------------------------------


def slow_tao(images, limits, threshold, mode):
    """Section by section from the reference, with Python's own numbers; `limits`: widths and heights."""
    found, number_of_objects = [], 0
    kept = []
    for image in images:

        def valid(box):
            width, height = box[2] - box[0], box[3] - box[1]
            return limits[0] <= width <= limits[1] and limits[2] <= height <= limits[3]

        truths = [[round(v) for v in box] for box in image.truths.tolist() if valid(box)]
        number_of_objects += len(truths)
        kept.append(truths)
        found += [
            (row[4], len(kept) - 1, [round(v) for v in row[:4]]) for row in image.detections.tolist() if valid(row)
        ]
    found.sort(key=lambda entry: -entry[0])  # stable
    taken, hits = set(), []
    for _, image, (x1, y1, x2, y2) in found:
        best, overlap = None, -1.0
        for index, (a1, b1, a2, b2) in enumerate(kept[image]):
            width, height = min(x2, a2) - max(x1, a1) + 1, min(y2, b2) - max(y1, b1) + 1
            common = max(width, 0) * max(height, 0)
            union = (x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1) - common
            if common / union > overlap:
                best, overlap = index, common / union
        hit = best is not None and overlap >= threshold and (image, best) not in taken
        if hit:
            taken.add((image, best))
        hits.append(hit)
    recalls, precisions, right = [], [], 0
    for rank, hit in enumerate(hits, start=1):
        right += hit
        recalls.append(right / number_of_objects if number_of_objects else math.nan)
        precisions.append(right / rank)
    if mode == "sample":
        total = 0.0
        for at in np.linspace(0, 1, 11).tolist():
            total += max([p for r, p in zip(recalls, precisions, strict=True) if r >= at], default=0.0)
        return total / 11
    unique = sorted({r for r in recalls if not math.isnan(r)})
    area = 0.0
    for i in range(len(unique) - 1):
        highest = max(p for r, p in zip(recalls, precisions, strict=True) if unique[i] <= r < unique[-1])
        area += highest * (unique[i + 1] - unique[i])
    return area


@st.composite
def crowded_images(draw):
    """Few distinct places and sizes, halves of pixels, and distinct or equal scores."""
    edge = st.integers(-4, 40).map(lambda value: value / 2)
    size = st.integers(0, 24).map(lambda value: value / 2)

    def some(limit):
        rows = draw(st.lists(st.tuples(edge, edge, size, size), max_size=limit))
        return boxes(*[(x, y, x + w, y + h) for x, y, w, h in rows])

    images = []
    for _ in range(draw(st.integers(0, 3))):
        found = some(8)
        scores = draw(st.lists(st.sampled_from([0.25, 0.5, 1.5]), min_size=len(found), max_size=len(found)))
        images.append(ImageBoxes(np.column_stack([found, np.reshape(scores, (-1, 1))]), some(5), some(1)))
    return images


LIMITS = [(0, 1e9, 0, 1e9), (1, 9999, 4, 9999), (2.5, 10, 3, 8.5)]


@settings(max_examples=400, deadline=None)
@given(crowded_images(), st.sampled_from(LIMITS), st.sampled_from([0.3, 0.5, 0.7]), st.sampled_from(MODES))
def test_tao_average_precision_is_that_of_the_slow_loops(images, limits, threshold, mode):
    ours = tao.average_precision(joined(images), BoxSizes(*limits), threshold, mode)
    assert ours == pytest.approx(slow_tao(images, limits, threshold, mode), abs=1e-12)


def test_tao_average_precision_on_many_random_boxes():
    random = np.random.default_rng(4)
    for mode in MODES:
        images = []
        for _ in range(60):
            corners = random.uniform(0, 80, (random.integers(0, 9), 2))
            truths = np.hstack([corners, corners + random.uniform(2, 30, corners.shape)])
            near = np.repeat(truths, 2, axis=0)
            found = near + random.normal(0, 2.5, near.shape)
            images.append(ImageBoxes(np.column_stack([found, random.random(len(found))]), truths))
        slow = slow_tao(images, LIMITS[1], 0.5, mode)
        assert 0.05 < slow < 0.95
        assert tao.average_precision(joined(images), BoxSizes(*LIMITS[1]), 0.5, mode) == pytest.approx(slow, abs=1e-12)


def test_tao_rounds_halves_to_the_even_pixel_and_counts_borders():
    truth = boxes((0, 0, 9, 9))
    # 2.5 becomes 2 and 3.5 becomes 4; IoU of 10x10 with 8x8 inside it: 64/100
    image = ImageBoxes(detections((0.5, 0.5, 7.4, 7.4, 0.9)), np.concatenate([truth, truth + 100]))
    assert tao.average_precision(joined([image]), BoxSizes(), 0.64, "sample") == pytest.approx(6 / 11)
    assert tao.average_precision(joined([image]), BoxSizes(), 0.65, "sample") == 0.0


def test_tao_ignores_no_region_and_a_class_without_objects_scores_zero():
    region = ImageBoxes(detections((0, 0, 10, 10, 0.9)), boxes((50, 0, 60, 10)), boxes((0, 0, 20, 20)))
    assert matcher_of([region]).match().outcome.tolist() == [NEUTRAL]
    found = ImageBoxes(np.vstack([region.detections, (50, 0, 60, 10, 0.8)]), region.truths, region.regions)
    assert tao.average_precision(joined([found]), BoxSizes(), 0.5, "sample") == pytest.approx(0.5)
    for mode in MODES:
        nothing = ImageBoxes(detections((0, 0, 10, 10, 0.9), (0, 0, 9, 9, 0.8)), boxes())
        assert tao.average_precision(joined([nothing]), BoxSizes(), 0.5, mode) == 0.0
        assert tao.average_precision(joined([]), BoxSizes(), 0.5, mode) == 0.0


def test_tao_lets_a_detection_look_only_at_the_object_it_overlaps_most():
    image = ImageBoxes(detections((0, 0, 10, 10, 0.8), (0, 0, 10, 11, 0.9)), boxes((0, 0, 10, 11), (0, 3, 10, 10)))
    assert matcher_of([image]).match().curve().average_precision() == 1.0
    assert tao.average_precision(joined([image]), BoxSizes(), 0.5, "sample") == pytest.approx(6 / 11)
