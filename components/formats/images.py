"""Decoding images as people mean them, and fitting them into a network's input."""

import re
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


class ImageError(ValueError):
    """Bytes that are no whole image."""


# A JPEG's mark: not the fill, stuffing and restarts that belong to its entropy-coded data.
_MARK = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
# Frames and tables, scans, notes: what has a length behind its mark.
_SEGMENTS, _END = {*range(0xC0, 0xD0), *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE}, 0xD9


def _is_whole_jpeg(content: bytes) -> bool:
    """Walks from mark to mark to the end of the image; what follows (a clip, a trailer, zeros) is not looked at."""
    position = 2
    while mark := _MARK.search(content, position):
        kind = mark[1][0]
        if kind not in _SEGMENTS:
            return kind == _END
        position = mark.end() + int.from_bytes(content[mark.end() : mark.end() + 2], "big")
    return False


def upright_size(content: bytes) -> tuple[int, int]:
    """Returns width and height of what `decode` would give; of most PNGs without decoding them.

    Raises:
        ImageError: As `decode`.
    """
    position = 8
    while content[:8] == b"\x89PNG\r\n\x1a\n" and position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8].ljust(8, b"\0"))
        if kind == b"IEND" and content[12:16] == b"IHDR":
            width, height = struct.unpack(">II", content[16:24])
            return width, height
        if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):  # may turn it
            break
        position += 12 + length
    height, width = decode(content).shape[:2]
    return width, height


def decode(content: bytes, *, upright: bool = True) -> Image:
    """Decodes JPEG, PNG, … by content (not by file name) into [H, W, 3] uint8, BGR.

    Args:
        content: The file's bytes.
        upright: Whether to turn the image as its EXIF orientation says.

    Raises:
        ImageError: The bytes are not an image, or the image is cut off.
    """
    if content[:2] == b"\xff\xd8" and not _is_whole_jpeg(content):
        # OpenCV fills the missing part of a truncated JPEG with grey and says nothing.
        raise ImageError("the JPEG is cut off (no end marker)")
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
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
