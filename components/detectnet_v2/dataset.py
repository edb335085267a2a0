"""Labelled images: which labels are trained, and images decoded once, ready to be sampled."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.framing import Framing
from components.detectnet_v2.records import Frame
from components.vision.data.annotations import Annotations
from components.vision.data.cache import Pixels, file_backed, read_rgb
from components.vision.data.warp import warp_image
from components.vision.threads import available_cores


@dataclass(frozen=True, slots=True)
class LabelMapping:
    """Which source classes are trained, as what, and which ones mask the loss.

    Attributes:
        classes: By lower-cased source class, the index of the target class.
        masked: Source classes whose regions are masked (`loss_mask_label_filter`).
        min_width: Narrower boxes are dropped, pixels after resizing.
        min_height: Lower boxes are dropped.
    """

    classes: Mapping[str, int]
    masked: frozenset[str]
    min_width: float = 1.0
    min_height: float = 1.0

    def apply(
        self, names: Sequence[str], boxes: NDArray[np.float32], left_out: Counter[str] | None = None
    ) -> Annotations:
        """Sorts boxes [K, 4] into objects and masked regions, and counts in `left_out` what is neither, by reason."""
        large = (boxes[:, 2] - boxes[:, 0] >= self.min_width) & (boxes[:, 3] - boxes[:, 1] >= self.min_height)
        if left_out is not None:
            unmapped = [name for name in names if name not in self.classes and name not in self.masked]
            left_out.update(f'of class "{name}", which target_class_mapping does not name' for name in unmapped)
            small = sum(name in self.classes and not fits for name, fits in zip(names, large, strict=True))
            if small:
                left_out[f"smaller than {self.min_width:g} x {self.min_height:g} pixels"] += small
        trained = [index for index, name in enumerate(names) if name in self.classes and large[index]]
        masked = [index for index, name in enumerate(names) if name in self.masked and large[index]]
        class_ids = np.array([self.classes[names[index]] for index in trained], np.int64)
        return Annotations(boxes[trained], class_ids, boxes[masked])


class LabelledImages:
    """Images decoded once onto a canvas, in a file-backed array, with their labels.

    The array lives in an unlinked temporary file: resident memory stays flat as the data grow, and nothing is left
    behind, however the process ends.

    Attributes:
        canvas: [N, canvas height, canvas width, 3] RGB.
        labels: [N] objects in pixels of the canvas.
        objects: [N] objects in pixels of the network's input.
        framing: How the network's input is taken from the canvas.
        weights: [N], a factor of each image's loss (`source_weight`).
        source_ids: [N], which data source each image comes from.
        left_out: Labelled objects that are neither trained nor masked, by reason.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        files: Sequence[Path],
        mapping: LabelMapping,
        geometry: GridGeometry,
        framing: Framing | None = None,
        weights: Sequence[float] | None = None,
        source_ids: Sequence[int] | None = None,
    ) -> None:
        """Decodes all images, on all cores.

        Args:
            frames: The records.
            files: The image of each record.
            mapping: Applied to the records' objects.
            geometry: Size of the network's input.
            framing: Left out, images of another size are padded with black or cropped.
            weights: Left out, they are ones.
            source_ids: Left out, they are zeros.

        Raises:
            UserError: An image is missing, broken, or not of the size that its record says.
        """
        self.framing, self._geometry = framing or Framing(), geometry
        self.weights = np.ones(len(frames), np.float32) if weights is None else np.array(weights, np.float32)
        self.source_ids = np.zeros(len(frames), np.int64) if source_ids is None else np.array(source_ids, np.int64)
        width, height = self.framing.canvas(frames, geometry)
        self.canvas = file_backed((len(frames), height, width, 3))
        counts = [Counter[str]() for _ in frames]

        def load(index: int) -> Annotations:
            frame = frames[index]
            image = read_rgb(files[index], frame.width, frame.height)
            (width, height), scale = self.framing.resized(frame.width, frame.height, geometry)
            if (width, height) != (frame.width, frame.height):
                image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
            self.canvas[index, :height, :width] = image
            boxes = frame.boxes * np.array([*scale, *scale], np.float32)
            return mapping.apply(frame.class_names, boxes, counts[index])

        with ThreadPoolExecutor(available_cores()) as pool:
            self.labels = list(pool.map(load, range(len(frames))))
        self.left_out = sum(counts, Counter[str]())
        self.objects = self.labels
        if self.framing.clip or not self.framing.is_plain:
            window = self.framing.window
            self.objects = [self.framing.cut(objects.moved(window), geometry) for objects in self.labels]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def pixels(self) -> Pixels:
        """[N, H, W, 3] RGB, the network's input without augmentation."""
        width, height = self._geometry.width, self._geometry.height
        if self.framing.is_plain:
            return self.canvas[:, :height, :width]
        pixels = file_backed((len(self), height, width, 3))
        for source, target in zip(self.canvas, pixels, strict=True):
            target[:] = warp_image(source, self.framing.window, (width, height), self.framing.border)
        return pixels
