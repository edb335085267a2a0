"""Scoring a network on labelled images by the spec's evaluation settings."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.dataset import LabelledImages
from components.measure.matching import HeightBand, Matcher
from components.measure.summary import summarise
from components.vision.predictor import Predictor
from components.vision.scoring import LabelledImage, score


def evaluate(predictor: Predictor, data: LabelledImages, config: spec_pb2.EvaluationConfig) -> dict[str, Any]:
    """Detects in all images and matches detections to labels.

    Objects outside the heights of the spec's `evaluation_box_config`, and regions that the spec masks, are neither
    demanded nor punished.

    Args:
        predictor: The network.
        data: Labelled images of the predictor's input size.
        config: The spec's `evaluation_config`.

    Returns:
        The figures of `components.measure.summary.summarise`, and `milliseconds_per_image` of network and clustering.
    """
    scored = score(predictor, _labelled(data, predictor.class_names))
    overlaps = config.minimum_detection_ground_truth_overlap
    matchers = {name: Matcher(boxes, overlaps[name]) for name, boxes in scored.boxes.items()}
    figures = summarise(matchers, {name: _band(config.evaluation_box_config[name]) for name in matchers})
    figures["milliseconds_per_image"] = 1000 * scored.seconds / len(scored.ids)
    return figures


def print_evaluation(figures: dict[str, Any]) -> None:
    """Prints an evaluation in TAO's words; a class without objects shows `nan`."""
    print(f"Mean average_precision (in %): {_percent(figures['mean_average_precision']):.4f}")
    scores = figures["average_precision"]
    width = max(len("class name"), *(len(name) for name in scores))
    print(f"{'class name':<{width}}  average precision (in %)")
    for name, value in scores.items():
        print(f"{name:<{width}}  {_percent(value):.4f}")
    print(f"Mean Inference Time: {figures['milliseconds_per_image'] / 1000:.6f}", flush=True)


def _labelled(data: LabelledImages, class_names: tuple[str, ...]) -> Iterator[LabelledImage]:
    for index, (pixels, objects) in enumerate(zip(data.pixels, data.objects, strict=True)):
        boxes = {name: objects.boxes[objects.class_ids == class_id] for class_id, name in enumerate(class_names)}
        yield LabelledImage(str(index), pixels, boxes, objects.masked.astype(np.float64))


def _band(box: spec_pb2.EvaluationConfig.EvaluationBoxConfig) -> HeightBand:
    return HeightBand(box.minimum_height, box.maximum_height or math.inf)


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * value
