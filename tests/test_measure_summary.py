import json

import numpy as np
import pytest
from flat_sets import ImageBoxes, matcher_of

from components.measure.matching import HeightBand
from components.measure.summary import summarise


def faces(*heights):
    return np.array([(100 * i, 0, 100 * i + h, h) for i, h in enumerate(heights)], float).reshape(-1, 4)


def scored(boxes, score=0.9):
    return np.column_stack([boxes, np.full(len(boxes), score)])


def test_headline_counts_objects_of_the_minimum_height_only():
    image = ImageBoxes(scored(faces(20)), np.concatenate([faces(20), [[500, 0, 508, 8]]]))
    summary = summarise({"face": matcher_of([image])}, HeightBand(12))
    assert summary["mean_average_precision"] == 1.0
    assert (summary["objects"], summary["detections"], summary["minimum_height"]) == (1, 1, 12)


def test_bands_without_objects_are_null_and_the_result_is_strict_json():
    image = ImageBoxes(scored(faces(20)), faces(20))
    summary = summarise({"face": matcher_of([image])})
    values = {band["band"]: band["average_precision"] for band in summary["average_precision_by_height"]}
    assert values == {"12-16": None, "16-24": 1.0, "24-40": None, "40-80": None, "80+": None}
    json.dumps(summary, allow_nan=False)


def test_mean_is_over_the_classes_that_have_objects():
    found, missed = ImageBoxes(scored(faces(20)), faces(20)), ImageBoxes(scored(faces()), faces(20))
    absent = ImageBoxes(scored(faces(20)), faces())
    matchers = {"face": matcher_of([found]), "hand": matcher_of([missed]), "foot": matcher_of([absent])}
    summary = summarise(matchers)
    assert summary["average_precision"] == {"face": 1.0, "hand": 0.0, "foot": None}
    assert summary["mean_average_precision"] == pytest.approx(0.5)
    assert summary["best_f1"]["foot"] is None
    assert summary["best_f1"]["face"] == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "threshold": 0.9}
