"""Measuring detectors: against the official figures of WIDER FACE, and against pycocotools in one interleaved run.

Bounds: the official protocol on WIDER val (3,226 images, 297,333 detections of a public model) in 3 s from arrays, in
10 s from the files and in 1 GiB; average precision at IoU 0.5 (ignore regions included) the same as pycocotools'
within 1e-9 and at least 10 times as fast, on a random set of that size and on the real one. Both sides start from
what they have loaded, and alternate; the median of each counts. Without the real data (`GRIDBOX_DATA`, or
../shared/data) that part is left out. Run: python benchmarks/evaluation.py
"""

import contextlib
import io
import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from components.evaluate.inputs import Findings, read_predictions, read_truth
from components.measure import wider
from components.measure.dataset import Predictions, Truth, offsets_of
from components.measure.matching import ClassBoxes, Matcher
from components.measure.uncertainty import CurveOutcomes, Outcomes, confidence_interval

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GRIDBOX_DATA", ROOT.parent / "shared" / "data")) / "wider_face_eval"
OFFICIAL = {"easy": 90.70, "medium": 88.16, "hard": 73.83}
IMAGES, ROUNDS, SEED = 3226, 5, 0
RATIO, SECONDS, SECONDS_FROM_FILES, MEBIBYTES = 10.0, 3.0, 10.0, 1024.0


def random_set() -> tuple[Truth, Predictions]:
    """Draws some 50,000 faces, most images holding few and some holding hundreds, and 110,000 detections."""
    random = np.random.default_rng(SEED)
    images = [_random_image(random, int(count)) for count in random.pareto(1.1, IMAGES).clip(0, 60) * 4.4]
    truths, found = ([image[side] for image in images] for side in (0, 1))
    boxes, rows = np.concatenate(truths), np.concatenate(found)
    counts = [offsets_of(np.array([len(part) for part in parts])) for parts in (truths, found)]
    names = tuple(f"{number:04d}" for number in range(IMAGES))
    regions = random.random(len(boxes)) < 0.03
    truth = Truth(names, counts[0], boxes, ("face",), np.zeros(len(boxes), np.int64), regions)
    return truth, Predictions(counts[1], rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int64))


def _random_image(random: np.random.Generator, faces: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    corner = random.uniform((0, 0), (704, 384), (faces, 2))
    size = np.exp(random.uniform(np.log(6), np.log(120), (faces, 1))) * (0.8, 1.0)
    truths = np.column_stack([corner, corner + size])
    found = truths[random.random(faces) < 0.9]
    found = np.concatenate([found, found[random.random(len(found)) < 0.3]])
    found = found + random.normal(0, 0.06, found.shape) * (found[:, 2:3] - found[:, :1])
    stray = random.uniform((0, 0), (704, 384), (14 + faces // 4, 2))
    strays = np.column_stack([stray, stray + np.exp(random.uniform(np.log(6), np.log(120), (len(stray), 1)))])
    boxes = np.concatenate([found, strays])
    return truths, np.column_stack([boxes, random.random(len(boxes))])


def coco_set(images: int, boxes: NDArray[Any], of: NDArray[Any], **columns: NDArray[Any]) -> COCO:
    """Returns an indexed COCO object of boxes [N, 4] in images [N]; building it is not timed."""
    sizes = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    extra = {"iscrowd": np.zeros(len(boxes), np.int64), "area": sizes[:, 2] * sizes[:, 3], **columns}
    rows = zip(sizes.tolist(), of.tolist(), *(values.tolist() for values in extra.values()), strict=True)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(images)],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": 1, "bbox": box, **dict(zip(extra, values, strict=True))}
            for n, (box, image, *values) in enumerate(rows, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def ours(truth: Truth, predictions: Predictions) -> float:
    return Matcher(ClassBoxes.of(truth, predictions, "face")).match().curve().coco_average_precision()


def theirs(truths: COCO, found: COCO) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truths, found, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [1_000_000]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval["precision"].mean())


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def against_pycocotools(name: str, truth: Truth, predictions: Predictions) -> None:
    truths = coco_set(len(truth.images), truth.boxes, truth.image_of_box, iscrowd=truth.regions.astype(int))
    found = coco_set(len(truth.images), predictions.boxes, predictions.images, score=predictions.scores)
    times: tuple[list[float], list[float]] = ([], [])
    difference = 0.0
    for _ in range(ROUNDS):
        mine, seconds = timed(lambda: ours(truth, predictions))
        times[0].append(seconds)
        other, seconds = timed(lambda: theirs(truths, found))
        times[1].append(seconds)
        difference = max(difference, abs(mine - other))
    medians = [statistics.median(values) for values in times]
    ratio = medians[1] / medians[0]
    print(
        f"{name}: {len(truth.images)} images, {(~truth.regions).sum()} faces, {truth.regions.sum()} regions, ", end=""
    )
    print(f"{len(predictions.scores)} detections, {ROUNDS} rounds")
    print(f"  AP at IoU 0.5: {mine:.6f}, from pycocotools' by {difference:.1e} (bound 1e-9)")
    print(f"  gridbox {medians[0]:.3f} s, pycocotools {medians[1]:.3f} s: {ratio:.1f} times as fast (bound {RATIO:g})")


def official() -> tuple[Truth, Predictions]:
    (truth, predictions), reading = timed(_read)
    figures, seconds = timed(
        lambda: {name: 100 * score.value() for name, score in wider.score(truth, predictions).items()}
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shown = ", ".join(f"{name} {figures[name]:.2f} (official {value:.2f})" for name, value in OFFICIAL.items())
    print(f"WIDER FACE: {shown}")
    print(f"  {seconds:.2f} s from arrays (bound {SECONDS:g}), ", end="")
    print(f"{reading + seconds:.2f} s from files (bound {SECONDS_FROM_FILES:g}), ", end="")
    print(f"{peak:.0f} MiB at most (bound {MEBIBYTES:g})")
    return truth, predictions


def _read() -> tuple[Truth, Predictions]:
    findings = Findings(strict=True)
    truth = read_truth(DATA / "ground_truth", findings)
    return truth, read_predictions(DATA / "retinaface_mnet025_predictions.zip", truth, findings)


def intervals(truth: Truth, predictions: Predictions) -> None:
    matcher = Matcher(ClassBoxes.of(truth, predictions, "face"))
    scores: dict[str, Outcomes] = {
        "AP at IoU 0.5": CurveOutcomes.of(matcher, matcher.match()),
        **wider.score(truth, predictions),
    }
    for name, score in scores.items():
        interval, seconds = timed(partial(confidence_interval, score))
        print(f"  {name}: {interval.value:.4f}, 95 % of {interval.replicates} replicates in ", end="")
        print(f"{interval.low:.4f} to {interval.high:.4f}, {seconds:.2f} s")


def main() -> None:
    real = official() if DATA.is_dir() else None
    if real:
        intervals(*real)
    else:
        print(f"no real data at {DATA}: only the random set")
    against_pycocotools("random set", *random_set())
    if real:
        against_pycocotools("WIDER val", *real)


if __name__ == "__main__":
    main()
