"""Random sets of images for the tests of measuring, as flat arrays, and the same sets for pycocotools."""

import contextlib
import io
from dataclasses import dataclass, field, replace

import numpy as np

from components.measure.dataset import Predictions, Truth, offsets_of
from components.measure.matching import ClassBoxes, Matcher


@dataclass
class ImageBoxes:
    """What was found [D, 5] and what was there [T, 4] in one image; regions [R, 4] follow the objects."""

    detections: np.ndarray
    truths: np.ndarray
    regions: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))


def joined(images):
    """The boxes of all images, for one class."""
    truth = truth_of([image.truths for image in images], [image.regions for image in images])
    return ClassBoxes.of(truth, predictions_of([image.detections for image in images]), "face")


def matcher_of(images, iou_threshold=0.5):
    return Matcher(joined(images), iou_threshold)


def truth_of(images, regions=None, class_names=("face",), **more):
    """A truth of boxes [N, 4] per image; `regions` are boxes per image that follow these."""
    regions = regions or [np.zeros((0, 4)) for _ in images]
    parts = [np.concatenate([b, r]).reshape(-1, 4) for b, r in zip(images, regions, strict=True)]
    region = [np.arange(len(p)) >= len(b) for p, b in zip(parts, images, strict=True)]
    boxes = np.concatenate([np.zeros((0, 4)), *parts])
    names = tuple(f"event/{number}" for number in range(len(images)))
    return Truth(
        names,
        offsets_of(np.array([len(p) for p in parts], np.int64)),
        boxes,
        class_names,
        np.zeros(len(boxes), np.int64),
        np.concatenate([np.zeros(0, bool), *region]),
        **more,
    )


def predictions_of(images):
    """Predictions of boxes and scores [N, 5] per image."""
    rows = np.concatenate([np.zeros((0, 5)), *[np.reshape(image, (-1, 5)) for image in images]])
    offsets = offsets_of(np.array([len(image) for image in images], np.int64))
    return Predictions(offsets, rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int64))


def random_set(random, count, levels=50):
    """Crowded images with regions; scores are multiples of 1 / levels."""
    truths, regions, found = [], [], []
    for _ in range(count):
        corner = random.uniform(0, 200, (random.integers(0, 12), 2))
        size = np.exp(random.uniform(np.log(6), np.log(90), (len(corner), 1))) * random.uniform(0.8, 1.2, corner.shape)
        boxes = np.column_stack([corner, corner + size])
        copies = np.repeat(boxes, random.integers(0, 4, len(boxes)), axis=0)
        copies = copies + random.normal(0, 2.5, copies.shape)
        stray = random.uniform(0, 200, (random.integers(0, 6), 2))
        copies = np.concatenate([copies, np.column_stack([stray, stray + random.uniform(5, 60, stray.shape)])])
        copies = copies[(copies[:, 2] > copies[:, 0]) & (copies[:, 3] > copies[:, 1])]
        found.append(np.column_stack([copies, random.integers(0, levels, len(copies)) / levels]))
        truths.append(boxes[1:])
        regions.append(boxes[:1])
    return truth_of(truths, regions), predictions_of(found)


def reordered(truth, predictions, order):
    """The same images in another order."""

    def rows(offsets):
        return np.concatenate([np.zeros(0, int), *[np.arange(offsets[i], offsets[i + 1]) for i in order]])

    t, p = rows(truth.offsets), rows(predictions.offsets)
    moved = replace(
        truth,
        images=tuple(truth.images[i] for i in order),
        offsets=offsets_of(np.diff(truth.offsets)[list(order)]),
        boxes=truth.boxes[t],
        classes=truth.classes[t],
        regions=truth.regions[t],
        attributes={name: values[t] for name, values in truth.attributes.items()},
        subsets={name: values[t] for name, values in truth.subsets.items()},
        singles=None if truth.singles is None else truth.singles[t],
    )
    offsets = offsets_of(np.diff(predictions.offsets)[list(order)])
    return moved, Predictions(offsets, predictions.boxes[p], predictions.scores[p], predictions.classes[p])


def added(predictions, image, row):
    """The same predictions with one more, [5], last in an image."""
    place = predictions.offsets[image + 1]
    offsets = predictions.offsets + (np.arange(len(predictions.offsets)) > image)
    boxes, scores = np.insert(predictions.boxes, place, row[:4], axis=0), np.insert(predictions.scores, place, row[4])
    return Predictions(offsets, boxes, scores, np.insert(predictions.classes, place, 0))


def pycocotools_average_precision(truth, predictions, maximum=1_000_000, area=(0, 1e10), thresholds=(0.5,)):
    """pycocotools on one class: the mean over these IoU thresholds, one range of areas, one limit of detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotations(boxes, images, **columns):
        for number, (b, image) in enumerate(zip(boxes.tolist(), images.tolist(), strict=True)):
            size = {"area": (b[2] - b[0]) * (b[3] - b[1]), "iscrowd": 0}
            yield {
                "id": number + 1,
                "image_id": image + 1,
                "category_id": 1,
                "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
                **size,
                **{name: values[number].item() for name, values in columns.items()},
            }

    header = {"images": [{"id": n + 1} for n in range(len(truth.images))], "categories": [{"id": 1}]}
    there, found = COCO(), COCO()
    crowds = truth.regions.astype(int)
    there.dataset = {**header, "annotations": list(annotations(truth.boxes, truth.image_of_box, iscrowd=crowds))}
    rows = list(annotations(predictions.boxes, predictions.images, score=predictions.scores))
    found.dataset = {**header, "annotations": rows}
    with contextlib.redirect_stdout(io.StringIO()):
        there.createIndex()
        found.createIndex()
        evaluation = COCOeval(there, found, "bbox")
        evaluation.params.iouThrs = np.array(thresholds)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(area)], ["all"]
        evaluation.params.maxDets = [maximum]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    return float(precision[precision >= 0].mean()) if (precision >= 0).any() else float("nan")


def strongest(predictions, most):
    """Returns the `most` highest scores of each image and class (COCO's `maxDets`); of equal ones the first."""
    order = np.lexsort((-predictions.scores, predictions.classes, predictions.images))
    group = np.stack([predictions.images[order], predictions.classes[order]])
    begins = np.append(True, (np.diff(group) != 0).any(axis=0))[: len(order)]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    kept = np.zeros(len(order), bool)
    kept[order[np.arange(len(order)) - first < most]] = True
    return predictions.where(kept)
