"""Labelled images: which labels are trained, and images decoded once, ready to be sampled."""

import hashlib
import json
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
from components.detectnet_v2.framing import Fitting, Framing
from components.detectnet_v2.records import Frame
from components.vision.data.annotations import Annotations
from components.vision.data.cache import Pixels, PixelStore, read_rgb
from components.vision.data.warp import Image, warp_image
from components.vision.distributed import Group
from components.vision.threads import available_cores


@dataclass(frozen=True, slots=True)
class LabelMapping:
    """Which source classes are trained, as what, and which ones mask the loss.

    Attributes:
        classes: By lower-cased source class, the index of the target class.
        masked: Source classes whose regions are masked (`loss_mask_label_filter`).
        min_width: Narrower boxes are dropped, pixels after TAO's resizing, or of the image under `open_engine`.
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
    """Images decoded once, in a file-backed array, with their labels.

    For TAO's loaders they are kept as the canvas shows them, resized. Under `open_engine` they are kept as they are
    stored, ready for crops, or as the network sees them where nothing will be drawn.

    Attributes:
        labels: [N] objects in pixels of the images as they are kept.
        objects: [N] objects in pixels of the network's input.
        framing: How the network's input is made of the images.
        weights: [N], a factor of each image's loss (`source_weight`).
        source_ids: [N], which data source each image comes from.
        left_out: Labelled objects that are neither trained nor masked, by reason.
        canvas: Width and height that all images share in TAO's loaders.
        digest: Of the images' names, sizes and labels.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        files: Sequence[Path],
        mapping: LabelMapping,
        geometry: GridGeometry,
        framing: Framing | Fitting | None = None,
        weights: Sequence[float] | None = None,
        source_ids: Sequence[int] | None = None,
        *,
        augmented: bool = True,
        group: Group | None = None,
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
            augmented: Whether training batches will be drawn of them.
            group: The processes that train together, all of which load the same images: one on each machine decodes.

        Raises:
            UserError: An image is missing, broken, or not of the size that its record says, or the disk has no room.
        """
        self.framing, self._geometry = framing or Framing(), geometry
        self.weights = np.ones(len(frames), np.float32) if weights is None else np.array(weights, np.float32)
        self.source_ids = np.zeros(len(frames), np.int64) if source_ids is None else np.array(source_ids, np.int64)
        self.digest = _digest(frames)
        self.left_out = Counter[str]()
        self._is_placed = isinstance(self.framing, Fitting) and not augmented
        self.canvas = (geometry.width, geometry.height)
        if isinstance(self.framing, Framing):
            self.canvas = self.framing.canvas(frames, geometry)
        sizes, self.labels, self.objects = [], [], []
        for frame in frames:
            size, scale = self._kept(frame)
            mapped = mapping.apply(
                frame.class_names, frame.boxes * np.array([*scale, *scale], np.float32), self.left_out
            )
            objects = self._in_input(mapped, *size)
            sizes.append((geometry.width, geometry.height) if self._is_placed else size)
            self.labels.append(objects if self._is_placed else mapped)
            self.objects.append(objects)

        def decode(store: PixelStore) -> None:
            with ThreadPoolExecutor(available_cores()) as pool:
                for _ in pool.map(self._decode, store, frames, files):
                    pass

        self._store = PixelStore.filled(sizes, decode, group or Group())

    def _kept(self, frame: Frame) -> tuple[tuple[int, int], tuple[float, float]]:
        """Returns the size that an image is given before it is kept or placed, and its labels' scale."""
        if isinstance(self.framing, Framing):
            return self.framing.resized(frame.width, frame.height, self._geometry)
        size = frame.width, frame.height
        if not self._is_placed:
            size = self.framing.kept_size(*size)
        return size, (size[0] / frame.width, size[1] / frame.height)

    def _in_input(self, labels: Annotations, width: int, height: int) -> Annotations:
        """Returns the objects of an image of this size in pixels of the network's input."""
        if isinstance(self.framing, Fitting):
            return self.framing.fitted(labels, width, height)
        if not self.framing.is_plain:
            labels = labels.moved(self.framing.window)
        return self.framing.cut(labels, self._geometry)

    def _decode(self, target: Image, frame: Frame, file: Path) -> None:
        image = read_rgb(file, frame.width, frame.height)
        if isinstance(self.framing, Fitting) and self._is_placed:
            target[:] = self.framing.input.place(image[..., ::-1])[0]
        elif target.shape == image.shape:
            target[:] = image
        else:
            # TAO resizes bilinearly, which lets fine patterns fold back.
            interpolation = cv2.INTER_LINEAR if isinstance(self.framing, Framing) else cv2.INTER_AREA
            target[:] = cv2.resize(image, target.shape[1::-1], interpolation=interpolation)

    def __len__(self) -> int:
        return len(self.labels)

    def stored(self, index: int) -> tuple[Image, Annotations]:
        """Returns an image [H, W, 3] RGB as it is kept, on TAO's canvas if there is one, and its objects in pixels."""
        image = self._store[index]
        if isinstance(self.framing, Fitting) or image.shape[1::-1] == self.canvas:
            return image, self.labels[index]
        width, height = self.canvas
        padded = np.zeros((height, width, 3), np.uint8)
        padded[: image.shape[0], : image.shape[1]] = image
        return padded, self.labels[index]

    @cached_property
    def pixels(self) -> Pixels:
        """[N, H, W, 3] RGB, the network's input without augmentation."""
        width, height = self._geometry.width, self._geometry.height
        is_as_seen = self._is_placed or (isinstance(self.framing, Framing) and self.framing.is_plain)
        if is_as_seen and set(self._store.sizes) <= {(width, height)}:
            return self._store.stacked()
        pixels = PixelStore([(width, height)] * len(self)).stacked()
        for index, target in enumerate(pixels):
            image = self.stored(index)[0]
            if isinstance(self.framing, Fitting):
                target[:] = self.framing.input.place(image[..., ::-1])[0]
            elif self.framing.is_plain:
                target[:] = image[:height, :width]
            else:
                target[:] = warp_image(image, self.framing.window, (width, height), self.framing.border)
        return pixels


def _digest(frames: Sequence[Frame]) -> str:
    """Returns a digest of what is labelled in which images, of what sizes."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(json.dumps([frame.id, frame.width, frame.height, frame.class_names]).encode())
        digest.update(np.ascontiguousarray(frame.boxes, np.float32).tobytes())
    return digest.hexdigest()
