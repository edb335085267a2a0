"""COCO's JSON: annotations of a set of images, and the list of results of a detector."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.step import UserError


@dataclass(frozen=True, slots=True)
class CocoAnnotations:
    """The annotations, in the file's order.

    Attributes:
        images: By number, the file name; in the order of the numbers.
        categories: By number, the name; in the order of the numbers.
        image_ids: [T].
        category_ids: [T].
        boxes: [T, 4] x, y, width, height in pixels.
        areas: [T] square pixels: of the outline where the file gives it, otherwise of the box.
        crowds: [T] whether it is a crowd, in which nothing counts.
    """

    images: dict[int, str]
    categories: dict[int, str]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CocoResults:
    """Detections, in the file's order.

    Attributes:
        image_ids: [D].
        category_ids: [D].
        boxes: [D, 4] x, y, width, height in pixels.
        scores: [D].
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]


def read_annotations(file: Path) -> CocoAnnotations:
    """Reads an annotation file.

    Raises:
        UserError: It is not readable, not COCO's, or an annotation is about an unknown image or category.
    """
    document = _json(file)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise UserError(f"{file}: not COCO's annotations (an object with images, categories and annotations)")
    rows = document.get("annotations", [])
    images = {number: str(name) for number, name in _entries(file, document["images"], "images", "id", "file_name")}
    categories = {
        number: str(name) for number, name in _entries(file, document.get("categories", []), "categories", "id", "name")
    }
    image_ids, category_ids = _numbers(file, rows, "annotations", "image_id", "category_id")
    for what, known, ids in (("image", images, image_ids), ("category", categories, category_ids)):
        unknown = sorted(set(ids.tolist()) - known.keys())
        if unknown:
            raise UserError(f"{file}: annotations: {what} {unknown[0]} is not in the file; {len(unknown)} such")
    boxes = _boxes(file, rows, "annotations")
    areas = np.array([float(row.get("area", box[2] * box[3])) for row, box in zip(rows, boxes, strict=True)])
    crowds = np.array([bool(row.get("iscrowd", 0)) for row in rows], bool)
    return CocoAnnotations(images, categories, image_ids, category_ids, boxes, areas.astype(np.float64), crowds)


def read_results(file: Path) -> CocoResults:
    """Reads a file of results: a list of objects with `image_id`, `category_id`, `bbox` and `score`.

    Raises:
        UserError: It is not readable or not such a list.
    """
    rows = _json(file)
    if not isinstance(rows, list):
        raise UserError(f"{file}: not COCO's results (a list of image_id, category_id, bbox, score)")
    image_ids, category_ids = _numbers(file, rows, "results", "image_id", "category_id")
    boxes = _boxes(file, rows, "results")
    try:
        scores = np.array([float(row["score"]) for row in rows], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: results: a score is missing or no number: {error}") from error
    return CocoResults(image_ids, category_ids, boxes, scores)


def _json(file: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable JSON: {error}") from error


def _entries(file: Path, rows: list[dict[str, Any]], where: str, key: str, value: str) -> list[tuple[int, Any]]:
    (numbers,) = _numbers(file, rows, where, key)
    twice = [number for number, count in Counter(numbers.tolist()).items() if count > 1]
    if twice:
        raise UserError(f"{file}: {where}: number {twice[0]} stands twice; give each its own")
    try:
        return sorted(((number, row[value]) for number, row in zip(numbers.tolist(), rows, strict=True)))
    except KeyError as error:
        raise UserError(f"{file}: {where}: an entry has no {error}") from error


def _numbers(file: Path, rows: list[dict[str, Any]], where: str, *keys: str) -> list[NDArray[np.int64]]:
    try:
        return [np.array([int(row[key]) for row in rows], np.int64) for key in keys]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: {where}: {' or '.join(keys)} is missing or no whole number: {error}") from error


def _boxes(file: Path, rows: list[dict[str, Any]], where: str) -> NDArray[np.float64]:
    try:
        return np.array([row["bbox"] for row in rows], np.float64).reshape(len(rows), 4)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: {where}: a bbox is missing or not four numbers: {error}") from error
