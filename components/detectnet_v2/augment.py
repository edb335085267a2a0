"""Augmentation: one composed matrix and one sampling per image, one colour matrix (TAO 5.0, default loader)."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# TAO's colour basis: x -> x @ (C + k cos(hue) A + k sin(hue) B), row vectors of RGB.
_GREY = np.array([[0.299] * 3, [0.587] * 3, [0.114] * 3])
_COSINE = np.array([[0.701, -0.299, -0.299], [-0.587, 0.413, -0.587], [-0.114, -0.114, 0.886]])
_SINE = np.array([[0.168, -0.328, 1.25], [0.330, 0.035, -1.05], [-0.497, 0.292, -0.203]])
# What lies outside the source image.
_BORDER = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class AugmentSettings:
    """`augmentation_config` of the experiment spec; zeros (and zooms of 1) switch a part off.

    Attributes:
        hflip_probability: 0 to 1.
        zoom_min: Smallest zoom ratio. A ratio above 1 shows more than the image: objects get smaller.
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


def draw_spatial(settings: AugmentSettings, width: int, height: int, random: np.random.Generator) -> Matrix:
    """Draws the [3, 3] matrix that maps output pixels to source pixels (row vectors): flip, shift, zoom, rotate."""
    matrix = np.eye(3)
    if random.random() < settings.hflip_probability:
        matrix = matrix @ np.array([[-1.0, 0, 0], [0, 1, 0], [width, 0, 1]])
    limit_x, limit_y = int(settings.translate_max_x), int(settings.translate_max_y)
    shift_x, shift_y = random.integers(-limit_x, limit_x + 1), random.integers(-limit_y, limit_y + 1)
    matrix = matrix @ _translation(int(shift_x), int(shift_y))
    ratio = random.uniform(settings.zoom_min, settings.zoom_max)
    # A ratio below 1 crops: the window's corner lies inside the image. Above 1 the image lies inside the window.
    corner_x = random.uniform() * (width - width / ratio)
    corner_y = random.uniform() * (height - height / ratio)
    matrix = matrix @ _translation(-corner_x, -corner_y) @ np.diag([ratio, ratio, 1.0])
    if settings.rotate_max > 0 and random.random() < settings.rotate_probability:
        angle = random.uniform(-settings.rotate_max, settings.rotate_max)
        rotation = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        matrix = matrix @ _translation(-width / 2, -height / 2) @ rotation @ _translation(width / 2, height / 2)
    return matrix


def draw_colour(settings: AugmentSettings, random: np.random.Generator) -> Matrix:
    """Draws the [4, 3] affine map of RGB row vectors (x, 1) in 0..1: brightness, hue and saturation, contrast."""
    brightness = _truncated_normal(random) * settings.brightness_stddev
    hue = np.deg2rad(_truncated_normal(random) * settings.hue_rotation_max / 2)
    saturation = 1 + random.uniform(-settings.saturation_shift_max, settings.saturation_shift_max)
    contrast = _truncated_normal(random) * settings.contrast_scale_max / 2
    colour = _GREY + saturation * (np.cos(hue) * _COSINE + np.sin(hue) * _SINE)
    offset = np.full(3, brightness) @ colour
    return np.vstack([(1 + contrast) * colour, (1 + contrast) * offset - contrast * settings.contrast_center])


def warp_image(image: NDArray[np.uint8], matrix: Matrix) -> NDArray[np.uint8]:
    """Samples `image` [H, W, 3] bilinearly through an output-to-source matrix of `draw_spatial`; outside is grey."""
    # Matrices speak of pixel corners; OpenCV's coordinates are pixel centres.
    centred = _translation(0.5, 0.5) @ matrix @ _translation(-0.5, -0.5)
    height, width = image.shape[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(image, centred[:, :2].T, (width, height), flags=flags, borderValue=_BORDER)
    return np.asarray(warped, np.uint8)


def recolour(image: NDArray[np.uint8], colour: Matrix) -> NDArray[np.uint8]:
    """Applies a matrix of `draw_colour` to `image` [H, W, 3] RGB and clips once at the end."""
    rows = np.column_stack([colour[:3].T, colour[3] * 255])
    return np.asarray(cv2.transform(image, rows), np.uint8)


def warp_boxes(boxes: NDArray[np.float32], matrix: Matrix) -> NDArray[np.float32]:
    """Maps boxes [K, 4] from source to output pixels: the axis-aligned bounds of the mapped corners, unclipped."""
    inverse = np.linalg.inv(matrix)
    corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2)
    mapped = corners @ inverse[:2, :2] + inverse[2, :2]
    return np.concatenate([mapped.min(1), mapped.max(1)], axis=1).astype(np.float32)


def _translation(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0, 0], [0, 1, 0], [x, y, 1]])


def _truncated_normal(random: np.random.Generator) -> float:
    """Draws from a standard normal distribution cut off at two standard deviations, as TensorFlow does."""
    while abs(value := random.standard_normal()) > 2:
        pass
    return float(value)
