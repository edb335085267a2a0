"""Decoding images as people mean them, and fitting them into a network's input."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


class ImageError(ValueError):
    """Bytes that are no whole image."""


def decode(content: bytes) -> Image:
    """Decodes JPEG, PNG, … by content (not by file name) into [H, W, 3] uint8, BGR, EXIF orientation honoured.

    Raises:
        ImageError: The bytes are not an image, or the image is cut off.
    """
    if content[:2] == b"\xff\xd8" and b"\xff\xd9" not in content[-4096:]:
        # OpenCV fills the missing part of a truncated JPEG with grey and says nothing.
        raise ImageError("the JPEG is cut off (no end marker)")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error as error:  # a header that promises more pixels than OpenCV takes
        raise ImageError(f"not an image that OpenCV can decode ({error.err})") from error
    if image is None:
        raise ImageError("not an image that OpenCV can decode" if content else "the file is empty")
    return np.asarray(image, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A uniform scale and an offset that fit a source image into a frame, the rest black.

    The arithmetic is that of NVIDIA's reference converter (integer part of the scaled size, centred by integer
    division), so that sets made by either agree.

    Attributes:
        scale: Target pixels per source pixel.
        dx: Target column of the source's left edge.
        dy: Target row of the source's top edge.
        width: Width of the frame, pixels.
        height: Height of the frame, pixels.
        inner: Width and height of the scaled source inside the frame, pixels.
    """

    scale: float
    dx: int
    dy: int
    width: int
    height: int
    inner: tuple[int, int]

    @classmethod
    def fit(cls, source_width: int, source_height: int, width: int, height: int) -> "Letterbox":
        """Returns the letterbox that fits a source of the given size (pixels) into `width` x `height`."""
        scale = min(width / source_width, height / source_height)
        inner = max(1, int(source_width * scale)), max(1, int(source_height * scale))
        return cls(scale, (width - inner[0]) // 2, (height - inner[1]) // 2, width, height, inner)

    def apply(self, image: Image, interpolation: int = cv2.INTER_CUBIC) -> Image:
        """Returns `image` [h, w, 3] scaled into a black frame [height, width, 3]."""
        frame = np.zeros((self.height, self.width, 3), np.uint8)
        w, h = self.inner
        frame[self.dy : self.dy + h, self.dx : self.dx + w] = cv2.resize(image, (w, h), interpolation=interpolation)
        return frame

    def boxes_to_frame(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Maps boxes [N, 4] (x1, y1, x2, y2) from source pixels to frame pixels, unclipped and unrounded."""
        return boxes * self.scale + (self.dx, self.dy, self.dx, self.dy)
