"""Decodes images, upright, and fits them into a network's input."""

import re
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


class ImageError(ValueError):
    """The bytes are not a complete image."""


# A JPEG marker, without fill bytes, byte stuffing and restart markers, which belong to entropy-coded data.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
# Markers of segments that start with their length: frames, tables, scans, application data, comments.
_SEGMENTS, _END = {*range(0xC0, 0xD0), *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE}, 0xD9


def _is_whole_jpeg(content: bytes) -> bool:
    """Goes from marker to marker to the end of the image; what follows (a video clip, a trailer, zeros) is ignored."""
    position = 2
    while marker := _MARKER.search(content, position):
        kind = marker[1][0]
        if kind not in _SEGMENTS:
            return kind == _END
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return False


def upright_size(content: bytes) -> tuple[int, int]:
    """Returns width and height of what `decode` returns; most PNGs are not decoded for it.

    Raises:
        ImageError: As `decode`.
    """
    position = 8
    while content[:8] == b"\x89PNG\r\n\x1a\n" and position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8].ljust(8, b"\0"))
        if kind == b"IEND" and content[12:16] == b"IHDR":
            width, height = struct.unpack(">II", content[16:24])
            return width, height
        if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):  # may hold an orientation
            break
        position += 12 + length
    height, width = decode(content).shape[:2]
    return width, height


def decode(content: bytes, *, upright: bool = True) -> Image:
    """Decodes JPEG, PNG, … by content (not by file name) into [H, W, 3] uint8, BGR.

    Args:
        content: The file's bytes.
        upright: Whether to rotate the image by its EXIF orientation.

    Raises:
        ImageError: The bytes are not an image, or the image is cut off.
    """
    if content[:2] == b"\xff\xd8" and not _is_whole_jpeg(content):
        # OpenCV fills the missing part of a truncated JPEG with grey, without an error.
        raise ImageError("the JPEG is cut off (no end marker)")
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error as error:  # a header with more pixels than OpenCV accepts
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
