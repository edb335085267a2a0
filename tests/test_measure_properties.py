"""What must hold for every average precision, whatever the images."""

import math
from dataclasses import replace

import flat_sets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.measure import wider
from components.measure.average_precision import Measured
from components.measure.dataset import ANY_CLASS, Predictions, Truth, offsets_of
from components.measure.matching import ClassBoxes, HeightBand, Matcher


def curve(truth, predictions):
    return Matcher(ClassBoxes.of(truth, predictions, "face")).match().curve()


def with_subsets(truth):
    everything = np.ones(len(truth.boxes), bool)
    hard = np.arange(len(truth.boxes)) % 3 > 0
    subsets = {"easy": hard & (np.arange(len(truth.boxes)) % 2 > 0), "medium": hard, "hard": everything}
    return Truth(truth.images, truth.offsets, truth.boxes, truth.class_names, truth.classes, truth.regions, {}, subsets)


def results(truth, predictions):
    """Every average precision of ours that is to be free of the order of the images."""
    found = curve(truth, predictions)
    subsets = wider.score(with_subsets(truth) if not truth.subsets else truth, predictions)
    return [found.average_precision("integrate"), found.average_precision("sample")] + [
        score.value() for score in subsets.values()
    ]


same = pytest.approx


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1, 3, 50]))
def test_order_of_the_images_changes_nothing_even_where_scores_are_equal(seed, count, levels):
    random = np.random.default_rng(seed)
    truth, predictions = flat_sets.random_set(random, count, levels)
    truth = with_subsets(truth)
    moved = flat_sets.reordered(truth, predictions, random.permutation(count).tolist())
    assert results(*moved) == same(results(truth, predictions), abs=1e-12, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_splitting_the_work_into_batches_changes_nothing(seed, size):
    truth, predictions = flat_sets.random_set(np.random.default_rng(seed), 12)
    whole = results(truth, predictions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.measure.pairs._PAIRS_AT_ONCE", size)
        assert results(truth, predictions) == same(whole, abs=0, nan_ok=True)


def test_images_matched_in_parts_are_matched_as_in_the_whole():
    truth, predictions = flat_sets.random_set(np.random.default_rng(4), 20)
    whole = Matcher(ClassBoxes.of(truth, predictions, "face")).match()
    outcomes, founds = [], []
    for part in (range(7), range(7, 12), range(12, 20)):
        matching = Matcher(ClassBoxes.of(*flat_sets.reordered(truth, predictions, list(part)), "face")).match()
        outcomes.append(matching.outcome)
        founds.append(matching.found)
    assert np.concatenate(outcomes).tolist() == whole.outcome.tolist()
    assert np.concatenate(founds).tolist() == whole.found.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 50]), st.integers(0, 50))
def test_an_added_false_positive_never_raises_a_result(seed, levels, score):
    random = np.random.default_rng(seed)
    truth, predictions = flat_sets.random_set(random, 6, levels)
    row = np.array([900.0, 900.0, 930.0, 940.0, score / 50])
    # The official protocol stretches scores over what was found: one outside the range moves all thresholds.
    row[4] = np.clip(row[4], *np.quantile(predictions.scores, (0, 1))) if len(predictions.scores) else 0.5
    image = int(random.integers(0, 6))
    before, after = results(truth, predictions), results(truth, flat_sets.added(predictions, image, row))
    for low, high in zip(after, before, strict=True):
        assert low <= high + 1e-12 or math.isnan(high)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_perfect_predictions_score_one_and_none_score_zero(seed, equal_scores):
    random = np.random.default_rng(seed)
    cells = [random.permutation(25)[: random.integers(1, 9)] for _ in range(5)]
    faces = [np.column_stack([c % 5 * 40, c // 5 * 40, c % 5 * 40 + 30, c // 5 * 40 + 25.0]) for c in cells]
    truth = with_subsets(flat_sets.truth_of(faces))
    found = [
        np.column_stack([f, np.full(len(f), 0.5) if equal_scores else random.uniform(0, 1, len(f))]) for f in faces
    ]
    perfect, nothing = flat_sets.predictions_of(found), flat_sets.predictions_of([np.zeros((0, 5))] * 5)
    assert all(value == same(1.0, abs=1e-12) for value in results(truth, perfect) if not math.isnan(value))
    assert not math.isnan(results(truth, perfect)[-1])
    assert all(value == 0.0 for value in results(truth, nothing) if not math.isnan(value))
    assert curve(truth, perfect).coco_average_precision() == same(1.0)
    assert curve(truth, nothing).coco_average_precision() == 0.0


@pytest.mark.parametrize("levels", [1, 7, 10**6])
@pytest.mark.parametrize("maximum", [2, 5, 1_000_000])
def test_average_precision_at_iou_one_half_is_that_of_pycocotools(levels, maximum):
    for seed in range(4):
        truth, predictions = flat_sets.random_set(np.random.default_rng(seed), 25, levels)
        expected = flat_sets.pycocotools_average_precision(truth, predictions, maximum)
        assert curve(truth, flat_sets.strongest(predictions, maximum)).coco_average_precision() == same(
            expected, abs=1e-9
        )


def test_average_precision_of_a_real_set_is_that_of_pycocotools(real_data):
    from components.evaluate.inputs import Findings, read_predictions, read_truth

    pytest.importorskip("scipy")
    folder, findings = real_data / "wider_face_eval", Findings()
    truth = read_truth(folder / "ground_truth", findings)
    predictions = read_predictions(folder / "retinaface_mnet025_predictions.zip", truth, findings)
    some = np.random.default_rng(0).permutation(len(truth.images))[:250].tolist()
    truth, predictions = flat_sets.reordered(truth, predictions, some)
    truth = replace(truth, singles=None)  # all of COCO's regions are crowds
    assert truth.regions.sum() > 10
    expected = flat_sets.pycocotools_average_precision(truth, predictions)
    assert curve(truth, predictions).coco_average_precision() == same(expected, abs=1e-9)


def test_a_region_of_any_class_counts_for_each_and_a_crowd_only_for_its_own():
    box = np.array([[0.0, 0, 10, 10]] * 2)
    found = Predictions(np.array([0, 2]), box, np.array([0.9, 0.8]), np.array([0, 1]))
    for region_class, neutral in ((ANY_CLASS, (True, True)), (0, (True, False))):
        truth = Truth(("a",), np.array([0, 1]), box[:1], ("cat", "dog"), np.array([region_class]), np.array([True]))
        outcomes = [Matcher(ClassBoxes.of(truth, found, name)).match().outcome for name in truth.class_names]
        assert tuple(outcome.tolist() == [-1] for outcome in outcomes) == neutral


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.4, 0.5]))
def test_what_is_ignored_in_addition_never_lowers_average_precision(seed, single, neutral):
    random = np.random.default_rng(seed)
    truth, predictions = flat_sets.random_set(random, 6)
    if not len(predictions.boxes):
        return
    # Where detections are, so that it matters; the image's regions follow its objects, whichever the order.
    chosen = int(random.integers(len(predictions.boxes)))
    image, box = int(predictions.images[chosen]), predictions.boxes[chosen] + random.normal(0, 2, 4)
    place = truth.offsets[image + 1]
    offsets = truth.offsets + (np.arange(len(truth.offsets)) > image)
    more = Truth(
        truth.images,
        offsets,
        np.insert(truth.boxes, place, box, axis=0),
        truth.class_names,
        np.insert(truth.classes, place, ANY_CLASS),
        np.insert(truth.regions, place, True),
        singles=np.insert(truth.regions & (random.random(len(truth.boxes)) < 0.5), place, single),
    )
    before = replace(truth, singles=np.delete(more.singles, place))
    scores = [
        Matcher(ClassBoxes.of(each, predictions, "face"), 0.5, neutral).match().curve().average_precision()
        for each in (before, more)
    ]
    assert scores[1] >= scores[0] - 1e-12 or math.isnan(scores[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([8.0, 20.0, 40.0]))
def test_it_makes_no_difference_whether_small_faces_are_ignored_by_the_set_or_by_the_figure(seed, height):
    truth, predictions = flat_sets.random_set(np.random.default_rng(seed), 8)
    truth = replace(truth, regions=np.zeros_like(truth.regions))
    small = truth.boxes[:, 3] - truth.boxes[:, 1] < height
    ignored = replace(truth, regions=small, singles=small)
    by_set, by_figure = (
        Measured.of("m", each, predictions, HeightBand(height)).matchings["face"] for each in (ignored, truth)
    )
    assert by_set.outcome.tolist() == by_figure.outcome.tolist()
    assert by_set.counted.tolist() == by_figure.counted.tolist()


def test_strongest_keeps_the_best_of_each_image_and_class_in_their_order():
    scores, classes = np.array([0.1, 0.9, 0.9, 0.5, 0.3]), np.array([0, 0, 0, 1, 0])
    boxes = np.tile(np.arange(5.0)[:, None], (1, 4))
    kept = flat_sets.strongest(Predictions(np.array([0, 4, 5]), boxes, scores, classes), 1)
    assert kept.boxes[:, 0].tolist() == [1, 3, 4]
    assert kept.offsets.tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    "broken",
    [
        {"offsets": np.array([0, 3])},
        {"offsets": np.array([1, 2])},
        {"scores": np.array([0.1])},
        {"scores": np.array([0.1, np.nan])},
        {"boxes": np.full((2, 4), np.inf)},
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(broken):
    good = {"offsets": np.array([0, 2]), "boxes": np.zeros((2, 4)), "scores": np.ones(2), "classes": np.zeros(2, int)}
    Predictions(**good)
    with pytest.raises(ValueError):
        Predictions(**good | broken)


def test_images_of_equal_names_are_refused():
    with pytest.raises(ValueError, match="name of its own"):
        Truth(("a", "a"), offsets_of(np.array([0, 0])), np.zeros((0, 4)), (), np.zeros(0, int), np.zeros(0, bool))
