import flat_sets
import numpy as np
import pytest
from test_measure_properties import with_subsets

from components.measure import wider
from components.measure.matching import ClassBoxes, Matcher
from components.measure.uncertainty import CurveOutcomes, MeanOutcomes, confidence_interval, paired_difference


def curve_score(truth, predictions):
    matcher = Matcher(ClassBoxes.of(truth, predictions, "face"))
    return CurveOutcomes.of(matcher, matcher.match())


def repeated(truth, predictions, weights):
    """The set with each image there as often as its weight says."""
    order = np.repeat(np.arange(len(weights)), weights).tolist()
    parts = [flat_sets.reordered(truth, predictions, [i]) for i in order]
    objects, regions = ([t.boxes[t.regions == which] for t, _ in parts] for which in (False, True))
    found = [np.column_stack([p.boxes, p.scores]) for _, p in parts]
    return flat_sets.truth_of(objects, regions), flat_sets.predictions_of(found)


@pytest.mark.parametrize("levels", [3, 1000])
def test_a_replicate_scores_what_the_drawn_images_score(levels):
    random = np.random.default_rng(levels)
    truth, predictions = flat_sets.random_set(random, 9, levels)
    score = curve_score(truth, predictions)
    weights = random.integers(0, 3, (12, 9))
    expected = []
    for row in weights:
        matcher = Matcher(ClassBoxes.of(*repeated(truth, predictions, row), "face"))
        expected.append(matcher.match().curve().average_precision())
    np.testing.assert_allclose(score.resampled(weights), expected, rtol=0, atol=1e-12)
    whole = Matcher(ClassBoxes.of(truth, predictions, "face")).match().curve().average_precision()
    assert score.value() == pytest.approx(whole, abs=1e-12)


def test_a_replicate_of_the_official_protocol_counts_each_image_as_often_as_drawn():
    random = np.random.default_rng(2)
    truth, predictions = flat_sets.random_set(random, 8)
    truth = with_subsets(truth)
    scores = wider.score(truth, predictions)
    for score in scores.values():
        assert score.resampled(np.ones((1, 8), int))[0] == pytest.approx(score.value(), abs=1e-12)
        # Twice every image is the same share of everything; no image is nothing to be found.
        assert score.resampled(np.full((1, 8), 2))[0] == pytest.approx(score.value(), abs=1e-12)
        assert np.isnan(score.resampled(np.zeros((1, 8), int))[0])
    half = np.array([[1] * 4 + [0] * 4])
    assert scores["hard"].resampled(half)[0] != pytest.approx(scores["hard"].value())


def test_the_interval_holds_the_score_narrows_with_more_images_and_is_the_same_for_the_same_seed():
    widths = []
    for count in (30, 300):
        score = curve_score(*flat_sets.random_set(np.random.default_rng(0), count))
        interval = confidence_interval(score, seed=5, replicates=200)
        assert interval.low < interval.value < interval.high
        assert interval == confidence_interval(score, seed=5, replicates=200)
        assert interval != confidence_interval(score, seed=6, replicates=200)
        widths.append(interval.high - interval.low)
        wider_one = confidence_interval(score, 0.99, seed=5, replicates=200)
        assert wider_one.low < interval.low
        assert wider_one.high > interval.high
    assert widths[1] < widths[0] / 2  # by the square root of ten, but for chance


def test_batches_of_replicates_do_not_change_the_draws(monkeypatch):
    score = curve_score(*flat_sets.random_set(np.random.default_rng(0), 20))
    whole = confidence_interval(score, replicates=90)
    monkeypatch.setattr("components.measure.uncertainty._AT_ONCE", 7)
    assert confidence_interval(score, replicates=90) == whole


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Each image holds one face; whether it is found is a coin of known bias, and average precision is recall."""
    random, covered, bias = np.random.default_rng(1), 0, 0.7
    face = np.array([[0.0, 0, 20, 20]])
    for _ in range(100):
        found = [np.array([[0, 0, 20, 20, 0.9]]) if hit else np.zeros((0, 5)) for hit in random.random(60) < bias]
        score = curve_score(flat_sets.truth_of([face] * 60), flat_sets.predictions_of(found))
        interval = confidence_interval(score, 0.9, replicates=200)
        covered += interval.low <= bias <= interval.high
    assert 80 <= covered <= 98


def degraded(predictions, random, share):
    return predictions.where(random.random(len(predictions.scores)) >= share)


def test_the_paired_test_tells_a_worse_model_and_no_difference_apart():
    random = np.random.default_rng(3)
    truth, predictions = flat_sets.random_set(random, 120)
    good, bad = curve_score(truth, predictions), curve_score(truth, degraded(predictions, random, 0.6))
    result = paired_difference(good, bad, replicates=300)
    assert result.p_value <= 0.01
    assert result.interval.low > 0
    assert paired_difference(bad, good, replicates=300).p_value == result.p_value
    same = paired_difference(good, good, replicates=300)
    assert (same.p_value, same.interval.low, same.interval.high) == (1.0, 0.0, 0.0)
    # Of two models that are alike, the difference is known much better than either score.
    like = curve_score(truth, degraded(predictions, random, 0.03))
    alone, pair = confidence_interval(good, replicates=300), paired_difference(good, like, replicates=300).interval
    assert pair.high - pair.low < (alone.high - alone.low) / 3


def test_the_paired_test_rarely_cries_wolf():
    """Two models that miss different faces at random are equally good: few p-values are small."""
    small = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        truth, predictions = flat_sets.random_set(random, 40)
        pair = [curve_score(truth, degraded(predictions, random, 0.3)) for _ in range(2)]
        small += paired_difference(*pair, replicates=100).p_value < 0.1
    assert small <= 10


def test_the_mean_over_classes_leaves_out_those_without_objects():
    truth, predictions = flat_sets.random_set(np.random.default_rng(0), 10)
    one, none = curve_score(truth, predictions), curve_score(truth.where(truth.regions), predictions)
    mean = MeanOutcomes([one, none])
    assert mean.images == 10
    assert mean.value() == one.value()
    assert confidence_interval(mean, replicates=50) == confidence_interval(one, replicates=50)


def test_replicates_without_an_object_are_counted_and_a_set_without_one_is_refused():
    face, nothing = np.array([[0.0, 0, 20, 20]]), np.zeros((0, 4))
    score = curve_score(
        flat_sets.truth_of([face, nothing]), flat_sets.predictions_of([[[0, 0, 20, 20, 1]], np.zeros((0, 5))])
    )
    interval = confidence_interval(score, replicates=100)
    assert 5 < interval.undefined < 50  # a quarter of the draws
    empty = curve_score(flat_sets.truth_of([nothing]), flat_sets.predictions_of([np.zeros((0, 5))]))
    with pytest.raises(ValueError, match="nothing is to be found"):
        confidence_interval(empty, replicates=10)
    with pytest.raises(ValueError, match="the same ones"):
        paired_difference(score, empty)
    with pytest.raises(ValueError, match="confidence"):
        confidence_interval(score, confidence=95)
