"""Scoring a network on labelled images by the spec's evaluation settings."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.dataset import LabelledImages
from components.measure.matching import DEFAULT_BANDS, HeightBand, ImageBoxes, Matcher
from components.vision.predictor import Predictor, detect_images

# Confidence of a cluster is a sum over cells; the file keeps enough digits to sort by it again.
BATCH = 16


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well a network finds each class.

    Attributes:
        average_precision: By class, area under the interpolated precision-recall curve, 0 to 1; NaN without objects.
        by_height: For each height band (of all classes together), its name, number of objects and average precision.
        objects: Number of objects that had to be found, by class.
        milliseconds_per_image: Median time of the network and the clustering for one image.
    """

    average_precision: dict[str, float]
    by_height: list[dict[str, Any]]
    objects: dict[str, int]
    milliseconds_per_image: float

    @property
    def mean_average_precision(self) -> float:
        """Mean over the classes; a class without objects counts as 0, as in TAO."""
        return float(np.mean([0.0 if math.isnan(value) else value for value in self.average_precision.values()]))

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; NaN becomes None."""
        return {
            "mean_average_precision": self.mean_average_precision,
            "average_precision": {name: _finite(value) for name, value in self.average_precision.items()},
            "average_precision_by_height": self.by_height,
            "objects": self.objects,
            "milliseconds_per_image": self.milliseconds_per_image,
        }


def evaluate(predictor: Predictor, data: LabelledImages, config: spec_pb2.EvaluationConfig) -> Evaluation:
    """Detects in all images and matches detections to labels.

    Objects smaller than the spec's `evaluation_box_config`, and regions that the spec masks, are neither demanded nor
    punished.

    Args:
        predictor: The network.
        data: Labelled images of the predictor's input size.
        config: The spec's `evaluation_config`.
    """
    detections: list[dict[str, Any]] = []
    times = []
    for start in range(0, len(data), BATCH):
        begin = time.perf_counter()
        batch = detect_images(predictor, data.pixels[start : start + BATCH])
        times.append((time.perf_counter() - begin) / len(batch))
        detections += batch
    scores, objects = {}, {}
    bands = [(band, 0, 0.0) for band in DEFAULT_BANDS]
    for class_id, name in enumerate(predictor.class_names):
        matcher = Matcher(
            [
                ImageBoxes(found[name], labels.boxes[labels.class_ids == class_id], labels.masked)
                for found, labels in zip(detections, data.objects, strict=True)
            ],
            config.minimum_detection_ground_truth_overlap.get(name, 0.5),
        )
        curve = matcher.match(_band(config, name)).curve()
        scores[name], objects[name] = curve.average_precision(), curve.objects
        for index, (band, count, total) in enumerate(bands):
            curve = matcher.match(band).curve()
            if curve.objects:
                weighted = curve.objects * curve.average_precision()
                bands[index] = band, count + curve.objects, total + weighted
    by_height = [
        {"band": band.name, "objects": count, "average_precision": total / count if count else None}
        for band, count, total in bands
    ]
    return Evaluation(scores, by_height, objects, float(np.median(times)) * 1000)


def _band(config: spec_pb2.EvaluationConfig, name: str) -> HeightBand:
    if name not in config.evaluation_box_config:
        return HeightBand()
    box = config.evaluation_box_config[name]
    return HeightBand(box.minimum_height, box.maximum_height or math.inf)


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
