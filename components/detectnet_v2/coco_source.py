"""COCO data for `dataset_convert`: annotation files as partitions."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.partition import Partition, Skipped, has_area
from components.detectnet_v2.records import Frame
from components.formats.coco import CocoAnnotations, read_annotations
from components.step import UserError


class CocoSource:
    """Folders of images with an annotation file each; a pair is a fold, and nothing is shuffled, as in TAO.

    Attributes:
        partitions: The folds.
    """

    unlisted = 0
    left_out: Sequence[str] = ()

    def __init__(self, config: spec_pb2.COCOConfig, root: Path) -> None:
        """Reads the annotation files below `root`.

        Raises:
            UserError: One cannot be read, an image is missing, or the categories differ from file to file.
        """
        shards = [*config.num_shards] if len(config.num_shards) > 1 else [*config.num_shards] * config.num_partitions
        files = [
            _CocoFile.read(root / name, root, folder)
            for name, folder in zip(config.annotation_files, config.img_dir_names, strict=True)
        ]
        for file in files:
            if file.content.categories.keys() != files[0].content.categories.keys():
                raise UserError(f"{file.path}: its categories are not those of {files[0].path}; use one list for both")
        self.partitions = [
            Partition([*map(str, file.content.images)], count, file.frame)
            for file, count in zip(files, shards, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _CocoFile:
    """An annotation file.

    Attributes:
        path: The file.
        folder: Image directory, below the root.
        content: What it says.
        corners: [T, 4] boxes as x1, y1, x2, y2.
        rows: By image, its annotations.
    """

    path: Path
    folder: str
    content: CocoAnnotations
    corners: NDArray[np.float64]
    rows: Mapping[int, Sequence[int]]

    @classmethod
    def read(cls, path: Path, root: Path, folder: str) -> "_CocoFile":
        content = read_annotations(path)
        if not (content.images and content.categories and content.ids):
            raise UserError(f"{path}: images, annotations or categories are empty")
        for image in content.images.values():
            if min(image.whole("width"), image.whole("height")) <= 0:
                raise UserError(f"{image.place}: a width or height of 0")
        names = [image.text("file_name") for image in content.images.values()]
        # Unlike Path's, this `isfile` takes names that no file system does.
        missing = [name for name in names if not os.path.isfile(root / folder / name)]  # noqa: PTH113
        if missing:
            count = f"{len(missing)} of {len(names)}"
            raise UserError(f"{root / folder / missing[0]}: no such image, as for {count} images of {path}")
        rows = defaultdict[int, list[int]](list)
        for row, image_id in enumerate(content.image_ids.tolist()):
            rows[image_id].append(row)
        corners = np.column_stack([content.boxes[:, :2], content.boxes[:, :2] + content.boxes[:, 2:]])
        return cls(path, folder, content, corners, rows)

    def frame(self, key: str) -> tuple[Frame, Skipped]:
        content, image, rows = self.content, self.content.images[int(key)], self.rows.get(int(key), [])
        kept = [row for row in rows if has_area(self.corners[row])]
        # TAO removes blanks from a category's name and lower-cases it.
        names = [content.categories[int(content.category_ids[row])].replace(" ", "").lower() for row in kept]
        frame = Frame(
            id=os.path.join(self.folder, image.text("file_name").rsplit(".", 1)[0]),  # noqa: PTH118 - as TAO spells it
            width=image.whole("width"),
            height=image.whole("height"),
            class_names=names,
            boxes=self.corners[kept].astype(np.float32),
        )
        return frame, {content.ids[row]: self.corners[row].astype(int).tolist() for row in rows if row not in kept}
