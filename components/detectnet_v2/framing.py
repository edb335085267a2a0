"""How a source image becomes the network's input: as TAO's loaders do it, or as `open_engine` says."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.records import Frame
from components.vision.data.annotations import Annotations
from components.vision.data.crops import RandomCrop
from components.vision.data.warp import Matrix, fitted_matrix, translation
from components.vision.inputs import InputSpec

# An image is kept smaller than it is stored only where the largest zoom would show it this much reduced.
_WORTH_SHRINKING = 1.5


@dataclass(frozen=True, slots=True)
class Framing:
    """How a source image becomes the network's input in TAO's loaders (`augmentation_config.preprocessing`).

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
        return np.asarray(translation(*self.corner) @ scale, np.float64)

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

    def cut(self, objects: Annotations, geometry: GridGeometry) -> Annotations:
        """Cuts objects to the network's input, if boxes are to be cut."""
        return objects.cut((geometry.width, geometry.height), self.smallest) if self.clip else objects


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a source image of any size becomes the network's input under `open_engine`.

    Attributes:
        input: What the network takes; its `fit` places an image in it.
        crop: What training draws of an image; None for the whole image, as it fits.
        largest_zoom: How much larger than it fits an image may be shown.
        smallest: Width and height under which an object masks the loss, pixels of the network's input.
    """

    input: InputSpec
    crop: RandomCrop | None = None
    largest_zoom: float = 1.0
    smallest: tuple[float, float] = (0.0, 0.0)

    def kept_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the size at which an image is kept for crops: its own, unless no zoom could show so much."""
        scale = max(self.input.placement(width, height).scale) * self.largest_zoom
        if scale * _WORTH_SHRINKING >= 1:
            return width, height
        return max(round(width * scale), 1), max(round(height * scale), 1)

    def fitted(self, objects: Annotations, width: int, height: int) -> Annotations:
        """Returns an image's objects in pixels of the network's input, cut to it."""
        matrix = fitted_matrix(self.input.placement(width, height))
        return objects.moved(matrix).cut((self.input.width, self.input.height))
