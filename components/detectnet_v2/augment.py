"""TAO's augmentation: what is drawn for each image, as one spatial matrix and one colour matrix.

Source: TAO 5.0, `cv/detectnet_v2/dataloader/{drivenet_dataloader,augment}.py`, `core/processors/augment/*.py` and
`core/lib/{spatialtransform,colortransform}` (order of composition, pixel centres, border). TAO has two loaders:

- MULTISOURCE: matrices map output to source pixels, and each operation is multiplied from the left, M <- M_op M, both
  for space and for colour. A pixel's colour therefore meets contrast first and brightness last.
- DEFAULT and LEGACY: matrices map source to output pixels, each operation multiplied from the right, and the sampling
  uses the inverse. A zoom ratio above 1 enlarges here, brightness differs by channel.
"""

from dataclasses import dataclass

import numpy as np

from components.vision.data.warp import Matrix, translation

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


def truncated_normal(random: np.random.Generator) -> float:
    """Draws from a standard normal distribution cut off at two standard deviations, as TensorFlow does."""
    while abs(value := random.standard_normal()) > 2:
        pass
    return float(value)
