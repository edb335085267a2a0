"""Sampling and colouring images under a matrix: by OpenCV image by image, or a batch at once on a device.

A spatial matrix [3, 3] maps output to source pixels, row vectors (x, y, 1) of pixel corners: a pixel's centre lies at
its index plus one half. A colour matrix [4, 3] maps RGB row vectors (r, g, b, 1) in 0..1.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from components.decode.instances import Placement

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
    # Four channels take half the time of three, for the same values; but a large image would have to be copied whole.
    is_small = image.size <= 24 * math.prod(output)
    source = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA) if is_small else image
    warped = cv2.warpAffine(source, centred[:, :2].T, output, flags=flags, borderValue=[round(255 * border)] * 4)
    return np.asarray(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB) if is_small else warped, np.uint8)


def sample_image(image: Image, matrix: Matrix, size: tuple[int, int], border: float = 0.0) -> Image:
    """Samples as `warp_image` does, but without aliasing where the image shrinks.

    Each side is halved while it shrinks to a half or less, and what is left of the shrinking (below two) is smoothed
    over as much as one pixel of the result covers: a third of the time of OpenCV's INTER_AREA, which is quick for
    whole factors alone. Nothing is interpolated twice where the matrix takes a window with whole edges (see
    `whole_window`).

    Args:
        image: The source [H, W, 3].
        matrix: [3, 3] from pixels of the result to those of the source.
        size: Width and height of the result.
        border: What lies outside the source, 0 to 1.
    """
    shrinking = np.hypot(matrix[0, :2], matrix[1, :2])  # source pixels under one of the result, across and down
    # The tolerance keeps a window of a whole factor from being smoothed for the last bit of a float.
    halvings = np.maximum(np.floor(np.log2(shrinking + 1e-9)), 0).astype(int)
    blocks = 2**halvings
    corners = (np.array([[0, 0, 1], [size[0], 0, 1], [0, size[1], 1], [*size, 1]]) @ matrix)[:, :2]
    low, high = corners.min(0), corners.max(0)
    edges = np.rint([low, high]).astype(int)
    is_upright = matrix[0, 1] == 0 == matrix[1, 0] and matrix[1, 1] > 0
    is_window = is_upright and np.abs(edges - [low, high]).max() < 1e-6 and not ((edges[1] - edges[0]) % blocks).any()
    if not is_window:
        limit = np.array([image.shape[1], image.shape[0]])
        margin = np.ceil(2 * shrinking).astype(int)  # what interpolation looks at beyond the corners
        start = np.clip(np.floor(low).astype(int) - margin, 0, limit - 1)
        stop = np.clip(np.ceil(high).astype(int) + margin, start + 1, limit)
        edges = np.stack([start, start + -(-(stop - start) // blocks) * blocks])
    left, top, right, bottom = edges.ravel().tolist()
    region = _halved(_cut_out(image, left, top, right, bottom, border), *halvings.tolist())
    rest = shrinking / blocks
    if (rest > 1 + 1e-3).any():
        smoothed = cv2.GaussianBlur(region, (3, 3), sigmaX=_smoothing(rest[0]), sigmaY=_smoothing(rest[1]))
        region = np.asarray(smoothed, np.uint8)
    if is_window:
        resized = cv2.resize(region, size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.flip(resized, 1) if matrix[0, 0] < 0 else resized, np.uint8)
    level = translation(-edges[0, 0], -edges[0, 1]) @ np.diag([*(1 / blocks), 1.0])
    return warp_image(region, matrix @ level, size, border)


def fitted_matrix(placement: Placement) -> Matrix:
    """Returns the matrix from pixels of a network's input to those of the image that lies in it so."""
    scale = np.diag([1 / placement.scale[0], 1 / placement.scale[1], 1.0])
    return np.asarray(translation(-placement.offset[0], -placement.offset[1]) @ scale, np.float64)


def whole_window(corner: tuple[float, float], extent: tuple[float, float], size: tuple[int, int]) -> Matrix:
    """Returns the matrix of the window next to the one asked for that `sample_image` samples quickest and sharpest.

    Args:
        corner: Left and top edge, source pixels.
        extent: Width and height, source pixels.
        size: Width and height of the result.
    """
    start = np.rint(corner)
    block = 2.0 ** np.maximum(np.floor(np.log2(np.divide(extent, size))), 0)
    step = np.maximum(np.rint(extent / block), 1) * block / size
    return np.array([[step[0], 0, 0], [0, step[1], 0], [*start, 1]])


def _cut_out(image: Image, left: int, top: int, right: int, bottom: int, border: float) -> Image:
    """Returns a region of an image, filled up with the border where it leaves the image."""
    height, width = image.shape[:2]
    inner = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    around = max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0)
    if not any(around):
        return inner
    if not inner.size:
        return np.full((bottom - top, right - left, 3), round(255 * border), np.uint8)
    value = [round(255 * border)] * 3
    return np.asarray(cv2.copyMakeBorder(inner, *around, cv2.BORDER_CONSTANT, value=value), np.uint8)


def _halved(image: Image, across: int, down: int) -> Image:
    """Halves an image's sides so many times; they are multiples of the blocks that become one pixel."""
    while across or down:
        height, width = image.shape[:2]
        size = width >> (across > 0), height >> (down > 0)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        across, down = max(across - 1, 0), max(down - 1, 0)
    return image


def _smoothing(shrinking: float) -> float:
    """Returns the deviation of a Gaussian of three pixels that weighs them as a box of 1 to 2 pixels does."""
    # A box of s pixels over the middle one leaves (s - 1) / 2 for each neighbour, beside 1 for the middle.
    neighbour = (min(max(shrinking, 1.0), 2.0) - 1) / 2
    return math.sqrt(-0.5 / math.log(neighbour)) if neighbour > 1e-6 else 0.19  # leaves a millionth


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
