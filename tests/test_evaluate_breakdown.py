"""What a report breaks figures down by, and what it counts, against slow references."""

import re
from dataclasses import replace

import flat_sets
import numpy as np
import pytest

from components.evaluate.report.breakdown import by_attribute, by_event, by_height
from components.evaluate.report.counts import counts_over_thresholds
from components.evaluate.report.figures import Chart, Whisker, chart_svg, embedded, precision_recall_line, whiskers_svg
from components.evaluate.report.gallery import choose, f1, truth_marks
from components.evaluate.report.markdown import _plain
from components.measure.average_precision import Measured
from components.measure.curve import PrecisionRecall
from components.measure.matching import ANY_HEIGHT, FALSE_POSITIVE, TRUE_POSITIVE, ClassBoxes, HeightBand, Matcher
from components.measure.uncertainty import Interval


@pytest.fixture(scope="module")
def random_set():
    truth, predictions = flat_sets.random_set(np.random.default_rng(3), 40)
    random = np.random.default_rng(4)
    names = tuple(f"{number % 3}--Event_{number % 3}/{number}" for number in range(40))
    attributes = {
        "blur": random.integers(0, 3, len(truth.boxes)),
        "pose": np.zeros(len(truth.boxes), np.int64),  # tells nothing apart
        "track": np.arange(len(truth.boxes)),  # too many values
    }
    return replace(truth, images=names, attributes=attributes), predictions


@pytest.fixture(scope="module")
def measured(random_set):
    return Measured.of("m", *random_set, ANY_HEIGHT, 0.5)


def average_precision(truth, predictions):
    return Matcher(ClassBoxes.of(truth, predictions, "face")).match().curve().average_precision()


def test_an_event_scores_what_its_images_score_alone(random_set, measured):
    truth, predictions = random_set
    bars = by_event([measured])
    assert sorted(bar.label for bar in bars) == ["Event 0", "Event 1", "Event 2"]
    for bar in bars:
        number = int(bar.label[-1])
        alone = flat_sets.reordered(truth, predictions, range(number, 40, 3))
        assert bar.values == [pytest.approx(average_precision(*alone), abs=1e-12)]
        assert bar.objects == int((~alone[0].regions).sum())
    assert [bar.values[0] for bar in bars] == sorted((bar.values[0] for bar in bars), reverse=True)


def test_one_folder_of_images_has_no_events(random_set):
    truth, predictions = random_set
    flat = replace(truth, images=tuple(str(number) for number in range(40)))
    assert by_event([Measured.of("m", flat, predictions, ANY_HEIGHT, 0.5)]) == []


def test_an_attribute_demands_its_own_objects_and_punishes_every_false_positive(random_set, measured):
    truth, _ = random_set
    tables = by_attribute([measured])
    assert list(tables) == ["blur"]
    assert [bar.label for bar in tables["blur"]] == ["clear", "normal", "heavy"]
    matcher = measured.matchers["face"]
    for value, bar in enumerate(tables["blur"]):
        wanted = truth.attributes["blur"] == value
        assert bar.objects == int((wanted & ~truth.regions).sum())
        assert bar.values == [matcher.match_objects(wanted).curve().average_precision()]


def test_a_height_band_is_the_matching_of_that_band(measured):
    bands = [HeightBand(0, 20), HeightBand(20), HeightBand(5000)]
    bars = by_height([measured, measured], bands)
    for bar, band in zip(bars[:2], bands, strict=False):
        assert bar.values == [measured.matchers["face"].match(band).curve().average_precision()] * 2
    assert bars[2].values == [None, None]


def test_counts_at_each_threshold_are_those_of_the_detections_kept(measured):
    counts = counts_over_thresholds([measured])
    matching = measured.matchings["face"]
    for step in range(0, len(counts.thresholds), 20):
        kept = matching.scores >= counts.thresholds[step]
        assert counts.found[0, step] == int((kept & (matching.outcome == TRUE_POSITIVE)).sum())
        assert counts.false[0, step] == int((kept & (matching.outcome == FALSE_POSITIVE)).sum())
    assert counts.objects == int(matching.counted.sum())
    assert counts.thresholds[counts.best[0]] == measured.best_thresholds()["face"]


def test_scores_that_lie_close_together_are_still_told_apart(random_set):
    truth, predictions = random_set
    narrow = Measured.of("m", truth, replace(predictions, scores=1 - 1e-5 * predictions.scores), ANY_HEIGHT, 0.5)
    equal = Measured.of("n", truth, replace(predictions, scores=np.full(len(predictions.scores), 0.5)), ANY_HEIGHT, 0.5)
    counts = counts_over_thresholds([narrow])
    assert len(set(counts.shown())) > 10
    assert counts.found[0, counts.best[0]] > 0
    counts = counts_over_thresholds([equal])
    assert (len(counts.thresholds), counts.shown()) == (1, ["0.5"])


def test_counts_by_image_add_up_and_agree_with_the_marks(measured):
    thresholds = measured.best_thresholds()
    by_image = measured.counts_by_image(thresholds)
    matching = measured.matchings["face"]
    kept = matching.scores >= thresholds["face"]
    found = int((kept & (matching.outcome == TRUE_POSITIVE)).sum())
    false = int((kept & (matching.outcome == FALSE_POSITIVE)).sum())
    assert by_image.sum(axis=0).tolist() == [found, false, int(matching.counted.sum()) - found]
    for image in range(0, 40, 7):
        kinds = [mark.kind for mark in truth_marks([measured], [thresholds], image)]
        assert [kinds.count("hit"), kinds.count("missed")] == by_image[image, [0, 2]].tolist()


def test_nothing_found_and_nothing_there_still_make_counts(random_set):
    truth, predictions = random_set
    nothing = predictions.where(np.zeros(len(predictions.scores), bool))
    counts = counts_over_thresholds([Measured.of("m", truth, nothing, ANY_HEIGHT, 0.5)])
    assert counts.found.sum() == counts.false.sum() == 0
    empty = Measured.of("m", truth.where(truth.regions), nothing, ANY_HEIGHT, 0.5)
    assert counts_over_thresholds([empty]).objects == 0
    assert empty.best_thresholds() == {"face": -np.inf}


def test_worst_images_come_first_then_some_of_the_rest():
    counts = np.array([[10, 0, 0], [0, 1, 0], [0, 5, 3], [1, 1, 1], [0, 0, 0]])
    assert f1(counts).tolist() == [1, 0, 0, 0.5, 1]
    assert choose(list("abcde"), [counts]) == [2, 1, 3, 0, 4]
    better = np.array([[10, 0, 0], [1, 0, 0], [0, 5, 3], [1, 1, 1], [0, 0, 0]])
    assert choose(list("abcde"), [counts, better])[:3] == [2, 3, 1]  # by the mean of both, then by errors
    many = choose([f"{n:03d}" for n in range(100)], [np.tile([1, 0, 1], (100, 1))])
    assert many[:16] == list(range(16))
    assert (len(many), many[16], many[-1]) == (24, 16, 99)


def test_a_long_curve_is_drawn_with_few_points_and_keeps_its_ends_and_its_best_point():
    random = np.random.default_rng(0)
    hits = random.random(50_000) < np.linspace(0.99, 0.02, 50_000)
    curve = PrecisionRecall(np.cumsum(hits), np.linspace(1, 0, 50_000), 30_000)
    line = precision_recall_line("m", 0, curve)
    assert len(line.x) <= 402
    assert line.x[-1] == curve.recall[-1]
    assert line.columns["score"][line.marked[0]] == curve.scores[curve.best_f1()]
    drawn = np.interp(curve.recall, line.x, line.y)
    assert np.abs(drawn - curve.envelope())[100:].max() < 0.01
    assert precision_recall_line("m", 0, PrecisionRecall(np.zeros(0, int), np.zeros(0), 3)) is None
    svg = chart_svg(Chart("t", [line]))
    assert len(svg) < 40_000


def test_whiskers_of_any_size_stay_in_the_drawing():
    for value, low, high in [(0.5, 0.5, 0.5), (0.0, -0.9, 0.9), (-0.0001, -0.0002, 0.0), (1.0, 0.2, 1.0)]:
        interval = Interval(value, low, high, 0.95, 1000, 0)
        svg = whiskers_svg(
            [Whisker("a name that is far too long for the place it has here", 0, interval, 0.5)], "x", True
        )
        places = [float(x) for x in re.findall(r' (?:x1|x2|cx|x)="([^"]+)"', svg)]
        assert all(0 <= x <= 960 for x in places)
        assert "…" in svg


def test_data_in_a_page_cannot_end_its_element_and_markdown_stays_plain():
    assert embedded({"name": "</script><script>alert(1)"}).count("<") == 2
    assert _plain("a|b <i>*x*\nnext") == "a\\|b \\<i\\>\\*x\\* next"
