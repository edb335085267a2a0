"""Training batches: decoded images, augmentation and grid targets.

Every random draw depends on (seed, epoch, step, position in the joined batch of all processes) alone, so that a resumed
training sees the very same batches, and several processes together see those of a single one.
"""

import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.decode.grid.encode import CoverageShape, encode
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2 import augment
from components.detectnet_v2.augment import AugmentSettings, Matrix
from components.detectnet_v2.records import Frame
from components.formats.images import ImageError, decode
from components.step import UserError
from components.vision.threads import available_cores

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Objects:
    """What is labelled in one image.

    Attributes:
        boxes: [K, 4] objects of the trained classes, pixels.
        class_ids: [K].
        masked: [M, 4] regions in which the loss is multiplied by the mask multiplier.
    """

    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    masked: NDArray[np.float32]

    def moved(self, matrix: Matrix) -> "Objects":
        """Returns the objects as a matrix of `augment.draw_spatial` shows them."""
        boxes, masked = augment.warp_boxes(self.boxes, matrix), augment.warp_boxes(self.masked, matrix)
        return Objects(boxes, self.class_ids, masked)


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

    def apply(self, names: Sequence[str], boxes: NDArray[np.float32], left_out: Counter[str] | None = None) -> Objects:
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
        return Objects(boxes[trained], class_ids, boxes[masked])


@dataclass(frozen=True, slots=True)
class Framing:
    """How a source image becomes the network's input (`augmentation_config.preprocessing`).

    The image is resized, padded with black at the right and at the bottom to the canvas that all images share, scaled,
    and cropped.

    Attributes:
        stretch: Resize to the network's input, whatever the aspect ratio (`enable_auto_resize`).
        shorter_side: Resize the image's shorter side to this, the aspect ratio kept; 0 for no such resizing.
        longer_side: Unless the longer side would exceed this; 0 for no limit.
        scale: Horizontal and vertical scale of the canvas.
        corner: Left and top edge of the crop on the scaled canvas, pixels.
        clip: Cut boxes to the network's input, after augmentation, and drop those outside.
        smallest: Width and height under which a box is dropped after it has been cut, pixels.
        border: What lies outside the canvas, 0 to 1.
    """

    stretch: bool = False
    shorter_side: int = 0
    longer_side: int = 0
    scale: tuple[float, float] = (1.0, 1.0)
    corner: tuple[int, int] = (0, 0)
    clip: bool = False
    smallest: tuple[float, float] = (0.0, 0.0)
    border: float = 0.5

    @property
    def is_plain(self) -> bool:
        """Whether a pixel of the network's input is the canvas's pixel at the same place."""
        return self.scale == (1.0, 1.0) and self.corner == (0, 0)

    @property
    def window(self) -> Matrix:
        """The [3, 3] matrix from pixels of the network's input to those of the canvas (row vectors)."""
        scale = np.diag([1 / self.scale[0], 1 / self.scale[1], 1.0])
        return np.asarray(augment.translation(*self.corner) @ scale, np.float64)

    def resized(self, width: int, height: int, geometry: GridGeometry) -> tuple[tuple[int, int], tuple[float, float]]:
        """Returns an image's size on the canvas, and the horizontal and vertical scale of its labels."""
        if self.stretch:
            return (geometry.width, geometry.height), (geometry.width / width, geometry.height / height)
        if not self.shorter_side:
            return (width, height), (1.0, 1.0)
        scale = self.shorter_side / min(width, height)
        if self.longer_side:
            scale = min(scale, self.longer_side / max(width, height))
        # A tolerance, or 416 / 500 * 500 would be cut to 415.
        return (int(scale * width + 1e-6), int(scale * height + 1e-6)), (scale, scale)

    def canvas(self, frames: Sequence[Frame], geometry: GridGeometry) -> tuple[int, int]:
        """Returns width and height of the canvas: the largest image's, and no less than the network's input."""
        sizes = {self.resized(frame.width, frame.height, geometry)[0] for frame in frames}
        sizes.add((geometry.width, geometry.height))
        return max(width for width, _ in sizes), max(height for _, height in sizes)

    def cut(self, objects: Objects, geometry: GridGeometry) -> Objects:
        """Cuts objects to the network's input, if boxes are to be cut."""
        if not self.clip:
            return objects
        boxes, kept = self._cut(objects.boxes, geometry)
        return Objects(boxes, objects.class_ids[kept], self._cut(objects.masked, geometry)[0])

    def _cut(self, boxes: NDArray[np.float32], geometry: GridGeometry) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        limit = np.array([geometry.width, geometry.height] * 2, np.float32)
        cut = np.clip(boxes, 0, limit)
        size = cut[:, 2:] - cut[:, :2]
        kept = np.all((boxes[:, :2] < limit[:2]) & (boxes[:, 2:] > 0) & (size >= self.smallest), axis=1)
        return cut[kept], np.asarray(kept, np.bool_)


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
        self.canvas = _file_backed((len(frames), height, width, 3))
        counts = [Counter[str]() for _ in frames]

        def load(index: int) -> Objects:
            scale = _decode_into(self.canvas[index], files[index], frames[index], self.framing, geometry)
            boxes = frames[index].boxes * np.array([*scale, *scale], np.float32)
            return mapping.apply(frames[index].class_names, boxes, counts[index])

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
        pixels = _file_backed((len(self), height, width, 3))
        for source, target in zip(self.canvas, pixels, strict=True):
            target[:] = augment.warp_image(source, self.framing.window, (width, height), self.framing.border)
        return pixels


def _file_backed(shape: tuple[int, int, int, int]) -> Pixels:
    """Returns a black array in an unlinked temporary file, which takes no place until it is written."""
    if 0 in shape:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile() as store:
        return np.memmap(store, np.uint8, "w+", shape=shape)


def _decode_into(
    target: Pixels, file: Path, frame: Frame, framing: Framing, geometry: GridGeometry
) -> tuple[float, float]:
    """Decodes `file` as RGB into `target` [H, W, 3]; returns the horizontal and vertical scale of its labels.

    A record whose width and height are swapped is about the image as it is stored, without its EXIF orientation.
    """
    try:
        content = file.read_bytes()
        image = decode(content)
        if image.shape[:2] == (frame.width, frame.height):
            image = decode(content, upright=False)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; the records name this image, was the folder moved?") from error
    except ImageError as error:
        raise UserError(f"{file}: {error}") from error
    source_height, source_width = image.shape[:2]
    if (source_width, source_height) != (frame.width, frame.height):
        size = f"{source_width}x{source_height}, its record says {frame.width}x{frame.height}"
        raise UserError(f"{file}: {size}; convert the data again")
    (width, height), scale = framing.resized(source_width, source_height, geometry)
    if (width, height) != (source_width, source_height):
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    target[:height, :width] = image[..., ::-1]
    return scale


class BatchTensors(NamedTuple):
    """A batch on the device that trains; see `Batch`."""

    images: Tensor
    coverage: Tensor
    coverage_norm: Tensor
    bbox: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Resampling:
    """What is left to do with the images of a batch, on the device that trains.

    Attributes:
        matrices: [N, 3, 3] from pixels of the network's input to those of the canvas.
        colours: [N, 4, 3], see `augment.draw_colour`.
        size: Width and height of the network's input.
        border: What lies outside the canvas, 0 to 1.
    """

    matrices: NDArray[np.float32]
    colours: NDArray[np.float32]
    size: tuple[int, int]
    border: float

    def apply(self, images: Tensor) -> Tensor:
        """Returns [N, 3, height, width] from [N, 3, canvas height, canvas width], both in 0..1."""
        arrays = (self.matrices, self.colours)
        matrices, colours = (torch.from_numpy(array).to(images.device, non_blocking=True) for array in arrays)
        images = augment.warp_tensor(images, matrices, self.size, self.border)
        return augment.recolour_tensor(images, colours).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch.

    Attributes:
        images: [N, H, W, 3] RGB: the network's input, or the canvas where there is a resampling.
        coverage: [N, C, h, w].
        coverage_norm: [N, C, h, w].
        bbox: [N, C, 4, h, w].
        mask: [N, C, h, w], a factor for each cell's cost.
        resampling: What `to_tensors` does with the images on the device; None where it has been done.
    """

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
        images = images.permute(0, 3, 1, 2).float().div_(255)
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
        on_device: Leave the sampling of pixels to `Batch.to_tensors`. Batches then lie in pinned memory, where CUDA is
            available, and several threads make them.
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
    def steps(self) -> int:
        """Batches in an epoch; the last one is filled up from the epoch's beginning."""
        return -(-len(self.data) // (self.batch_size * self.world_size))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields this process's batches of an epoch (0-based), made ahead of their use.

        Args:
            epoch: Number of the epoch.
            first_step: The batches before it are left out.
        """
        plan = self._order(epoch).reshape(self.steps, self.world_size, self.batch_size)[:, self.rank]
        with ThreadPoolExecutor(self.workers) as pool:
            ahead = range(first_step, min(first_step + self.workers, self.steps))
            upcoming = deque(pool.submit(self.batch, epoch, step, plan[step]) for step in ahead)
            try:
                for step in range(first_step, self.steps):
                    batch = upcoming.popleft().result()
                    later = step + self.workers
                    if later < self.steps:
                        upcoming.append(pool.submit(self.batch, epoch, later, plan[later]))
                    yield batch
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Draws the images of all steps and processes of an epoch."""
        random = np.random.default_rng((self.seed, epoch))
        total = self.steps * self.world_size * self.batch_size
        if not self.uniform_sources:
            return np.resize(random.permutation(len(self.data)), total)
        sources = np.unique(self.data.source_ids)
        chosen = random.integers(len(sources), size=total)
        order = np.empty(total, np.int64)
        for number, source in enumerate(sources):
            own = random.permutation(np.flatnonzero(self.data.source_ids == source))
            places = np.flatnonzero(chosen == number)
            order[places] = np.resize(own, len(places))
        return order

    def batch(self, epoch: int, step: int, indices: NDArray[np.int64]) -> Batch:
        """Makes a batch of the images with these indices, with the draws that belong to this epoch and step."""
        count, classes = len(indices), len(self.shapes)
        grid = (self.geometry.rows, self.geometry.columns)
        resampling = self._resampling(count)
        height, width = self.data.canvas.shape[1:3] if resampling else (self.geometry.height, self.geometry.width)
        batch = Batch(
            self._empty((count, height, width, 3), torch.uint8).numpy(),
            self._empty((count, classes, *grid)).numpy(),
            self._empty((count, classes, *grid)).numpy(),
            self._empty((count, classes, 4, *grid)).numpy(),
            self._empty((count, classes, *grid)).numpy(),
            resampling,
        )
        for position, index in enumerate(indices):
            place = self.rank * self.batch_size + position
            self._fill(batch, position, int(index), np.random.default_rng((self.seed, epoch, step, place)))
        return batch

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        # Only from pinned memory does a copy to the device run beside the training.
        return torch.empty(shape, dtype=dtype, pin_memory=self.on_device and torch.cuda.is_available())

    def _resampling(self, count: int) -> Resampling | None:
        """Returns room for what the device is to do."""
        if not self.on_device or self.augmentation is None:
            return None
        return Resampling(
            self._empty((count, 3, 3)).numpy(),
            self._empty((count, 4, 3)).numpy(),
            (self.geometry.width, self.geometry.height),
            self.data.framing.border,
        )

    def _fill(self, batch: Batch, position: int, index: int, random: np.random.Generator) -> None:
        framing, settings = self.data.framing, self.augmentation
        objects, weight = self.data.labels[index], float(self.data.weights[index])
        size = (self.geometry.width, self.geometry.height)
        matrix = framing.window
        if settings is None:
            batch.images[position] = self.data.pixels[index]
        else:
            matrix = augment.draw_spatial(settings, *size, random) @ matrix
            colour = augment.draw_colour(settings, random)
            if batch.resampling:
                batch.images[position] = self.data.canvas[index]
                batch.resampling.matrices[position] = matrix
                batch.resampling.colours[position] = colour
            else:
                warped = augment.warp_image(self.data.canvas[index], matrix, size, framing.border)
                batch.images[position] = augment.recolour(warped, colour)
        if settings or not framing.is_plain:
            objects = objects.moved(matrix)
        self._encode(batch, position, framing.cut(objects, self.geometry), weight)

    def _encode(self, batch: Batch, position: int, objects: Objects, weight: float) -> None:
        targets = encode(objects.boxes, objects.class_ids, self.shapes, self.geometry, self.deadzone_radius)
        batch.coverage[position] = targets.coverage
        batch.coverage_norm[position] = targets.coverage_norm
        batch.bbox[position] = targets.bbox
        region = np.broadcast_to(covered_cells(objects.masked, self.geometry), targets.coverage.shape)
        if self.mask_spares_objects:
            region = region & (targets.coverage == 0)
        batch.mask[position] = np.where(region, self.mask_multiplier * weight, weight)


def covered_cells(boxes: NDArray[np.float32], geometry: GridGeometry) -> NDArray[np.bool_]:
    """Returns [rows, columns]: the cells of which one of 5 x 5 sample points lies inside a box [M, 4] (pixels).

    Source: TAO 5.0, `rasterizers/loss_mask_rasterizer.py` and `core/processors/polygon_rasterizer.py`.
    """
    covered = np.zeros((geometry.rows, geometry.columns), bool)
    x, y = ((np.arange(5 * cells) + 0.5) * geometry.stride / 5 for cells in (geometry.columns, geometry.rows))
    for x1, y1, x2, y2 in boxes:
        columns = ((x > x1) & (x < x2)).reshape(-1, 5).any(1)
        rows = ((y > y1) & (y < y2)).reshape(-1, 5).any(1)
        covered |= rows[:, None] & columns
    return covered
