"""COCO data for `dataset_convert`: annotation files as partitions."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.partition import Partition, Skipped, has_area, read_json
from components.detectnet_v2.records import Frame
from components.step import UserError


class CocoSource:
    """Folders of images with an annotation file each; a pair is a fold, and nothing is shuffled, as in TAO.

    Attributes:
        partitions: The folds.
    """

    unlisted = 0

    def __init__(self, config: spec_pb2.COCOConfig, root: Path) -> None:
        """Reads the annotation files below `root`.

        Raises:
            UserError: One cannot be read, an image is missing, or the categories differ from file to file.
        """
        shards = [*config.num_shards] if len(config.num_shards) > 1 else [*config.num_shards] * config.num_partitions
        files = [
            _CocoFile.read(root / name, folder)
            for name, folder in zip(config.annotation_files, config.img_dir_names, strict=True)
        ]
        for file in files:
            if file.classes.keys() != files[0].classes.keys():
                raise UserError(f"{file.path}: its categories are not those of {files[0].path}; use one list for both")
            file.require_images(root / file.folder)
        self.partitions = [
            Partition([*file.images], count, file.frame) for file, count in zip(files, shards, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _CocoFile:
    """An annotation file.

    Attributes:
        path: The file.
        folder: Image directory, below the root.
        classes: Class by category id (ids as text throughout).
        images: Image entry by image id.
        annotations: Annotations by image id.
    """

    path: Path
    folder: str
    classes: Mapping[str, str]
    images: Mapping[str, Mapping[str, Any]]
    annotations: Mapping[str, list[Mapping[str, Any]]]

    @classmethod
    def read(cls, path: Path, folder: str) -> "_CocoFile":
        document = read_json(path)
        try:
            # TAO removes the blanks of a category's name and lower-cases it.
            classes = {
                str(entry["id"]): str(entry["name"]).replace(" ", "").lower() for entry in document["categories"]
            }
            images = {str(entry["id"]): entry for entry in document["images"]}
            measured = all(
                entry["file_name"] and entry["width"] > 0 and entry["height"] > 0 for entry in images.values()
            )
            annotations: dict[str, list[Mapping[str, Any]]] = {}
            for entry in document["annotations"]:
                annotations.setdefault(str(entry["image_id"]), []).append(entry)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: no COCO annotation file: {error} is missing or of a wrong kind") from error
        if not (classes and images and annotations):
            raise UserError(f"{path}: images, annotations or categories are empty")
        if not measured:
            raise UserError(f"{path}: an image has no file_name, or a width or height of 0")
        orphans = annotations.keys() - images.keys()
        if orphans:
            raise UserError(f"{path}: annotations name the image id {min(orphans)}, which images does not list")
        return cls(path, folder, classes, images, annotations)

    def require_images(self, directory: Path) -> None:
        missing = [
            name for name in (entry["file_name"] for entry in self.images.values()) if not (directory / name).is_file()
        ]
        if missing:
            count = f"{len(missing)} of {len(self.images)}"
            raise UserError(f"{directory / missing[0]}: no such image, as for {count} images of {self.path}")

    def frame(self, image_id: str) -> tuple[Frame, Skipped]:
        image = self.images[image_id]
        skipped: Skipped = {}
        names, boxes = [], []
        for annotation in self.annotations.get(image_id, []):
            name, box = self._object(annotation)
            if has_area(box):
                names.append(name)
                boxes.append(box)
            else:
                skipped[str(annotation.get("id"))] = [int(value) for value in box]
        stem = image["file_name"].rsplit(".", 1)[0]
        frame = Frame(
            id=os.path.join(self.folder, stem),  # noqa: PTH118 - TAO's own spelling of the id
            width=int(image["width"]),
            height=int(image["height"]),
            class_names=names,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
        )
        return frame, skipped

    def _object(self, annotation: Mapping[str, Any]) -> tuple[str, list[float]]:
        """Returns an annotation's class and box x1, y1, x2, y2."""
        try:
            x, y, width, height = (float(value) for value in annotation["bbox"])
            if not all(math.isfinite(value) for value in (x, y, width, height)):
                raise ValueError("a number of bbox that is not finite")
            return self.classes[str(annotation["category_id"])], [x, y, x + width, y + height]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: annotation {annotation.get('id')} is wrong: {error}") from error
