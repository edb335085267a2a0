"""Training batches: decoded images, augmentation and grid targets.

Every random draw depends on (seed, epoch, position) alone, so that a resumed training sees the very same batches.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.detectnet_v2.augment import AugmentSettings, draw_colour, draw_spatial, recolour, warp_boxes, warp_image
from components.detectnet_v2.records import Frame
from components.formats.images import ImageError, decode
from components.grid.encode import CoverageShape, encode
from components.grid.geometry import GridGeometry
from components.step import UserError
from components.vision.threads import available_cores

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Objects:
    """What is labelled in one image.

    Attributes:
        boxes: [K, 4] objects of the trained classes, pixels of the network's input.
        class_ids: [K].
        masked: [M, 4] regions in which the loss is multiplied by the mask multiplier.
    """

    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    masked: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LabelMapping:
    """Which source classes are trained, as what, and which ones mask the loss.

    Attributes:
        classes: By lower-cased source class, the index of the target class.
        masked: Source classes whose regions are masked (`loss_mask_label_filter`).
    """

    classes: Mapping[str, int]
    masked: frozenset[str]

    def apply(self, names: Sequence[str], boxes: NDArray[np.float32]) -> Objects:
        """Sorts boxes [K, 4] into objects and masked regions; boxes thinner than a pixel are dropped, as in TAO."""
        large = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
        trained = [index for index, name in enumerate(names) if name in self.classes and large[index]]
        masked = [index for index, name in enumerate(names) if name in self.masked and large[index]]
        class_ids = np.array([self.classes[names[index]] for index in trained], np.int64)
        return Objects(boxes[trained], class_ids, boxes[masked])


class LabelledImages:
    """Images decoded once into network-input size, in a file-backed array, with their labels.

    The array lives in an unlinked temporary file: resident memory stays flat as the data grow, and nothing is left
    behind, however the process ends.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        files: Sequence[Path],
        mapping: LabelMapping,
        geometry: GridGeometry,
        stretch: bool,
    ) -> None:
        """Decodes all images, on all cores.

        Args:
            frames: The records.
            files: The image of each record.
            mapping: Applied to the records' objects.
            geometry: Size of the network's input.
            stretch: Resize images of another size (`enable_auto_resize`); otherwise pad with black or crop.

        Raises:
            UserError: An image is missing or broken.
        """
        self._store = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the array
        shape = (len(frames), geometry.height, geometry.width, 3)
        self.pixels: Pixels = np.memmap(self._store, np.uint8, "w+", shape=shape)

        def load(index: int) -> Objects:
            scale = _decode_into(self.pixels[index], files[index], stretch)
            boxes = frames[index].boxes * np.array([*scale, *scale], np.float32)
            return mapping.apply(frames[index].class_names, boxes)

        with ThreadPoolExecutor(available_cores()) as pool:
            self.objects = list(pool.map(load, range(len(frames))))

    def __len__(self) -> int:
        return len(self.objects)


def _decode_into(target: Pixels, file: Path, stretch: bool) -> tuple[float, float]:
    """Decodes `file` as RGB into `target` [H, W, 3]; returns the horizontal and vertical scale of its labels."""
    try:
        image = decode(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; the records name this image, was the folder moved?") from error
    except ImageError as error:
        raise UserError(f"{file}: {error}") from error
    height, width = target.shape[:2]
    scale = 1.0, 1.0
    if stretch and image.shape[:2] != (height, width):
        scale = width / image.shape[1], height / image.shape[0]
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    visible = image[:height, :width]
    target[: visible.shape[0], : visible.shape[1]] = visible[..., ::-1]
    return scale


class BatchTensors(NamedTuple):
    """A batch on the device that trains; see `Batch`."""

    images: Tensor
    coverage: Tensor
    coverage_norm: Tensor
    bbox: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch.

    Attributes:
        images: [N, H, W, 3] RGB.
        coverage: [N, C, h, w].
        coverage_norm: [N, C, h, w].
        bbox: [N, C, 4, h, w].
        mask: [N, C, h, w], a factor for each cell's cost.
    """

    images: Pixels
    coverage: NDArray[np.float32]
    coverage_norm: NDArray[np.float32]
    bbox: NDArray[np.float32]
    mask: NDArray[np.float32]

    def to_tensors(self, device: torch.device) -> BatchTensors:
        """Moves the batch to a device: images as [N, 3, H, W] float in 0..1 (channels last), then the targets."""
        arrays = (self.images, self.coverage, self.coverage_norm, self.bbox, self.mask)
        images, *targets = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
        coverage, coverage_norm, bbox, mask = targets
        return BatchTensors(images.permute(0, 3, 1, 2).float().div_(255), coverage, coverage_norm, bbox, mask)


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batches of an epoch from labelled images.

    Attributes:
        data: The images and labels.
        geometry: The grid.
        shapes: Coverage shape of each class.
        deadzone_radius: See `encode`.
        augmentation: What is drawn per image; None for none.
        mask_multiplier: Factor of the cost in masked regions.
        mask_spares_objects: Whether cells covered by an object keep their full cost there (`preserve_ground_truth`).
        batch_size: Images of a batch.
        seed: Of all draws.
    """

    data: LabelledImages
    geometry: GridGeometry
    shapes: tuple[CoverageShape, ...]
    deadzone_radius: float
    augmentation: AugmentSettings | None
    mask_multiplier: float
    mask_spares_objects: bool
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Batches in an epoch; the last one is filled up from the epoch's beginning."""
        return -(-len(self.data) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields the batches of an epoch (0-based); the next one is prepared while the current one is used."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.data))
        padded = np.resize(order, self.steps * self.batch_size).reshape(self.steps, self.batch_size)
        with ThreadPoolExecutor(1) as worker:
            upcoming = worker.submit(self._batch, epoch, 0, padded[0])
            for step in range(self.steps):
                batch = upcoming.result()
                if step + 1 < self.steps:
                    upcoming = worker.submit(self._batch, epoch, step + 1, padded[step + 1])
                yield batch

    def _batch(self, epoch: int, step: int, indices: NDArray[np.int64]) -> Batch:
        count, classes = len(indices), len(self.shapes)
        grid = (self.geometry.rows, self.geometry.columns)
        batch = Batch(
            np.empty((count, self.geometry.height, self.geometry.width, 3), np.uint8),
            np.empty((count, classes, *grid), np.float32),
            np.empty((count, classes, *grid), np.float32),
            np.empty((count, classes, 4, *grid), np.float32),
            np.ones((count, classes, *grid), np.float32),
        )
        for position, index in enumerate(indices):
            random = np.random.default_rng((self.seed, epoch, step, position))
            self._fill(batch, position, self.data.pixels[index], self.data.objects[index], random)
        return batch

    def _fill(self, batch: Batch, position: int, image: Pixels, objects: Objects, random: np.random.Generator) -> None:
        boxes, masked = objects.boxes, objects.masked
        if self.augmentation is None:
            batch.images[position] = image
        else:
            matrix = draw_spatial(self.augmentation, self.geometry.width, self.geometry.height, random)
            colour = draw_colour(self.augmentation, random)
            batch.images[position] = recolour(warp_image(image, matrix), colour)
            boxes, masked = warp_boxes(boxes, matrix), warp_boxes(masked, matrix)
        targets = encode(boxes, objects.class_ids, self.shapes, self.geometry, self.deadzone_radius)
        batch.coverage[position] = targets.coverage
        batch.coverage_norm[position] = targets.coverage_norm
        batch.bbox[position] = targets.bbox
        for class_id, shape in enumerate(self.shapes):
            if len(masked):
                zeros = np.zeros(len(masked), np.int64)
                region = encode(masked, zeros, (shape,), self.geometry).coverage[0] > 0
                if self.mask_spares_objects:
                    region &= targets.coverage[class_id] == 0
                batch.mask[position, class_id][region] = self.mask_multiplier
