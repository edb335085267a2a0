import dataclasses
import sys
from importlib.util import find_spec

import flat_sets
import numpy as np
import pytest

from components.measure import coco
from components.measure.dataset import Predictions, Truth
from components.step import UserError

ALL_THRESHOLDS = np.linspace(0.5, 0.95, 10)


needs_library = pytest.mark.skipif(
    find_spec("faster_coco_eval") is None, reason="faster-coco-eval is not installed (extra 'evaluation')"
)


@needs_library
def test_figures_are_those_of_pycocotools():
    truth, predictions = flat_sets.random_set(np.random.default_rng(0), 60)
    truth = dataclasses.replace(truth, image_ids=tuple(range(1, 61)))
    figures = coco.evaluate(truth, predictions)
    for name, limits in coco.RANGES.items():
        for thresholds, ours in ((ALL_THRESHOLDS, figures.by_range), ([0.5], figures.at_half_by_range)):
            theirs = flat_sets.pycocotools_average_precision(truth, predictions, 100, limits, thresholds)
            assert ours[name] == (None if np.isnan(theirs) else pytest.approx(theirs, abs=1e-9))
    theirs = flat_sets.pycocotools_average_precision(truth, predictions, 100, thresholds=[0.75])
    assert figures.at_three_quarters == pytest.approx(theirs, abs=1e-9)
    assert figures.objects_by_range["all"] == (~truth.regions).sum()
    assert figures.by_range["large"] is None  # no box of the set is as large
    assert figures.objects_by_range["large"] == 0


@needs_library
def test_order_of_images_without_numbers_changes_nothing():
    random = np.random.default_rng(0)
    truth, predictions = flat_sets.random_set(random, 20, levels=2)
    moved = flat_sets.reordered(truth, predictions, random.permutation(20).tolist())
    assert coco.evaluate(*moved) == coco.evaluate(truth, predictions)


@needs_library
def test_limit_of_detections_is_kept():
    truth, predictions = flat_sets.random_set(np.random.default_rng(0), 20)
    assert coco.evaluate(truth, predictions, 2) == coco.evaluate(truth, flat_sets.strongest(predictions, 2), 100)


@needs_library
def test_areas_of_the_truth_decide_the_size_and_only_faces_over_64_pixels_are_larger():
    boxes = np.array([[0.0, 0, 60, 60], [100, 0, 164, 65]])
    found = flat_sets.predictions_of([np.column_stack([boxes, [0.9, 0.8]])])
    truth = flat_sets.truth_of([boxes])
    figures = coco.evaluate(truth, found)
    assert figures.objects_by_range == {"all": 2, "small": 0, "medium": 2, "large": 0, "larger_than_64": 1}
    assert figures.by_range["larger_than_64"] == pytest.approx(1.0)
    outlined = coco.evaluate(dataclasses.replace(truth, areas=np.array([500.0, 500.0])), found)
    assert outlined.objects_by_range["small"] == 2


@needs_library
def test_region_of_any_class_is_a_crowd_of_each():
    boxes = np.array([[0.0, 0, 50, 50], [100, 0, 150, 50], [0, 100, 150, 200]])
    classes, regions = np.array([0, 1, -1]), np.array([False, False, True])
    truth = Truth(("a",), np.array([0, 3]), boxes, ("cat", "dog"), classes, regions)
    inside = np.array([[10.0, 110, 40, 140]] * 2)
    found = Predictions(
        np.array([0, 4]), np.concatenate([boxes[:2], inside]), np.array([0.5, 0.5, 0.9, 0.9]), np.array([0, 1, 0, 1])
    )
    assert coco.evaluate(truth, found).by_range["all"] == pytest.approx(1.0)


@needs_library
def test_no_detections_score_zero_and_no_objects_have_no_figure():
    truth, predictions = flat_sets.random_set(np.random.default_rng(0), 5)
    nothing = predictions.where(np.zeros(len(predictions.scores), bool))
    assert coco.evaluate(truth, nothing).by_range["all"] == 0.0
    assert coco.evaluate(truth.where(truth.regions), predictions).by_range["all"] is None


def test_missing_package_is_named_with_the_extra_that_holds_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    truth, predictions = flat_sets.random_set(np.random.default_rng(0), 2)
    with pytest.raises(UserError, match=r"gridbox\[evaluation\]"):
        coco.evaluate(truth, predictions)
