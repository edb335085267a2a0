"""COCO's own average precisions, computed by faster-coco-eval (an optional package, loaded when it is needed).

Our part is to hand over the arrays and to read off the figures. The package's results are pycocotools' own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from components.measure.boxes import Floats, area
from components.measure.dataset import ANY_CLASS, Booleans, Integers, Predictions, Truth
from components.step import UserError

MAXIMUM_DETECTIONS = 100
_UNLIMITED = 1e10
# Square pixels, both ends included. The last one is not COCO's: faces larger than 64 x 64 pixels.
RANGES = {
    "all": (0.0, _UNLIMITED),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, _UNLIMITED),
    "larger_than_64": (64.0**2, _UNLIMITED),
}
_HALF, _THREE_QUARTERS = 0, 5  # among the IoU thresholds 0.50, 0.55, …, 0.95


@dataclass(frozen=True, slots=True)
class CocoFigures:
    """COCO's average precisions, 0 to 1, means over the classes that have objects; None where nothing was to be found.

    Attributes:
        by_range: By name of `RANGES`: mean over the IoU thresholds 0.50, 0.55, …, 0.95.
        at_half_by_range: By name of `RANGES`: at IoU 0.50.
        at_three_quarters: At IoU 0.75, all sizes.
        objects_by_range: By name of `RANGES`: number of objects.
    """

    by_range: dict[str, float | None]
    at_half_by_range: dict[str, float | None]
    at_three_quarters: float | None
    objects_by_range: dict[str, int]


def evaluate(truth: Truth, predictions: Predictions, maximum_detections: int = MAXIMUM_DETECTIONS) -> CocoFigures:
    """Returns COCO's figures. Images without numbers are numbered by their names, so that their order does not matter.

    Args:
        truth: The ground truth; regions are COCO's crowds.
        predictions: What was found.
        maximum_detections: Highest scores of each image and class that count. COCO takes 100, which is too few where
            an image holds more faces than that.

    Raises:
        UserError: The package is not installed.
    """
    library = _library()
    numbers = _image_numbers(truth)
    areas = area(truth.boxes) if truth.areas is None else truth.areas
    there, found = library.COCO(), library.COCO()
    for coco, rows in (
        (there, _truth_rows(truth, areas, numbers)),
        (found, _rows(predictions.boxes, area(predictions.boxes), numbers[predictions.images], predictions.classes)),
    ):
        images = [{"id": number} for number in numbers.tolist()]
        categories = [{"id": index, "name": name} for index, name in enumerate(truth.class_names)]
        coco.dataset = {"images": images, "categories": categories, "annotations": rows}
    for row, score in zip(found.dataset["annotations"], predictions.scores.tolist(), strict=True):
        row["score"] = score
    there.createIndex()
    found.createIndex()
    evaluation = library.COCOeval_faster(there, found, "bbox", print_function=lambda *_: None)
    evaluation.params.areaRng = [list(limits) for limits in RANGES.values()]
    evaluation.params.areaRngLbl = list(RANGES)
    evaluation.params.maxDets = [maximum_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    # [IoU thresholds, recalls, classes, ranges, 1]; -1 where a class has no object in a range.
    precision = np.asarray(evaluation.eval["precision"], np.float64)[..., 0]
    objects = truth.classes[~truth.regions], areas[~truth.regions]
    return CocoFigures(
        {name: _mean(precision[..., index]) for index, name in enumerate(RANGES)},
        {name: _mean(precision[_HALF, ..., index]) for index, name in enumerate(RANGES)},
        _mean(precision[_THREE_QUARTERS, ..., 0]),
        {name: int(np.sum((objects[1] >= low) & (objects[1] <= high))) for name, (low, high) in RANGES.items()},
    )


def _library() -> Any:  # noqa: ANN401 - the package ships no type information
    try:
        import faster_coco_eval
    except ImportError as error:
        raise UserError("COCO's figures need faster-coco-eval; pip install 'gridbox[evaluation]'") from error
    return faster_coco_eval


def _image_numbers(truth: Truth) -> Integers:
    """Returns [I] the numbers by which equal scores are ordered."""
    if truth.image_ids:
        return np.array(truth.image_ids, np.int64)
    numbers = np.empty(len(truth.images), np.int64)
    numbers[np.argsort(np.array(truth.images, np.str_), kind="stable")] = np.arange(1, len(truth.images) + 1)
    return numbers


def _truth_rows(truth: Truth, areas: Floats, numbers: Integers) -> list[dict[str, Any]]:
    rows = _rows(truth.boxes, areas, numbers[truth.image_of_box], truth.classes, truth.regions)
    everywhere = [row for row in rows if row["category_id"] == ANY_CLASS]
    rows = [row for row in rows if row["category_id"] != ANY_CLASS]
    rows += [{**row, "category_id": index} for row in everywhere for index in range(len(truth.class_names))]
    for number, row in enumerate(rows, start=1):
        row["id"] = number
    return rows


def _rows(
    boxes: Floats, areas: Floats, images: Integers, classes: Integers, crowds: Booleans | None = None
) -> list[dict[str, Any]]:
    """Returns COCO's annotations. They are numbered from 1: number 0 means 'no match' there."""
    sizes = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).tolist()
    crowd = np.zeros(len(boxes), int) if crowds is None else crowds.astype(int)
    columns = zip(sizes, areas.tolist(), images.tolist(), classes.tolist(), crowd.tolist(), strict=True)
    return [
        {"id": number, "image_id": image, "category_id": kind, "bbox": box, "area": size, "iscrowd": is_crowd}
        for number, (box, size, image, kind, is_crowd) in enumerate(columns, start=1)
    ]


def _mean(precision: Floats) -> float | None:
    known = precision[precision >= 0]
    return float(known.mean()) if len(known) else None
