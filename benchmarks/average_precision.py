"""Average precision of a WIDER-val-sized set: ours, all height bands, against pycocotools, one range.

Both get the same seeded boxes; pycocotools is restricted to IoU 0.5, one range and no limit of detections. The two
alternate within one run, the median of each counts. Run: python benchmarks/average_precision.py
"""

import contextlib
import io
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from components.measure.matching import ANY_HEIGHT, DEFAULT_BANDS, ImageBoxes, Matcher
from components.measure.summary import summarise

IMAGES, ROUNDS, SEED = 3226, 5, 0
RECALLS = np.linspace(0, 1, 101)


def random_set() -> list[ImageBoxes]:
    """Draws some 40,000 faces, most images holding few and some holding hundreds, and 100,000 detections."""
    random = np.random.default_rng(SEED)
    return [_random_image(random, int(count)) for count in random.pareto(1.1, IMAGES).clip(0, 60) * 4.4]


def _random_image(random: np.random.Generator, faces: int) -> ImageBoxes:
    corner = random.uniform((0, 0), (704, 384), (faces, 2))
    size = np.exp(random.uniform(np.log(6), np.log(120), (faces, 1))) * (0.8, 1.0)
    truths = np.column_stack([corner, corner + size])
    found = truths[random.random(faces) < 0.9]
    found = np.concatenate([found, found[random.random(len(found)) < 0.3]])
    found = found + random.normal(0, 0.06, found.shape) * (found[:, 2:3] - found[:, :1])
    stray = random.uniform((0, 0), (704, 384), (14 + faces // 4, 2))
    strays = np.column_stack([stray, stray + np.exp(random.uniform(np.log(6), np.log(120), (len(stray), 1)))])
    boxes = np.concatenate([found, strays])
    return ImageBoxes(np.column_stack([boxes, random.random(len(boxes))]), truths)


def coco_annotations(per_image: list[NDArray[Any]]) -> list[dict[str, Any]]:
    """Returns boxes [N, 4 or 5] (x1, y1, x2, y2, score) of each image as COCO annotations."""
    rows = [(image, box) for image, boxes in enumerate(per_image, start=1) for box in boxes.tolist()]
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "iscrowd": 0,
            "area": (x2 - x1) * (y2 - y1),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score[0] if score else 0.0,
        }
        for number, (image, (x1, y1, x2, y2, *score)) in enumerate(rows, start=1)
    ]


def coco_set(per_image: list[NDArray[Any]]) -> COCO:
    """Returns an indexed COCO object; building it is not timed."""
    coco = COCO()
    images = [{"id": number} for number in range(1, len(per_image) + 1)]
    coco.dataset = {"images": images, "categories": [{"id": 1}], "annotations": coco_annotations(per_image)}
    coco.createIndex()
    return coco


def ours(images: list[ImageBoxes]) -> NDArray[np.float64]:
    """Scores overall and in five bands; returns the overall curve at COCO's 101 recall points."""
    matcher = Matcher(images)
    summarise({"face": matcher}, ANY_HEIGHT, DEFAULT_BANDS)
    curve = matcher.match().curve()
    return np.append(curve.envelope(), 0)[np.searchsorted(curve.recall, RECALLS)]


def theirs(truths: COCO, found: COCO) -> NDArray[np.float64]:
    """Scores in one range; returns the curve at COCO's 101 recall points."""
    evaluation = COCOeval(truths, found, "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [1_000_000]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"], np.float64).reshape(-1)


def main() -> None:
    images = random_set()
    with contextlib.redirect_stdout(io.StringIO()):
        truths, found = coco_set([i.truths for i in images]), coco_set([i.detections for i in images])
    faces, detections = sum(len(i.truths) for i in images), sum(len(i.detections) for i in images)
    print(f"{len(images)} images, {faces} faces, {detections} detections, {ROUNDS} rounds")
    times: dict[str, list[float]] = {"ours": [], "pycocotools": []}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        our_curve = ours(images)
        middle = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            their_curve = theirs(truths, found)
        times["ours"].append(middle - start)
        times["pycocotools"].append(time.perf_counter() - middle)
    difference = float(np.abs(our_curve - their_curve).max())
    mine, other = statistics.median(times["ours"]), statistics.median(times["pycocotools"])
    print(f"largest difference of the two curves at 101 recall points: {difference:.1e}")
    print(f"gridbox, overall and {len(DEFAULT_BANDS)} height bands: {mine:.3f} s")
    print(f"pycocotools, one range: {other:.3f} s")
    print(f"ratio: {other / mine:.1f} times as fast")


if __name__ == "__main__":
    main()
