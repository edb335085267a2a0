"""Sampling and colouring images under a matrix: by OpenCV image by image, or a batch at once on a device.

A spatial matrix [3, 3] maps output to source pixels, row vectors (x, y, 1) of pixel corners: a pixel's centre lies at
its index plus one half. A colour matrix [4, 3] maps RGB row vectors (r, g, b, 1) in 0..1.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Matrix = NDArray[np.float64]
Image = NDArray[np.uint8]


def warp_image(image: Image, matrix: Matrix, size: tuple[int, int] | None = None, border: float = 0.5) -> Image:
    """Samples `image` [H, W, 3] bilinearly through an output-to-source matrix.

    Args:
        image: The source.
        matrix: [3, 3].
        size: Width and height of the result; the source's if left out.
        border: What lies outside the source, 0 to 1.
    """
    # OpenCV's coordinates are pixel centres.
    centred = translation(0.5, 0.5) @ matrix @ translation(-0.5, -0.5)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    output = size or (image.shape[1], image.shape[0])
    warped = cv2.warpAffine(image, centred[:, :2].T, output, flags=flags, borderValue=[round(255 * border)] * 3)
    return np.asarray(warped, np.uint8)


def recolour(image: Image, colour: Matrix) -> Image:
    """Applies a colour matrix to `image` [H, W, 3] RGB and clips once at the end."""
    rows = np.column_stack([colour[:3].T, colour[3] * 255])
    return np.asarray(cv2.transform(image, rows), np.uint8)


def warp_tensor(images: Tensor, matrices: Tensor, size: tuple[int, int], border: float) -> Tensor:
    """Does what `warp_image` does for a batch, on the images' device and without rounding.

    Args:
        images: [N, C, H, W] float.
        matrices: [N, 3, 3] float, as in `warp_image`.
        size: Width and height of the result.
        border: What lies outside the sources, in the images' units.

    Returns:
        [N, C, height, width].
    """
    x, y = (torch.arange(edge, device=images.device, dtype=torch.float32) + 0.5 for edge in size)
    # Written out, not multiplied as matrices: reduced-precision products (TF32, autocast) would move pixels.
    a = matrices.float()[:, :, :, None, None]
    source_x = a[:, 0, 0] * x + a[:, 1, 0] * y[:, None] + a[:, 2, 0]
    source_y = a[:, 0, 1] * x + a[:, 1, 1] * y[:, None] + a[:, 2, 1]
    height, width = images.shape[2:]
    grid = torch.stack([source_x * (2 / width) - 1, source_y * (2 / height) - 1], dim=-1)
    # Outside, grid_sample sees 0; with the border taken off, that is the border, and edges blend into it.
    sampled = functional.grid_sample(images - border, grid, "bilinear", "zeros", align_corners=False)
    return sampled.add_(border)


def recolour_tensor(images: Tensor, colours: Tensor) -> Tensor:
    """Does what `recolour` does for a batch [N, 3, H, W] in 0..1 with colours [N, 4, 3], without rounding."""
    c = colours.float()[:, :, :, None, None]
    mixed: Tensor = c[:, 3] + c[:, 0] * images[:, :1] + c[:, 1] * images[:, 1:2] + c[:, 2] * images[:, 2:]
    return mixed.clamp_(0, 1)


@dataclass(frozen=True, slots=True)
class Resampling:
    """What is left to do with the images of a batch, on the device that trains.

    Attributes:
        matrices: [N, 3, 3] from pixels of the network's input to those of the images.
        colours: [N, 4, 3].
        size: Width and height of the network's input.
        border: What lies outside the images, 0 to 1.
    """

    matrices: NDArray[np.float32]
    colours: NDArray[np.float32]
    size: tuple[int, int]
    border: float

    def apply(self, images: Tensor) -> Tensor:
        """Returns [N, 3, height, width] from [N, 3, H, W], both in 0..1."""
        arrays = (self.matrices, self.colours)
        matrices, colours = (torch.from_numpy(array).to(images.device, non_blocking=True) for array in arrays)
        images = warp_tensor(images, matrices, self.size, self.border)
        return recolour_tensor(images, colours).contiguous(memory_format=torch.channels_last)


def translation(x: float, y: float) -> Matrix:
    """Returns the [3, 3] matrix that adds (x, y) to a row vector."""
    return np.array([[1.0, 0, 0], [0, 1, 0], [x, y, 1]])
