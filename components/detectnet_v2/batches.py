"""Training batches of DetectNet_v2: augmented images and grid targets."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.decode.grid.encode import CoverageShape, encode
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.augment import AugmentSettings, draw_colour, draw_spatial
from components.detectnet_v2.dataset import LabelledImages
from components.detectnet_v2.framing import Fitting, Framing
from components.vision.data.annotations import Annotations
from components.vision.data.cache import Pixels
from components.vision.data.crops import Composer
from components.vision.data.order import EpochOrder, made_ahead
from components.vision.data.warp import Resampling, recolour, warp_image
from components.vision.inputs import InputSpec
from components.vision.threads import available_cores

_LARGEST_CANVAS = 4  # times the network's input: what a batch on a GPU may cost beside it


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
        input: What the network takes.
        images: [N, H, W, 3]: the network's input, or TAO's canvas where there is a resampling.
        coverage: [N, C, h, w].
        coverage_norm: [N, C, h, w].
        bbox: [N, C, 4, h, w].
        mask: [N, C, h, w], a factor for each cell's cost.
        resampling: What `to_tensors` does with the images on the device; None where it has been done.
    """

    input: InputSpec
    images: Pixels
    coverage: NDArray[np.float32]
    coverage_norm: NDArray[np.float32]
    bbox: NDArray[np.float32]
    mask: NDArray[np.float32]
    resampling: Resampling | None = None

    def to_tensors(self, device: torch.device) -> BatchTensors:
        """Moves the batch to a device: images as [N, 3, H, W] float in 0..1 (channels last), then the targets."""
        arrays = (self.images, self.coverage, self.coverage_norm, self.bbox, self.mask)
        images, *targets = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
        coverage, coverage_norm, bbox, mask = targets
        images = self.input.prepare_tensor(images)
        if self.resampling is not None:
            images = self.resampling.apply(images)
        return BatchTensors(images, coverage, coverage_norm, bbox, mask)


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
        rank: Of this process.
        world_size: Number of processes that train together.
        uniform_sources: Draw each image's data source with equal probability (`sampling_mode: UNIFORM`); otherwise
            every image is taken once an epoch.
        on_device: Train on a GPU. Batches then lie in pinned memory, where CUDA is available, and several threads make
            them. The sampling of pixels is left to `Batch.to_tensors`, but for crops (`open_engine`) and for canvases
            of more than four times the network's input, which the threads sample.
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
    rank: int = 0
    world_size: int = 1
    uniform_sources: bool = False
    on_device: bool = False
    workers: int = field(init=False)

    def __post_init__(self) -> None:
        # Without a device, the network's own threads need the cores.
        workers = max(available_cores() // self.world_size - 1, 1) if self.on_device else 1
        object.__setattr__(self, "workers", workers)

    @property
    def order(self) -> EpochOrder:
        """Which images each step shows."""
        return EpochOrder(
            self.data.source_ids, self.batch_size, self.seed, self.rank, self.world_size, self.uniform_sources
        )

    @property
    def steps(self) -> int:
        """Batches in an epoch; the last one is filled up from the epoch's beginning."""
        return self.order.steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields this process's batches of an epoch (0-based), made ahead of their use.

        Args:
            epoch: Number of the epoch.
            first_step: The batches before it are left out.
        """
        plan = self.order.own(epoch)
        return made_ahead(lambda step: self.batch(epoch, step, plan[step]), range(first_step, self.steps), self.workers)

    def batch(self, epoch: int, step: int, indices: NDArray[np.int64]) -> Batch:
        """Makes a batch of the images with these indices, with the draws that belong to this epoch and step."""
        count, classes = len(indices), len(self.shapes)
        framing, resampling = self._framing(epoch), self._resampling(count)
        geometry = self._views(framing)
        grid, size = (geometry.rows, geometry.columns), (geometry.width, geometry.height)
        width, height = self.data.canvas if resampling else size
        batch = Batch(
            framing.input if isinstance(framing, Fitting) else InputSpec(*size),
            self._empty((count, height, width, 3), torch.uint8).numpy(),
            self._empty((count, classes, *grid)).numpy(),
            self._empty((count, classes, *grid)).numpy(),
            self._empty((count, classes, 4, *grid)).numpy(),
            self._empty((count, classes, *grid)).numpy(),
            resampling,
        )
        for position, index in enumerate(indices):
            objects = self._fill(batch, position, int(index), framing, self.order.random(epoch, step, position))
            self._encode(batch, position, objects, float(self.data.weights[index]), geometry)
        return batch

    def _framing(self, epoch: int) -> Framing | Fitting:
        framing = self.data.framing
        if isinstance(framing, Fitting) and framing.crop:
            return replace(framing, crop=framing.crop.at(epoch))
        return framing

    def _views(self, framing: Framing | Fitting) -> GridGeometry:
        """Returns the grid of the network's input, or of the smaller views that the crops are."""
        if self.augmentation is None or not (isinstance(framing, Fitting) and framing.crop and framing.crop.size):
            return self.geometry
        width, height = framing.crop.size
        return replace(self.geometry, width=width, height=height)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        # Only from pinned memory does a copy to the device run beside the training.
        return torch.empty(shape, dtype=dtype, pin_memory=self.on_device and torch.cuda.is_available())

    def _resampling(self, count: int) -> Resampling | None:
        """Returns room for what the device is to do."""
        framing, size = self.data.framing, (self.geometry.width, self.geometry.height)
        if not self.on_device or self.augmentation is None or isinstance(framing, Fitting):
            return None
        if math.prod(self.data.canvas) > _LARGEST_CANVAS * math.prod(size):
            return None
        return Resampling(self._empty((count, 3, 3)).numpy(), self._empty((count, 4, 3)).numpy(), size, framing.border)

    def _fill(
        self, batch: Batch, position: int, index: int, framing: Framing | Fitting, random: np.random.Generator
    ) -> Annotations:
        """Puts an image in its place, and returns its objects there."""
        settings = self.augmentation
        if settings is None:
            batch.images[position] = self.data.pixels[index]
            objects = self.data.objects[index]
            if isinstance(framing, Fitting):
                objects = objects.shown((self.geometry.width, self.geometry.height), framing.smallest, 0.0)
        elif isinstance(framing, Fitting):
            batch.images[position], objects = self._composer(framing, settings).compose(index, random)
        else:
            objects = self._augmented(batch, position, index, framing, settings, random)
        return objects

    def _composer(self, framing: Fitting, settings: AugmentSettings) -> Composer:
        return Composer(
            self.data,
            framing.input,
            framing.crop,
            lambda size, random: draw_spatial(settings, *size, random),
            lambda random: draw_colour(settings, random),
            framing.smallest,
        )

    def _augmented(
        self,
        batch: Batch,
        position: int,
        index: int,
        framing: Framing,
        settings: AugmentSettings,
        random: np.random.Generator,
    ) -> Annotations:
        """Augments an image as TAO does, here or on the device, and returns its objects."""
        size = (self.geometry.width, self.geometry.height)
        image, objects = self.data.stored(index)
        matrix = draw_spatial(settings, *size, random) @ framing.window
        colour = draw_colour(settings, random)
        if batch.resampling:
            batch.images[position] = image
            batch.resampling.matrices[position] = matrix
            batch.resampling.colours[position] = colour
        else:
            batch.images[position] = recolour(warp_image(image, matrix, size, framing.border), colour)
        return framing.cut(objects.moved(matrix), self.geometry)

    def _encode(self, batch: Batch, position: int, objects: Annotations, weight: float, geometry: GridGeometry) -> None:
        targets = encode(objects.boxes, objects.class_ids, self.shapes, geometry, self.deadzone_radius)
        batch.coverage[position] = targets.coverage
        batch.coverage_norm[position] = targets.coverage_norm
        batch.bbox[position] = targets.bbox
        cells = touched_cells if isinstance(self.data.framing, Fitting) else covered_cells
        region = np.broadcast_to(cells(objects.masked, geometry), targets.coverage.shape)
        if self.mask_spares_objects:
            region = region & (targets.coverage == 0)
        batch.mask[position] = np.where(region, self.mask_multiplier * weight, weight)


def covered_cells(boxes: NDArray[np.float32], geometry: GridGeometry) -> NDArray[np.bool_]:
    """Returns [rows, columns]: the cells of which one of 5 x 5 sample points lies inside a box [M, 4] (pixels).

    At a stride of 16, some six boxes of 2 x 2 pixels in ten hold no sample point, and mask nothing.

    Source: TAO 5.0, `rasterizers/loss_mask_rasterizer.py` and `core/processors/polygon_rasterizer.py`.
    """
    covered = np.zeros((geometry.rows, geometry.columns), bool)
    x, y = ((np.arange(5 * cells) + 0.5) * geometry.stride / 5 for cells in (geometry.columns, geometry.rows))
    for x1, y1, x2, y2 in boxes:
        columns = ((x > x1) & (x < x2)).reshape(-1, 5).any(1)
        rows = ((y > y1) & (y < y2)).reshape(-1, 5).any(1)
        covered |= rows[:, None] & columns
    return covered


def touched_cells(boxes: NDArray[np.float32], geometry: GridGeometry) -> NDArray[np.bool_]:
    """Returns [rows, columns]: the cells that a box [M, 4] (pixels) has any part of, however small."""
    touched = np.zeros((geometry.rows, geometry.columns), bool)
    low, high = np.floor(boxes[:, :2] / geometry.stride), np.ceil(boxes[:, 2:] / geometry.stride)
    for (left, top), (right, bottom) in zip(np.maximum(low, 0).astype(int), high.astype(int), strict=True):
        touched[top : max(bottom, top), left : max(right, left)] = True
    return touched
