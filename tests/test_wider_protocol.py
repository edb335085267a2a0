"""The official protocol of WIDER FACE: against a walk written from its description, and on real detections."""

import time

import flat_sets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.formats.wider_ground_truth import read_ground_truth
from components.measure import wider
from components.measure.dataset import Truth
from components.step import UserError


def boxes(*rows):
    return np.array(rows, float).reshape(-1, 4)


def found(*rows):
    return np.array(rows, float).reshape(-1, 5)


def truth_of(images, **subsets):
    """A truth with the subsets given as lists of one flag a face; those left out hold every face."""
    truth = flat_sets.truth_of(images)
    flags = {name: np.array(subsets.get(name, [True] * len(truth.boxes)), bool) for name in wider.SUBSETS}
    return Truth(truth.images, truth.offsets, truth.boxes, truth.class_names, truth.classes, truth.regions, {}, flags)


def overlap(a, b):
    """In whole pixels, borders included."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def slow_average_precision(truth, predictions, name):
    """Detection by detection and threshold by threshold, as the protocol is told."""
    low, high = predictions.scores.min(initial=2.0), predictions.scores.max(initial=-1.0)
    events, faces = [], 0  # (stretched score, finds a face) of each detection that counts
    for i in range(len(truth.images)):
        there = range(truth.offsets[i], truth.offsets[i + 1])
        faces += sum(truth.subsets[name][g] for g in there)
        if not len(there):
            continue
        taken = set()
        rows = range(predictions.offsets[i], predictions.offsets[i + 1])
        for d in sorted(rows, key=lambda d: -predictions.scores[d]):
            shares = [overlap(predictions.boxes[d], truth.boxes[g]) for g in there]
            best = int(np.argmax(shares))
            score = (predictions.scores[d] - low) / (high - low) if high > low else 1.0
            if shares[best] < 0.5:
                events.append((score, False))
            elif truth.subsets[name][there[best]]:
                events.append((score, best not in taken))
                taken.add(best)
    precision, recall = [0.0], [0.0]
    for t in range(1000):
        kept = [right for score, right in events if score >= 1 - (t + 1) / 1000]
        precision.append(sum(kept) / len(kept) if kept else 0.0)
        recall.append(sum(kept) / faces)
    area = 0.0
    for t in range(1, 1001):
        area += (recall[t] - recall[t - 1]) * max(precision[t:])
    return area


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 4, 5000]))
def test_scores_are_those_of_the_slow_walk(seed, levels):
    random = np.random.default_rng(seed)
    truth, predictions = flat_sets.random_set(random, 4, levels)
    images = [np.round(truth.boxes[a:b]) for a, b in zip(truth.offsets[:-1], truth.offsets[1:], strict=True)]
    flags = {name: random.random(len(truth.boxes)) < 0.6 for name in wider.SUBSETS}
    truth = truth_of(images, **flags)
    for name, score in wider.score(truth, predictions).items():
        if truth.subsets[name].any():
            assert score.value() == pytest.approx(slow_average_precision(truth, predictions, name), abs=1e-12)
        else:
            assert np.isnan(score.value())


FACE = (0, 0, 20, 20)


def test_detection_of_a_face_outside_the_subset_is_as_if_it_were_not_there():
    truth = truth_of([boxes(FACE, (50, 0, 70, 20))], easy=[True, False])
    predictions = flat_sets.predictions_of([found((50, 0, 70, 20, 0.9), (*FACE, 0.5))])
    scores = wider.score(truth, predictions)
    assert scores["easy"].value() == 1.0
    assert len(scores["easy"].image) == 1
    assert scores["hard"].value() == 1.0


def test_detection_only_ever_looks_at_the_face_it_overlaps_most():
    # Both fit both faces, but both like the first one best: the second of them is false.
    truth = truth_of([boxes((0, 0, 20, 20), (0, 3, 20, 23))])
    predictions = flat_sets.predictions_of([found((0, 0, 20, 20, 0.9), (0, 1, 20, 21, 0.8))])
    assert wider.score(truth, predictions)["hard"].right.tolist() == [True, False]


def test_of_two_faces_that_overlap_equally_the_first_is_taken():
    truth = truth_of([boxes(FACE, FACE)], easy=[False, True], medium=[True, False])
    scores = wider.score(truth, flat_sets.predictions_of([found((*FACE, 0.9))]))
    assert len(scores["easy"].image) == 0
    assert scores["medium"].right.tolist() == [True]


def test_borders_belong_to_the_box():
    # 1 of 3 by area, 11 x 6 of 11 x 11 by pixels: 0.545.
    truth = truth_of([boxes((0, 0, 10, 10))])
    assert wider.score(truth, flat_sets.predictions_of([found((0, 0, 10, 5, 1))]))["hard"].right.tolist() == [True]
    # Even a box of no size covers one pixel.
    truth = truth_of([boxes((5, 5, 5, 5))])
    assert wider.score(truth, flat_sets.predictions_of([found((5, 5, 5, 5, 1))]))["hard"].right.tolist() == [True]


def test_detections_in_an_image_without_faces_do_not_count_but_stretch_the_scores():
    truth = truth_of([boxes(FACE), boxes()])
    predictions = flat_sets.predictions_of([found((*FACE, 0.5)), found((*FACE, 0.0), (*FACE, 1.0))])
    score = wider.score(truth, predictions)["hard"]
    assert score.value() == 1.0
    assert score.image.tolist() == [0]
    assert score.step.tolist() == [499]  # the threshold 0.5
    assert score.thresholds()[score.step[0]] == pytest.approx(0.5)


def test_scores_are_stretched_over_the_whole_set():
    truth = truth_of([boxes(FACE), boxes(FACE)])
    low = flat_sets.predictions_of([found((*FACE, 0.001), (90, 0, 99, 9, 0.0005)), found((*FACE, 0.002))])
    high = flat_sets.predictions_of([found((*FACE, 100.0), (90, 0, 99, 9, 50.0)), found((*FACE, 200.0))])
    one, other = (wider.score(truth, predictions)["hard"] for predictions in (low, high))
    assert one.step.tolist() == other.step.tolist()
    assert one.score_range == (0.0005, 0.002)


def test_thresholds_are_a_thousand_and_scores_between_two_of_them_are_kept_together():
    truth = truth_of([boxes(FACE), boxes(FACE)])
    near = [found((*FACE, 1.0), (90, 0, 99, 9, 0.50049)), found((*FACE, 0.50001), (90, 0, 99, 9, 0))]
    score = wider.score(truth, flat_sets.predictions_of(near))["hard"]
    precision, recall = score.curve()
    assert len(precision) == len(recall) == 1000
    assert precision[499] == pytest.approx(2 / 3)  # the better false one is not above the right one


def test_truth_without_the_lists_is_refused_with_what_is_missing():
    with pytest.raises(ValueError, match="easy, medium, hard"):
        wider.score(flat_sets.truth_of([boxes(FACE)]), flat_sets.predictions_of([found()]))


@pytest.fixture(scope="module")
def official(real_data):
    from components.evaluate.inputs import Findings, read_predictions, read_truth

    pytest.importorskip("scipy", reason="SciPy is not installed (extra 'evaluation')")
    folder = real_data / "wider_face_eval"
    if not folder.is_dir():
        pytest.skip(f"no official ground truth at {folder}")
    findings = Findings(strict=True)
    start = time.perf_counter()
    truth = read_truth(folder / "ground_truth", findings)
    predictions = read_predictions(folder / "retinaface_mnet025_predictions.zip", truth, findings)
    return truth, predictions, findings, time.perf_counter() - start


def test_figures_of_a_public_model_are_the_published_ones(official):
    truth, predictions, findings, reading = official
    assert (len(truth.images), len(predictions.scores)) == (3226, 297_333)
    start = time.perf_counter()
    figures = {name: 100 * score.value() for name, score in wider.score(truth, predictions).items()}
    seconds = time.perf_counter() - start
    assert figures == {
        "easy": pytest.approx(90.70, abs=0.01),
        "medium": pytest.approx(88.16, abs=0.01),
        "hard": pytest.approx(73.83, abs=0.01),
    }
    assert seconds < 3
    assert reading + seconds < 10
    assert not findings.faults


def test_official_ground_truth_lists_the_published_numbers_of_faces(official):
    truth = official[0]
    assert {name: int(faces.sum()) for name, faces in truth.subsets.items()} == {
        "easy": 7211,
        "medium": 13_319,
        "hard": 31_958,
    }
    assert not (truth.subsets["easy"] & ~truth.subsets["medium"]).any()
    assert truth.attributes["invalid"].sum() == 585


def write_ground_truth(folder, images, lists):
    """The official four files for one event; `images` are boxes x, y, w, h by name, `lists` numbers from 1 by image."""
    from scipy.io import savemat

    def cells(values):
        column = np.empty((len(values), 1), object)
        for row, value in enumerate(values):
            column[row, 0] = value
        return column

    folder.mkdir(exist_ok=True)
    common = {"event_list": cells(["0--Parade"]), "file_list": cells([cells(list(images))])}
    faces = {"face_bbx_list": cells([cells([np.array(b, np.int32).reshape(-1, 4) for b in images.values()])])}
    invalid = {"invalid_label_list": cells([cells([np.zeros((len(b), 1), np.uint8) for b in images.values()])])}
    savemat(folder / "wider_face_val.mat", {**common, **faces, **invalid})
    for name, numbers in lists.items():
        savemat(folder / f"wider_{name}_val.mat", {"gt_list": cells([cells([np.array(n) for n in numbers])])})
    return folder


def test_faces_of_a_list_are_counted_from_one(tmp_path):
    pytest.importorskip("scipy")
    images = {"a": [(0, 0, 5, 5), (9, 0, 5, 5)], "b": [], "c": [(1, 2, 3, 4)]}
    lists = {"easy": [[2], [], []], "medium": [[2], [], [1]], "hard": [[1, 2], [], [1]]}
    faces = read_ground_truth(write_ground_truth(tmp_path / "truth", images, lists))
    assert faces.names == ("0--Parade/a", "0--Parade/b", "0--Parade/c")
    assert faces.counts.tolist() == [2, 0, 1]
    assert faces.boxes.tolist()[2] == [1, 2, 3, 4]
    assert {name: flags.tolist() for name, flags in faces.lists.items()} == {
        "easy": [False, True, False],
        "medium": [False, True, True],
        "hard": [True, True, True],
    }


def test_damaged_ground_truth_is_named(tmp_path):
    pytest.importorskip("scipy")
    images, lists = {"a": [(0, 0, 5, 5)]}, {name: [[1]] for name in wider.SUBSETS}
    folder = write_ground_truth(tmp_path / "truth", images, {**lists, "hard": [[2]]})
    with pytest.raises(UserError, match=r"wider_hard_val.mat: 0--Parade/a: .* beyond its 1 faces"):
        read_ground_truth(folder)
    write_ground_truth(folder, images, {**lists, "easy": [[1], [1]]})
    with pytest.raises(UserError, match=r"wider_easy_val.mat: lists 2 images"):
        read_ground_truth(folder)
    (folder / "wider_easy_val.mat").write_bytes((folder / "wider_hard_val.mat").read_bytes()[:150])
    with pytest.raises(UserError, match=r"wider_easy_val.mat: missing or not MATLAB's"):
        read_ground_truth(folder)
    (folder / "wider_easy_val.mat").unlink()
    with pytest.raises(UserError, match=r"wider_easy_val.mat: missing"):
        read_ground_truth(folder)
