"""A WIDER FACE folder as labelled images, letterboxed into the network's input."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from components.formats.images import ImageError
from components.formats.wider import Face, WiderSource
from components.step import UserError
from components.vision.inputs import InputSpec
from components.vision.scoring import LabelledImage, network_input


class WiderImages:
    """One split of a WIDER FACE folder in its official layout, for a network of one class."""

    def __init__(
        self, root: Path, split: str, spec: InputSpec, class_names: Sequence[str], ignore_regions: bool = True
    ) -> None:
        """Reads the annotations; images are read while walking through the set.

        Args:
            root: The folder (or folder of archives).
            split: `training` or `validation`.
            spec: What the network takes.
            class_names: The network's classes; exactly one.
            ignore_regions: Whether nothing counts inside faces that the annotators flagged invalid. Otherwise they
                are faces to be found.

        Raises:
            UserError: The network has several classes, or the annotations are missing or malformed.
        """
        if len(class_names) != 1:
            raise UserError(f"--wider: this model has {len(class_names)} classes, WIDER FACE labels only faces")
        self.skipped: Counter[str] = Counter()
        self._source, self._split = WiderSource(root), split
        self._images = self._source.images(split)
        self._spec, self._class_name, self._ignore_regions = spec, class_names[0], ignore_regions

    def __iter__(self) -> Iterator[LabelledImage]:
        self.skipped.clear()
        for image in self._images:
            path = f"{self._source.root}: {image.name}"
            try:
                content = self._source.read(self._split, image.name)
            except ImageError as error:
                raise UserError(f"{path}: {error}; add it, or remove its block from the annotations") from error
            pixels, placement = network_input(content, path, self._spec)
            faces = [face for face in image.faces if face.box[2] > 0 and face.box[3] > 0]
            self.skipped["faces without area"] += len(image.faces) - len(faces)
            invalid = np.array([self._ignore_regions and face.invalid == 1 for face in faces], bool)
            boxes = placement.to_input(_corners(faces))
            objects = {self._class_name: boxes[~invalid]}
            yield LabelledImage(image.name, pixels, objects, boxes[invalid], content, placement)

    def __len__(self) -> int:
        return len(self._images)


def _corners(faces: Sequence[Face]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Returns [N, 4] x1, y1, x2, y2 in source pixels."""
    boxes = np.array([face.box for face in faces], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
