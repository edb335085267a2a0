"""What is labelled in an image, and where augmentation takes it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from components.vision.data.warp import Matrix, translation


@dataclass(frozen=True, slots=True)
class Annotations:
    """The K labelled objects of an image, and where nothing is to be learned.

    Attributes:
        boxes: [K, 4], pixels.
        class_ids: [K].
        masked: [M, 4] regions in which the loss is masked, pixels.
        points: [K, P, 2], pixels.
        visible: [K, P], which points are labelled.
        mask: [H, W], pixels in which the loss is masked.
    """

    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    masked: NDArray[np.float32]
    points: NDArray[np.float32] | None = None
    visible: NDArray[np.bool_] | None = None
    mask: NDArray[np.bool_] | None = None

    def moved(
        self,
        matrix: Matrix,
        flip_map: Sequence[int] = (),
        size: tuple[int, int] | None = None,
        *,
        is_round: bool = False,
    ) -> "Annotations":
        """Returns them as an image shows them that is sampled through a matrix (see `warp.warp_image`).

        Args:
            matrix: [3, 3], from output to source pixels.
            flip_map: [P]: in a mirror, the point of each index is the one of this index (a left eye looks like a right
                one).
            size: Width and height of the image; the mask's if left out.
            is_round: Whether an object fills its box as an ellipse does, not to the corners, which only a rotation
                tells apart. Masked regions always keep their corners.
        """
        points, visible = self.points, self.visible
        if points is not None:
            points = warp_points(points, matrix)
            if len(flip_map) and np.linalg.det(matrix) < 0:
                points = points[:, list(flip_map)]
                visible = None if visible is None else visible[:, list(flip_map)]
        boxes = warp_ellipses(self.boxes, matrix) if is_round else warp_boxes(self.boxes, matrix)
        masked = warp_boxes(self.masked, matrix)
        mask = None if self.mask is None else warp_mask(self.mask, matrix, size)
        return Annotations(boxes, self.class_ids, masked, points, visible, mask)

    def cut(self, size: tuple[int, int], smallest: tuple[float, float] = (0.0, 0.0)) -> "Annotations":
        """Cuts boxes and regions to an image; drops objects outside, and those that are too small once cut.

        Args:
            size: Width and height of the image.
            smallest: Least width and height of a cut box, pixels.
        """
        boxes, kept = _cut(self.boxes, size, smallest)
        masked, _ = _cut(self.masked, size, smallest)
        return replace(self.chosen(kept), boxes=boxes, masked=masked)

    def shown(self, size: tuple[int, int], smallest: tuple[float, float], min_share: float) -> "Annotations":
        """Cuts them to an image as one that is learned from: what shows too little of itself becomes a masked region.

        It is no example of its class then, and no background either.

        Args:
            size: Width and height of the image.
            smallest: Least width and height of what is seen of an object, pixels.
            min_share: Least share of an object's box that is seen, 0 to 1.
        """
        area = np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)
        whole = self.cut(size)
        _, inside = _cut(self.boxes, size, (0.0, 0.0))
        extent = whole.boxes[:, 2:] - whole.boxes[:, :2]
        learned = np.all(extent >= smallest, axis=1) & (np.prod(extent, axis=1) >= min_share * area[inside])
        return replace(whole.chosen(learned), masked=np.concatenate([whole.masked, whole.boxes[~learned]]))

    def placed(self, left: int, top: int, size: tuple[int, int]) -> "Annotations":
        """Returns them as part of a larger image of this width and height, with the part's corner at (left, top)."""
        corner = np.array([left, top], np.float32)
        points = None if self.points is None else self.points + corner
        mask = None
        if self.mask is not None:
            mask = np.zeros(size[::-1], np.bool_)
            mask[top : top + self.mask.shape[0], left : left + self.mask.shape[1]] = self.mask
        boxes, masked = self.boxes + np.tile(corner, 2), self.masked + np.tile(corner, 2)
        return Annotations(boxes, self.class_ids, masked, points, self.visible, mask)

    @classmethod
    def joined(cls, parts: Sequence["Annotations"]) -> "Annotations":
        """Joins what is labelled in one image; either all have points, visibilities and masks, or none has."""

        def together(name: str) -> Any:  # noqa: ANN401 - arrays of several types
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values)

        masks = [part.mask for part in parts if part.mask is not None]
        mask = np.logical_or.reduce(masks) if masks else None
        boxes, class_ids, masked = (together(name) for name in ("boxes", "class_ids", "masked"))
        return cls(boxes, class_ids, masked, together("points"), together("visible"), mask)

    def chosen(self, chosen: NDArray[np.bool_]) -> "Annotations":
        """Returns the chosen objects [K], and all masked regions."""
        points = None if self.points is None else self.points[chosen]
        visible = None if self.visible is None else self.visible[chosen]
        return Annotations(self.boxes[chosen], self.class_ids[chosen], self.masked, points, visible, self.mask)


def warp_boxes(boxes: NDArray[np.float32], matrix: Matrix) -> NDArray[np.float32]:
    """Maps boxes [K, 4] from source to output pixels: the axis-aligned bounds of the mapped corners, unclipped."""
    inverse = np.linalg.inv(matrix)
    corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2)
    mapped = corners @ inverse[:2, :2] + inverse[2, :2]
    return np.concatenate([mapped.min(1), mapped.max(1)], axis=1).astype(np.float32)


def warp_ellipses(boxes: NDArray[np.float32], matrix: Matrix) -> NDArray[np.float32]:
    """Maps boxes [K, 4] from source to output pixels: the upright bounds of the mapped inscribed ellipses, unclipped.

    Under a rotation they are closer than the bounds of the corners to a box drawn anew round a head: turned by 45
    degrees, a square keeps its size, where its corners' bounds grow by 41 per cent.
    """
    inverse = np.linalg.inv(matrix)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 @ inverse[:2, :2] + inverse[2, :2]
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    reach = np.sqrt(half**2 @ inverse[:2, :2] ** 2)
    return np.concatenate([centre - reach, centre + reach], axis=1).astype(np.float32)


def warp_points(points: NDArray[np.float32], matrix: Matrix) -> NDArray[np.float32]:
    """Maps points [..., 2] from source to output pixels."""
    inverse = np.linalg.inv(matrix)
    return np.asarray(points @ inverse[:2, :2] + inverse[2, :2], np.float32)


def warp_mask(mask: NDArray[np.bool_], matrix: Matrix, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Samples a mask [H, W] through an output-to-source matrix; nothing is masked outside.

    Args:
        mask: The source.
        matrix: [3, 3].
        size: Width and height of the result; the source's if left out.
    """
    centred = translation(0.5, 0.5) @ matrix @ translation(-0.5, -0.5)  # OpenCV's coordinates are pixel centres
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    output = size or (mask.shape[1], mask.shape[0])
    return np.asarray(cv2.warpAffine(mask.astype(np.uint8), centred[:, :2].T, output, flags=flags), np.bool_)


def _cut(
    boxes: NDArray[np.float32], size: tuple[int, int], smallest: tuple[float, float]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns the kept boxes, cut, and which ones they are."""
    limit = np.array([*size, *size], np.float32)
    cut = np.clip(boxes, 0, limit)
    extent = cut[:, 2:] - cut[:, :2]
    kept = np.all((boxes[:, :2] < limit[:2]) & (boxes[:, 2:] > 0) & (extent >= smallest), axis=1)
    return cut[kept], np.asarray(kept, np.bool_)
