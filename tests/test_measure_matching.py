import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from flat_sets import ImageBoxes, matcher_of, predictions_of, truth_of
from hypothesis import given, settings
from hypothesis import strategies as st

from components.measure.average_precision import Measured
from components.measure.boxes import overlap
from components.measure.matching import (
    ANY_HEIGHT,
    DEFAULT_BANDS,
    FALSE_POSITIVE,
    NEUTRAL,
    TRUE_POSITIVE,
    UNMATCHED,
    HeightBand,
)

EMPTY = np.zeros((0, 4))


def detections(*rows):
    return np.array(rows, float).reshape(-1, 5)


def boxes(*rows):
    return np.array(rows, float).reshape(-1, 4)


def average_precision(images, band=ANY_HEIGHT, threshold=0.5):
    return matcher_of(images, threshold).match(band).curve().average_precision()


def walk(image, band, threshold):
    """COCO's walk over one image, word for word: outcome and match (local index) of each detection."""
    truths = [(b, False) for b in image.truths] + [(b, True) for b in image.regions]
    ignored = [r or not (band.minimum <= b[3] - b[1] < band.maximum) for b, r in truths]
    candidates = sorted(range(len(truths)), key=lambda i: ignored[i])  # stable: counted truths first
    taken, outcome, matched = set(), {}, {}
    for d in sorted(range(len(image.detections)), key=lambda i: -image.detections[i][4]):
        box, best, match = image.detections[d][:4], threshold, None
        for g in candidates:
            other, region = truths[g]
            if g in taken and not region:
                continue
            if match is not None and not ignored[match] and ignored[g]:
                break
            share = float(overlap(box, other, of_first=region))
            if share < best:
                continue
            best, match = share, g
        if match is not None:
            taken.add(match)
            outcome[d] = NEUTRAL if ignored[match] else TRUE_POSITIVE
        else:
            outside = not band.minimum <= box[3] - box[1] < band.maximum
            outcome[d] = NEUTRAL if outside else FALSE_POSITIVE
        matched[d] = UNMATCHED if match is None else match
    order = range(len(image.detections))
    return [outcome[d] for d in order], [matched[d] for d in order], [not i for i in ignored]


def slow_average_precision(images, band, threshold):
    scored, objects = [], 0
    for image in images:
        outcome, _, counted = walk(image, band, threshold)
        objects += sum(counted)
        scored += [(score, o) for score, o in zip(image.detections[:, 4], outcome, strict=True) if o != NEUTRAL]
    points = []
    for threshold in sorted({score for score, _ in scored}, reverse=True):
        kept = [o for score, o in scored if score >= threshold]
        correct = kept.count(TRUE_POSITIVE)
        points.append((correct / objects if objects else 0, correct / len(kept)))
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[i:])
        before = recall
    return area if objects else float("nan")


@st.composite
def crowded_image(draw):
    """Few distinct corners, sizes and scores, so that overlaps, duplicates and ties are the rule."""

    def some_boxes(limit):
        rows = draw(
            st.lists(
                st.tuples(
                    st.integers(0, 6), st.integers(0, 6), st.sampled_from([0, 8, 10, 12]), st.sampled_from([8, 12, 20])
                ),
                max_size=limit,
            )
        )
        return boxes(*[(x, y, x + w, y + h) for x, y, w, h in rows])

    found = some_boxes(8)
    scores = draw(st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=len(found), max_size=len(found)))
    return ImageBoxes(np.column_stack([found, np.reshape(scores, (-1, 1))]), some_boxes(6), some_boxes(2))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(crowded_image(), max_size=4),
    st.sampled_from([ANY_HEIGHT, HeightBand(12), HeightBand(8, 12), HeightBand(8, 20)]),
    st.sampled_from([0.3, 0.5, 0.75]),
)
def test_deferred_acceptance_is_the_walk_by_descending_score(images, band, threshold):
    matcher = matcher_of(images, threshold)
    result = matcher.match(band)
    for index, image in enumerate(images):
        outcome, matched, counted = walk(image, band, threshold)
        place, truths = matcher.detections_of(index), matcher.truths_of(index)
        assert result.outcome[place].tolist() == outcome
        local = np.where(result.matched[place] == UNMATCHED, UNMATCHED, result.matched[place] - truths.start)
        assert local.tolist() == matched
        assert result.counted[truths].tolist() == counted
    expected = slow_average_precision(images, band, threshold)
    assert result.curve().average_precision() == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_pairs_computed_in_small_pieces_give_the_same_matches(monkeypatch):
    images = random_images(np.random.default_rng(5), 30)
    whole = matcher_of(images).match(HeightBand(12))
    monkeypatch.setattr("components.measure.pairs._PAIRS_AT_ONCE", 7)
    pieces = matcher_of(images).match(HeightBand(12))
    assert pieces.matched.tolist() == whole.matched.tolist()


def test_perfect_detector_scores_one_whatever_the_number_of_faces():
    for count in (1, 2, 7):
        faces = boxes(*[(30 * i, 0, 30 * i + 20, 20) for i in range(count)])
        image = ImageBoxes(np.column_stack([faces, np.linspace(0.9, 0.1, count)]), faces)
        assert average_precision([image]) == 1.0


def test_no_detections_score_zero_and_no_faces_score_nan():
    assert average_precision([ImageBoxes(detections(), boxes((0, 0, 9, 9)))]) == 0.0
    assert np.isnan(average_precision([ImageBoxes(detections((0, 0, 9, 9, 1)), EMPTY)]))
    assert np.isnan(average_precision([]))


def test_second_detection_of_a_face_is_a_false_positive():
    image = ImageBoxes(
        detections((0, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.8), (50, 0, 60, 10, 0.7)),
        boxes((0, 0, 10, 10), (50, 0, 60, 10)),
    )
    result = matcher_of([image]).match()
    assert result.outcome.tolist() == [TRUE_POSITIVE, FALSE_POSITIVE, TRUE_POSITIVE]
    assert result.curve().average_precision() == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_detection_takes_the_next_face_when_a_better_detection_took_its_favourite():
    image = ImageBoxes(detections((0, 0, 10, 10, 0.8), (0, 0, 10, 11, 0.9)), boxes((0, 0, 10, 11), (0, 3, 10, 10)))
    assert matcher_of([image]).match().matched.tolist() == [1, 0]


def test_ignore_region_absorbs_any_number_of_detections_but_does_not_count():
    region = boxes((0, 0, 100, 100))
    inside = detections((0, 0, 10, 10, 0.9), (20, 20, 40, 40, 0.8), (95, 95, 115, 115, 0.7))
    result = matcher_of([ImageBoxes(inside, EMPTY, region)]).match()
    assert result.outcome.tolist() == [NEUTRAL, NEUTRAL, FALSE_POSITIVE]
    assert not result.counted.any()


def outcome_with_ignored(rows, ignored, single):
    """What becomes of detections where one box is ignored, by the rules of a measurement."""
    truth = replace(truth_of([EMPTY], [boxes(ignored)]), singles=np.array([single]))
    return Measured.of("m", truth, predictions_of([detections(*rows)])).matchings["face"].outcome.tolist()


def test_box_on_an_ignored_face_is_held_to_its_overlap_and_one_in_a_crowd_to_its_share():
    # An honest box of 10 x 10 round a face of 7 x 7: IoU 0.49, and so is its share inside.
    assert outcome_with_ignored([(0, 0, 10, 10, 0.9)], (1, 1, 8, 8), single=True) == [NEUTRAL]
    assert outcome_with_ignored([(0, 0, 10, 10, 0.9)], (1, 1, 8, 8), single=False) == [FALSE_POSITIVE]
    assert outcome_with_ignored([(0, 0, 12, 12, 0.9)], (1, 1, 8, 8), single=True) == [FALSE_POSITIVE]  # IoU 0.34
    # A box inside a large one: part of a face is no face, part of a crowd is one.
    assert outcome_with_ignored([(0, 0, 10, 10, 0.9)], (0, 0, 40, 40), single=True) == [FALSE_POSITIVE]
    assert outcome_with_ignored([(0, 0, 10, 10, 0.9)], (0, 0, 40, 40), single=False) == [NEUTRAL]


def test_an_ignored_face_excuses_one_detection_and_a_crowd_any_number():
    twice = [(0, 0, 10, 10, 0.9), (0, 0, 10, 11, 0.8)]
    assert outcome_with_ignored(twice, (0, 0, 10, 10), single=True) == [NEUTRAL, FALSE_POSITIVE]
    assert outcome_with_ignored(twice, (0, 0, 10, 10), single=False) == [NEUTRAL, NEUTRAL]


def test_a_face_that_counts_is_held_to_the_full_overlap_and_goes_before_one_that_is_ignored():
    truth = replace(truth_of([boxes((0, 0, 10, 10))], [boxes((0, 2, 10, 12))]), singles=np.array([False, True]))
    for box, outcome in (
        ((0, 1.5, 10, 11.5), TRUE_POSITIVE),
        ((0, 4, 10, 14), NEUTRAL),
        ((0, 8, 10, 18), FALSE_POSITIVE),
    ):
        found = predictions_of([detections((*box, 0.9))])
        assert Measured.of("m", truth, found).matchings["face"].outcome.tolist() == [outcome]
    # IoU 0.43 with the one that counts: too little for a match, and nothing else excuses it.
    found = predictions_of([detections((0, 4, 10, 14, 0.9))])
    alone = Measured.of("m", truth.where(~truth.regions), found).matchings["face"]
    assert alone.outcome.tolist() == [FALSE_POSITIVE]


def test_face_inside_an_ignore_region_is_still_counted():
    image = ImageBoxes(detections((0, 0, 10, 10, 0.9)), boxes((0, 0, 10, 10)), boxes((0, 0, 100, 100)))
    assert average_precision([image]) == 1.0


def test_band_neither_rewards_nor_punishes_what_lies_outside_it():
    image = ImageBoxes(
        # finds the tall face; a small stray; a stray of the band's height; a duplicate of the tall face in the band
        detections((0, 0, 30, 30, 0.9), (200, 0, 208, 8, 0.8), (300, 0, 320, 20, 0.7), (0, 0, 30, 23, 0.6)),
        boxes((0, 0, 30, 30), (100, 0, 120, 20)),
    )
    result = matcher_of([image]).match(HeightBand(16, 24))
    assert result.outcome.tolist() == [NEUTRAL, NEUTRAL, FALSE_POSITIVE, FALSE_POSITIVE]
    assert result.counted.tolist() == [False, True]


def test_band_includes_its_lower_and_excludes_its_upper_end():
    faces = boxes((0, 0, 9, 16), (0, 0, 9, 24))
    assert HeightBand(16, 24).contains(faces).tolist() == [True, False]


def test_default_bands_count_every_face_of_at_least_12_pixels_once():
    heights = np.linspace(12, 400, 500)
    faces = np.column_stack([0 * heights, 0 * heights, heights, heights])
    assert np.sum([band.contains(faces) for band in DEFAULT_BANDS], axis=0).tolist() == [1] * 500


@pytest.mark.parametrize("text", ["12-16", "16-24.5", "80+", "0+"])
def test_band_is_read_as_it_is_written(text):
    assert HeightBand.parse(text).name == text


@pytest.mark.parametrize("text", ["", "12", "16-12", "-4-9", "a+", "12-12"])
def test_meaningless_band_is_refused(text):
    with pytest.raises(ValueError):
        HeightBand.parse(text)


def test_equal_scores_are_kept_together_except_by_coco_which_keeps_their_order():
    face = boxes((0, 0, 10, 10))
    right, wrong = (0, 0, 10, 10, 0.5), (50, 50, 60, 60, 0.5)
    images = [ImageBoxes(detections(right, wrong), face)], [ImageBoxes(detections(wrong, right), face)]
    assert [average_precision(image) for image in images] == [0.5, 0.5]
    assert [matcher_of(image).match().curve().coco_average_precision() for image in images] == [1.0, 0.5]


def test_objects_that_are_not_wanted_are_neither_found_nor_missed():
    image = ImageBoxes(
        detections((0, 0, 10, 10, 0.9), (50, 0, 60, 10, 0.8), (90, 0, 99, 9, 0.7)),
        boxes((0, 0, 10, 10), (50, 0, 60, 10)),
    )
    matcher = matcher_of([image])
    result = matcher.match_objects(np.array([True, False]))
    assert result.outcome.tolist() == [TRUE_POSITIVE, NEUTRAL, FALSE_POSITIVE]
    spared = matcher.match_objects(np.array([True, False]), np.array([True, True, False]))
    assert spared.outcome.tolist() == [TRUE_POSITIVE, NEUTRAL, NEUTRAL]


def test_boxes_far_from_the_origin_and_far_apart_are_paired_all_the_same():
    near = ImageBoxes(detections((0, 0, 10, 10, 0.9)), boxes((0, 2, 10, 10)))
    far = ImageBoxes(detections((1e7, -1e7, 1e7 + 10, 10 - 1e7, 0.8)), boxes((1e7, 2 - 1e7, 1e7 + 10, 10 - 1e7)))
    assert average_precision([near, far, near]) == 1.0
    with pytest.raises(ValueError, match="too far apart"):
        matcher_of([ImageBoxes(detections((0, 0, 1, 1, 1)), boxes((-1e308, 0, 1, 1), (1e308, 0, 1.7e308, 1)))])


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        matcher_of([ImageBoxes(detections((0, 0, 10, 10, np.nan)), EMPTY)])
    with pytest.raises(ValueError, match="threshold"):
        matcher_of([], iou_threshold=0)


def random_images(random, count):
    images = []
    for _ in range(count):
        corner = random.uniform(0, 200, (random.integers(0, 12), 2))
        size = np.exp(random.uniform(np.log(6), np.log(90), (len(corner), 1))) * random.uniform(0.8, 1.2, corner.shape)
        truths = np.column_stack([corner, corner + size])
        copies = np.repeat(truths, random.integers(0, 4, len(truths)), axis=0)
        found = copies + random.normal(0, 2.5, copies.shape)
        stray = random.uniform(0, 200, (random.integers(0, 6), 2))
        found = np.concatenate([found, np.column_stack([stray, stray + random.uniform(5, 60, stray.shape)])])
        found = found[(found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])]
        scores = random.integers(0, 50, (len(found), 1)) / 50  # with ties
        images.append(ImageBoxes(np.hstack([found, scores]), truths[1:], truths[:1]))
    return images


def coco_evaluation(images, band):
    """pycocotools on the same data: IoU 0.5, one range of heights (passed off as areas), no limit of detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotations(rows):
        return [
            {"id": i, "image_id": image, "category_id": 1, "area": b[3] - b[1], "iscrowd": 0, **more}
            | {"bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
            for i, (image, b, more) in enumerate(rows, start=1)
        ]

    truths = [
        (n, b, {"iscrowd": crowd})
        for n, image in enumerate(images, 1)
        for crowd, part in enumerate((image.truths, image.regions))
        for b in part
    ]
    found = [(n, b, {"score": b[4]}) for n, image in enumerate(images, 1) for b in image.detections]
    truth, result = COCO(), COCO()
    header = {"images": [{"id": n} for n in range(1, len(images) + 1)], "categories": [{"id": 1}]}
    truth.dataset = {**header, "annotations": annotations(truths)}
    result.dataset = {**header, "annotations": annotations(found)}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        result.createIndex()
        evaluation = COCOeval(truth, result, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng = [[band.minimum, np.nextafter(band.maximum, 0)]]
        evaluation.params.areaRngLbl = ["band"]
        evaluation.params.maxDets = [1_000_000]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("band", [ANY_HEIGHT, HeightBand(12, 24), HeightBand(24, 60)], ids=lambda band: band.name)
def test_agrees_with_pycocotools_at_its_101_recall_points(band):
    images = random_images(np.random.default_rng(3), 120)
    curve = matcher_of(images).match(band).curve()
    evaluation = coco_evaluation(images, band)
    assert curve.objects > 50
    position = np.searchsorted(curve.recall, evaluation.params.recThrs, side="left")
    interpolated = np.append(curve.envelope(), 0)[position]
    np.testing.assert_allclose(interpolated, evaluation.eval["precision"].reshape(-1), rtol=0, atol=1e-9)
    assert curve.coco_average_precision() == pytest.approx(evaluation.eval["precision"].mean(), abs=1e-9)
    assert curve.recall[-1] == pytest.approx(evaluation.eval["recall"].item(), abs=1e-12)


def test_best_f1_stands_at_a_threshold_that_splits_no_tie():
    image = ImageBoxes(
        detections((0, 0, 10, 10, 0.9), (50, 0, 60, 10, 0.5), (90, 0, 99, 10, 0.5), (200, 0, 210, 10, 0.1)),
        boxes((0, 0, 10, 10), (50, 0, 60, 10)),
    )
    curve = matcher_of([image]).match().curve()
    assert curve.scores[curve.best_f1()] == 0.5
    assert curve.f1()[curve.best_f1()] == pytest.approx(0.8)  # 2 of 3 right, 2 of 2 found
