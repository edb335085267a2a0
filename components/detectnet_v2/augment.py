"""Augmentation: one composed matrix and one sampling per image, one colour matrix.

Source: TAO 5.0, `cv/detectnet_v2/dataloader/{drivenet_dataloader,augment}.py`, `core/processors/augment/*.py` and
`core/lib/{spatialtransform,colortransform}` (order of composition, pixel centres, border). TAO has two loaders:

- MULTISOURCE: matrices map output to source pixels, and each operation is multiplied from the left, M <- M_op M, both
  for space and for colour. A pixel's colour therefore meets contrast first and brightness last.
- DEFAULT and LEGACY: matrices map source to output pixels, each operation multiplied from the right, and the sampling
  uses the inverse. A zoom ratio above 1 enlarges here, brightness differs by channel.
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

# TAO's colour basis: x -> x @ (C + k cos(hue) A + k sin(hue) B), row vectors of RGB.
_GREY = np.array([[0.299] * 3, [0.587] * 3, [0.114] * 3])
_COSINE = np.array([[0.701, -0.299, -0.299], [-0.587, 0.413, -0.587], [-0.114, -0.114, 0.886]])
_SINE = np.array([[0.168, -0.328, 1.25], [0.330, 0.035, -1.05], [-0.497, 0.292, -0.203]])


@dataclass(frozen=True, slots=True)
class AugmentSettings:
    """`augmentation_config` of the experiment spec; zeros (and zooms of 1) switch a part off.

    Attributes:
        hflip_probability: 0 to 1.
        zoom_min: Smallest zoom ratio. A ratio above 1 shows more than the image, objects get smaller; with `forward`
            it is the other way round.
        zoom_max: Largest zoom ratio.
        translate_max_x: Largest shift, pixels.
        translate_max_y: Largest shift, pixels.
        rotate_max: Largest rotation, radians.
        rotate_probability: 0 to 1.
        brightness_stddev: Of the brightness offset, in units of the full range.
        hue_rotation_max: Twice the standard deviation of the hue rotation, degrees.
        saturation_shift_max: Largest relative change of saturation.
        contrast_scale_max: Twice the standard deviation of the relative change of contrast.
        contrast_center: Level that the contrast change keeps, 0 to 1.
        vflip_probability: 0 to 1.
        forward: Compose as TAO's DEFAULT loader does, not as MULTISOURCE.
    """

    hflip_probability: float = 0.0
    zoom_min: float = 1.0
    zoom_max: float = 1.0
    translate_max_x: float = 0.0
    translate_max_y: float = 0.0
    rotate_max: float = 0.0
    rotate_probability: float = 1.0
    brightness_stddev: float = 0.0
    hue_rotation_max: float = 0.0
    saturation_shift_max: float = 0.0
    contrast_scale_max: float = 0.0
    contrast_center: float = 0.5
    vflip_probability: float = 0.0
    forward: bool = False


def draw_spatial(settings: AugmentSettings, width: int, height: int, random: np.random.Generator) -> Matrix:
    """Draws the [3, 3] matrix that maps output pixels to source pixels of a `width` x `height` view (row vectors)."""
    flip = np.eye(3)
    if random.random() < settings.hflip_probability:
        flip = flip @ np.array([[-1.0, 0, 0], [0, 1, 0], [width, 0, 1]])
    if random.random() < settings.vflip_probability:
        flip = flip @ np.array([[1.0, 0, 0], [0, -1, 0], [0, height, 1]])
    limit_x, limit_y = int(settings.translate_max_x), int(settings.translate_max_y)
    shift = translation(
        int(random.integers(-limit_x, limit_x + 1)),
        int(random.integers(-limit_y, limit_y + 1)),
    )
    ratio = random.uniform(settings.zoom_min, settings.zoom_max)
    # The corner lies between 0 and size - size / ratio, whichever is smaller.
    corner_x, corner_y = random.random() * (width - width / ratio), random.random() * (height - height / ratio)
    zoom = translation(-corner_x, -corner_y) @ np.diag([ratio, ratio, 1.0])
    rotation = np.eye(3)
    if settings.rotate_max > 0 and random.random() < settings.rotate_probability:
        angle = random.uniform(-settings.rotate_max, settings.rotate_max)
        turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        rotation = translation(-width / 2, -height / 2) @ turn @ translation(width / 2, height / 2)
    if settings.forward:
        return np.asarray(np.linalg.inv(flip @ rotation @ zoom @ shift), np.float64)
    return np.asarray(rotation @ zoom @ shift @ flip, np.float64)


def draw_colour(settings: AugmentSettings, random: np.random.Generator) -> Matrix:
    """Draws the [4, 3] affine map of RGB row vectors (x, 1) in 0..1."""
    offsets = [truncated_normal(random) * settings.brightness_stddev for _ in range(3 if settings.forward else 1)]
    hue = np.deg2rad(truncated_normal(random) * settings.hue_rotation_max / 2)
    saturation = 1 + random.uniform(-settings.saturation_shift_max, settings.saturation_shift_max)
    contrast = truncated_normal(random) * settings.contrast_scale_max / 2
    tint = _GREY + saturation * (np.cos(hue) * _COSINE + np.sin(hue) * _SINE)
    bias = np.full(3, -contrast * settings.contrast_center)
    # MULTISOURCE: contrast, then hue and saturation, then brightness. Forward: hue and saturation come first.
    bias = (bias if settings.forward else bias @ tint) + np.broadcast_to(offsets, 3)
    return np.vstack([(1 + contrast) * tint, bias])


def warp_image(image: Image, matrix: Matrix, size: tuple[int, int] | None = None, border: float = 0.5) -> Image:
    """Samples `image` [H, W, 3] bilinearly through an output-to-source matrix.

    Args:
        image: The source.
        matrix: [3, 3], of pixel corners: a pixel's centre lies at its index plus one half.
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
    """Applies a matrix of `draw_colour` to `image` [H, W, 3] RGB and clips once at the end."""
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


def warp_boxes(boxes: NDArray[np.float32], matrix: Matrix) -> NDArray[np.float32]:
    """Maps boxes [K, 4] from source to output pixels: the axis-aligned bounds of the mapped corners, unclipped."""
    inverse = np.linalg.inv(matrix)
    corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2)
    mapped = corners @ inverse[:2, :2] + inverse[2, :2]
    return np.concatenate([mapped.min(1), mapped.max(1)], axis=1).astype(np.float32)


def translation(x: float, y: float) -> Matrix:
    """Returns the [3, 3] matrix that adds (x, y) to a row vector."""
    return np.array([[1.0, 0, 0], [0, 1, 0], [x, y, 1]])


def truncated_normal(random: np.random.Generator) -> float:
    """Draws from a standard normal distribution cut off at two standard deviations, as TensorFlow does."""
    while abs(value := random.standard_normal()) > 2:
        pass
    return float(value)
