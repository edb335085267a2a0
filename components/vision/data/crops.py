"""Training views of images of any size: random crops, mosaics, pasted objects, noise. Of no family.

What is drawn comes from one stream of random numbers an image (see `order`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from components.vision.data.annotations import Annotations
from components.vision.data.warp import Image, Matrix, fitted_matrix, recolour, sample_image, translation, whole_window
from components.vision.inputs import InputSpec

_JPEG_QUALITY = 30, 80
# A mosaic's parts meet between these shares of the view's sides.
_MOSAIC_CENTRE = 0.3, 0.7
# A pasted object brings this share of its size along on each side, in which it fades into its new surroundings.
_PASTE_MARGIN = 0.3
_PASTED_MOST, _PASTE_TRIES = 3, 10
# An object that a crop is to show has its centre at least this share of the crop away from the edges.
_CENTRE_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """What is drawn of an image; zeros (and zooms of 1) switch a part off.

    Attributes:
        zoom_min: Smallest zoom: 1 fits the image into the network's input. Zooms are drawn log-uniformly.
        zoom_max: Largest zoom.
        object_probability: That the crop is laid around an object of the image, drawn among all, 0 to 1.
        hflip_probability: 0 to 1.
        rotate_max: Largest rotation about the centre, radians.
        rotate_probability: 0 to 1.
        min_visible_share: Least share of an object that the crop shows, 0 to 1; others mask the loss.
        mosaic_probability: That the view is made of crops of four images, 0 to 1.
        copy_paste_probability: That objects of another image are pasted, 0 to 1.
        blur_probability: 0 to 1.
        jpeg_probability: That the view goes through a JPEG of quality 30 to 80, 0 to 1.
        grey_probability: 0 to 1.
        size: Width and height of a view, pixels; those of the network's input where left out. A fully convolutional
            network learns of smaller views as well, and a step takes less time.
        whole_from: The epoch from which on views have the size of the network's input all the same; None for no such
            epoch. Smaller views cut what is larger than they are.
    """

    zoom_min: float = 1.0
    zoom_max: float = 1.0
    object_probability: float = 0.0
    hflip_probability: float = 0.0
    rotate_max: float = 0.0
    rotate_probability: float = 1.0
    min_visible_share: float = 0.0
    mosaic_probability: float = 0.0
    copy_paste_probability: float = 0.0
    blur_probability: float = 0.0
    jpeg_probability: float = 0.0
    grey_probability: float = 0.0
    size: tuple[int, int] | None = None
    whole_from: int | None = None

    def at(self, epoch: int) -> Self:
        """Returns what is drawn in an epoch (counted from 0)."""
        is_whole = self.whole_from is not None and epoch >= self.whole_from
        return replace(self, size=None) if is_whole else self

    def draw(
        self,
        image_size: tuple[int, int],
        scale: tuple[float, float],
        boxes: NDArray[np.float32],
        size: tuple[int, int],
        random: np.random.Generator,
    ) -> Matrix:
        """Draws the [3, 3] matrix from pixels of a view to those of an image.

        Args:
            image_size: Width and height of the image.
            scale: Horizontal and vertical pixels of the view per pixel of the image at a zoom of 1.
            boxes: [K, 4], the image's objects, pixels.
            size: Width and height of the view.
            random: The image's stream.
        """
        zoom = math.exp(random.uniform(math.log(self.zoom_min), math.log(self.zoom_max)))
        width, height = size[0] / (scale[0] * zoom), size[1] / (scale[1] * zoom)
        x = y = None
        if len(boxes) and random.random() < self.object_probability:
            x1, y1, x2, y2 = boxes[random.integers(len(boxes))].tolist()
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
        corner = _placed(image_size[0], width, x, random), _placed(image_size[1], height, y, random)
        matrix = whole_window(corner, (width, height), size)
        if random.random() < self.hflip_probability:
            matrix = _mirrored(size[0]) @ matrix
        if self.rotate_max and random.random() < self.rotate_probability:
            angle = random.uniform(-self.rotate_max, self.rotate_max)
            turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
            matrix = translation(-size[0] / 2, -size[1] / 2) @ turn @ translation(size[0] / 2, size[1] / 2) @ matrix
        return matrix

    def degrade(self, image: Image, random: np.random.Generator) -> Image:
        """Blurs an image [H, W, 3] RGB, sends it through a JPEG, takes its colours, each by its probability."""
        blurred, compressed, grey = random.random(3) < (
            self.blur_probability,
            self.jpeg_probability,
            self.grey_probability,
        )
        if blurred:
            image = np.asarray(cv2.GaussianBlur(image, (3, 3), 0), np.uint8)
        if compressed:
            quality = int(random.integers(*_JPEG_QUALITY, endpoint=True))
            # A JPEG's colours are taken for BGR, which makes no difference to what comes back but in its noise.
            _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
            image = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)
        if grey:
            image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.uint8)
        return image


class LabelledPixels(Protocol):
    """Stored images with what is labelled in them."""

    def __len__(self) -> int: ...

    def stored(self, index: int) -> tuple[Image, Annotations]:
        """Returns an image [H, W, 3] RGB and its objects in pixels of it."""
        ...


@dataclass(frozen=True, slots=True)
class Composer:
    """Makes the network's input of stored images.

    Attributes:
        images: The images.
        input: The network's input; its `fit` is what a zoom of 1 means.
        crop: What is drawn; None for the fit itself.
        space: Draws a further [3, 3] matrix, from pixels of a view of this width and height to pixels before it.
        colour: Draws a colour matrix [4, 3].
        smallest: Least width and height of what is seen of an object that is learned, pixels of the network's input;
            smaller ones mask the loss.
        flip_map: See `Annotations.moved`.
        is_round: See `Annotations.moved`.
    """

    images: LabelledPixels
    input: InputSpec
    crop: RandomCrop | None
    space: Callable[[tuple[int, int], np.random.Generator], Matrix]
    colour: Callable[[np.random.Generator], Matrix]
    smallest: tuple[float, float] = (0.0, 0.0)
    flip_map: Sequence[int] = ()
    is_round: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the views."""
        return (self.crop and self.crop.size) or (self.input.width, self.input.height)

    def compose(self, index: int, random: np.random.Generator) -> tuple[Image, Annotations]:
        """Returns a view [height, width, 3] RGB of an image, and what is to be learned in it."""
        size, crop = self.size, self.crop
        if crop and random.random() < crop.mosaic_probability:
            image, objects = self._mosaic(index, random)
        else:
            image, objects = self._view(index, size, random)
        if crop and random.random() < crop.copy_paste_probability:
            image, objects = self._pasted(image, objects, crop, random)
        image = recolour(image, self.colour(random))
        return (crop.degrade(image, random) if crop else image), objects

    def _view(self, index: int, size: tuple[int, int], random: np.random.Generator) -> tuple[Image, Annotations]:
        """Returns a view of an image of this width and height."""
        image, objects = self.images.stored(index)
        image_size = image.shape[1], image.shape[0]
        placement = self.input.placement(*image_size)
        crop = self.crop or RandomCrop()
        if self.crop:
            matrix = crop.draw(image_size, placement.scale, objects.boxes, size, random)
        else:
            matrix = fitted_matrix(placement)
        matrix = self.space(size, random) @ matrix
        objects = objects.moved(matrix, self.flip_map, size, is_round=self.is_round)
        return sample_image(image, matrix, size), objects.shown(size, self.smallest, crop.min_visible_share)

    def _mosaic(self, index: int, random: np.random.Generator) -> tuple[Image, Annotations]:
        """Returns crops of the image and three others, of the sizes of objects that crops have by themselves."""
        width, height = size = self.size
        x, y = (round(edge * random.uniform(*_MOSAIC_CENTRE)) for edge in size)
        numbers = np.array([index, *random.integers(len(self.images), size=3)])
        random.shuffle(numbers)
        places = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
        whole, parts = np.empty((height, width, 3), np.uint8), []
        for number, (x1, y1, x2, y2) in zip(numbers.tolist(), places, strict=True):
            whole[y1:y2, x1:x2], objects = self._view(number, (x2 - x1, y2 - y1), random)
            parts.append(objects.placed(x1, y1, size))
        return whole, Annotations.joined(parts)

    def _pasted(
        self, image: Image, objects: Annotations, crop: RandomCrop, random: np.random.Generator
    ) -> tuple[Image, Annotations]:
        """Pastes up to three objects of another image where nothing is labelled."""
        height, width = image.shape[:2]
        donor, labels = self.images.stored(int(random.integers(len(self.images))))
        patches = _alone(labels, (donor.shape[1], donor.shape[0]))
        image = image.copy()
        for _ in range(int(random.integers(1, _PASTED_MOST, endpoint=True)) if len(patches) else 0):
            number = int(patches[random.integers(len(patches))])
            box = labels.boxes[number].astype(np.float64)
            extent = box[2:] - box[:2]
            # From the smallest that is learned to what stays sharp, and no more than a third of the view.
            low = max(*(self.smallest / extent), 8 / extent[1])
            high = min(1.0, width / 3 / extent[0], height / 3 / extent[1])
            if low >= high:
                continue
            factor = math.exp(random.uniform(math.log(low), math.log(high)))
            patch = np.ceil((1 + 2 * _PASTE_MARGIN) * extent * factor).astype(int)
            place = _free_place(objects, patch, (width, height), random)
            if place is None:
                continue
            corner = (box[:2] + box[2:] - patch / factor) / 2
            matrix = np.diag([1 / factor, 1 / factor, 1.0]) @ translation(*corner)
            if random.random() < crop.hflip_probability:
                matrix = _mirrored(patch[0]) @ matrix
            size = int(patch[0]), int(patch[1])
            chosen = labels.chosen(np.arange(len(labels.boxes)) == number)
            moved = chosen.moved(matrix, self.flip_map, size, is_round=self.is_round).cut(size)
            target = image[place[1] : place[1] + size[1], place[0] : place[0] + size[0]]
            weight = np.minimum.outer(*(_fading(edge) for edge in size[::-1]))[..., None]
            target[:] = np.rint(target + weight * (sample_image(donor, matrix, size) - target.astype(np.float32)))
            objects = Annotations.joined([objects, moved.placed(*place, (width, height))])
        return image, objects


def _placed(length: int, extent: float, centre: float | None, random: np.random.Generator) -> float:
    """Draws where a window begins along one side of an image: inside it, or around it where it is larger."""
    spare = length - extent
    low, high = min(spare, 0.0), max(spare, 0.0)
    if centre is not None and spare > 0:
        low = min(max(low, centre - extent * (1 - _CENTRE_MARGIN)), high)
        high = max(min(high, centre - extent * _CENTRE_MARGIN), low)
    return float(random.uniform(low, high))


def _mirrored(width: int) -> Matrix:
    return np.array([[-1.0, 0, 0], [0, 1, 0], [width, 0, 1]])


def _alone(objects: Annotations, size: tuple[int, int]) -> NDArray[np.int64]:
    """Returns the numbers of the objects that can be taken out of an image with nothing else that is labelled."""
    boxes = objects.boxes
    margin = (boxes[:, 2:] - boxes[:, :2]) * _PASTE_MARGIN
    patches = np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)
    inside = (patches[:, :2] >= 0).all(1) & (patches[:, 2:] <= size).all(1) & (margin > 0).all(1)
    touches = _touching(patches, np.concatenate([boxes, objects.masked])).sum(1)
    return np.flatnonzero(inside & (touches == 1))  # itself


def _free_place(
    objects: Annotations, patch: NDArray[np.int64], size: tuple[int, int], random: np.random.Generator
) -> tuple[int, int] | None:
    """Draws left and top edge of a patch that touches nothing labelled; None where none is found soon."""
    taken = np.concatenate([objects.boxes, objects.masked])
    for _ in range(_PASTE_TRIES):
        left, top = (int(random.integers(edge - extent + 1)) for edge, extent in zip(size, patch, strict=True))
        if not _touching(np.array([[left, top, left + patch[0], top + patch[1]]], np.float32), taken).any():
            return left, top
    return None


def _touching(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns [N, M], which of boxes [N, 4] and [M, 4] overlap."""
    return np.asarray((one[:, None, :2] < other[:, 2:]).all(2) & (one[:, None, 2:] > other[:, :2]).all(2), np.bool_)


def _fading(edge: int) -> NDArray[np.float32]:
    """Returns [edge] weights of a patch along one side: 1 on the object, falling to 0 over the margin."""
    margin = edge * _PASTE_MARGIN / (1 + 2 * _PASTE_MARGIN)
    place = np.arange(edge) + 0.5
    return np.asarray(np.minimum(1, np.minimum(place, edge - place) / margin), np.float32)
