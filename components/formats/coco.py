"""COCO's JSON: annotations of a set of images, and the list of results of a detector."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.formats.reading import Entry, entries, entry, read_json
from components.step import UserError


@dataclass(frozen=True, slots=True)
class CocoAnnotations:
    """The annotations, all in the file's order.

    Attributes:
        images: By number, the entry; its `file_name` is a text.
        categories: By number, the name.
        ids: [T] the annotation's number as text, or its place in the list where it has none.
        image_ids: [T].
        category_ids: [T].
        boxes: [T, 4] x, y, width, height in pixels.
        areas: [T] square pixels: of the outline where the file gives it, otherwise of the box.
        crowds: [T] whether it is a crowd, in which nothing counts.
    """

    images: dict[int, Entry]
    categories: dict[int, str]
    ids: list[str]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CocoResults:
    """Detections, in the file's order; `nan` and `inf` are kept.

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
        UserError: It is not readable, not COCO's, gives a number twice, or an annotation is about an unknown image or
            category.
    """
    document = entry(read_json(file), str(file))
    images = {row.whole("id"): row for row in _numbered(document, "images")}
    for row in images.values():
        row.text("file_name")
    categories = {row.whole("id"): row.text("name") for row in _numbered(document, "categories")}
    rows = _numbered(document, "annotations")
    image_ids, category_ids = _whole(rows, "image_id"), _whole(rows, "category_id")
    for field, known, ids in (("image_id", images.keys(), image_ids), ("category_id", categories.keys(), category_ids)):
        if unknown := set(ids.tolist()) - known:
            place = rows[ids.tolist().index(min(unknown))].place
            raise UserError(f"{place}: {field} {min(unknown)} is not in the file; {len(unknown)} such")
    boxes = np.array([row.box("bbox") for row in rows], np.float64).reshape(-1, 4)
    return CocoAnnotations(
        images,
        categories,
        [str(row.whole("id")) if _has_id(row) else f"annotations[{index}]" for index, row in enumerate(rows)],
        image_ids,
        category_ids,
        boxes,
        np.array([row.number("area", w * h) for row, (_, _, w, h) in zip(rows, boxes, strict=True)], np.float64),
        np.array([row.flag("iscrowd") for row in rows], bool),
    )


def read_results(file: Path) -> CocoResults:
    """Reads a file of results: a list of objects with `image_id`, `category_id`, `bbox` and `score`.

    Raises:
        UserError: It is not readable or not such a list.
    """
    rows = entries(read_json(file), f"{file}: results")
    return CocoResults(
        _whole(rows, "image_id"),
        _whole(rows, "category_id"),
        np.array([row.box("bbox", finite=False) for row in rows], np.float64).reshape(-1, 4),
        np.array([row.number("score", finite=False) for row in rows], np.float64),
    )


def _numbered(document: Entry, name: str) -> list[Entry]:
    """Returns the entries of a list; annotations need no `id`."""
    rows = document.entries(name)
    counts = Counter(row.whole("id") for row in rows if name != "annotations" or _has_id(row))
    for twice in (number for number, count in counts.items() if count > 1):
        raise UserError(f"{document.place}: {name}: id {twice} stands twice; give each its own")
    return rows


def _has_id(row: Entry) -> bool:
    return row.fields.get("id") is not None


def _whole(rows: Sequence[Entry], field: str) -> NDArray[np.int64]:
    return np.array([row.whole(field) for row in rows], np.int64)
