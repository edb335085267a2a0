"""Decodes images, upright, and fits them into a network's input."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


class ImageError(ValueError):
    """The bytes are not a complete image."""


Resampling = Literal["area", "cubic"]
# A JPEG marker, without fill bytes, byte stuffing and restart markers, which belong to entropy-coded data.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
# Markers of segments that start with their length: frames, tables, scans, application data, comments.
_SEGMENTS, _END = {*range(0xC0, 0xD0), *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE}, 0xD9
# Of these, the frame's, which holds the size (the others between 0xC0 and 0xCF are tables); EXIF is in the second one.
_FRAMES, _EXIF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, 0xE1
_PNG = b"\x89PNG\r\n\x1a\n"
LARGEST = 2**27
"""Pixels of the largest image that is decoded: 400 MB in memory."""


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yields every marker's kind, and where the data behind it starts; up to the end of the image or of sense."""
    position = 2
    while marker := _MARKER.search(content, position):
        yield marker[1][0], marker.end()
        if marker[1][0] not in _SEGMENTS:
            return
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")


def is_jpeg(content: bytes) -> bool:
    """Tells a JPEG by how it begins, whatever the file is called."""
    return content[:2] == b"\xff\xd8"


def _is_whole_jpeg(content: bytes) -> bool:
    """Goes from marker to marker to the end of the image; what follows (a video clip, a trailer, zeros) is ignored."""
    return [kind for kind, _ in _jpeg_segments(content)][-1:] == [_END]


def upright_size(content: bytes) -> tuple[int, int]:
    """Returns width and height of what `decode` returns: the one size that converters and loaders go by.

    Most images are not decoded for it: whole JPEGs without EXIF, and whole PNGs that hold neither EXIF nor text.

    Raises:
        ImageError: As `decode`, as far as that can be seen without decoding.
    """
    size = _unturned_size(content)
    if size is None:
        height, width = decode(content).shape[:2]
        return width, height
    return size


def _unturned_size(content: bytes) -> tuple[int, int] | None:
    """Returns the size of an image that can have no orientation, by its header, and None of any other."""
    size = _jpeg_size(content) if is_jpeg(content) else _png_size(content) if content[:8] == _PNG else None
    return size if size and min(size) else None


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    size, kind = None, None
    for kind, start in _jpeg_segments(content):
        if kind == _EXIF:
            return None
        if kind in _FRAMES:
            height, width = struct.unpack(">HH", content[start + 3 : start + 7].ljust(4, b"\0"))
            size = width, height
    return size if kind == _END else None


def _png_size(content: bytes) -> tuple[int, int] | None:
    position = len(_PNG)
    while position < len(content):
        length, kind = struct.unpack(">I4s", content[position : position + 8].ljust(8, b"\0"))
        if kind == b"IEND" and content[12:16] == b"IHDR":
            width, height = struct.unpack(">II", content[16:24])
            return width, height
        if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):  # may hold an orientation
            return None
        position += 12 + length
    return None


def _header_size(content: bytes) -> tuple[int, int]:
    """Returns the size that a JPEG's or a PNG's header claims, turned or not; zeros of any other image."""
    if content[:8] == _PNG:
        width, height = struct.unpack(">II", content[16:24].ljust(8, b"\0"))
        return width, height
    for kind, start in _jpeg_segments(content) if is_jpeg(content) else ():
        if kind in _FRAMES:
            height, width = struct.unpack(">HH", content[start + 3 : start + 7].ljust(4, b"\0"))
            return width, height
    return 0, 0


def is_upright(content: bytes) -> bool:
    """Tells whether an image's pixels are stored as they are to be seen, so that a reader may ignore its EXIF.

    Raises:
        ImageError: As `decode`.
    """
    return _unturned_size(content) is not None or np.array_equal(decode(content), decode(content, upright=False))


def decode(content: bytes, *, upright: bool = True, eighth: bool = False) -> Image:
    """Decodes JPEG, PNG, … by content (not by file name) into [H, W, 3] uint8, BGR.

    Args:
        content: The file's bytes.
        upright: Whether to rotate the image by its EXIF orientation.
        eighth: An eighth of the size, rounded up: of a JPEG in a tenth of the time, to see whether it can be read.

    Raises:
        ImageError: The bytes are not an image, or the image is cut off, or it has more pixels than `LARGEST`.
    """
    width, height = _header_size(content)
    if width * height > LARGEST:
        raise ImageError(f"{width}x{height}: more than {LARGEST / 1e6:.0f} million pixels; shrink it first")
    if is_jpeg(content) and not _is_whole_jpeg(content):
        # OpenCV fills the missing part of a truncated JPEG with grey, without an error.
        raise ImageError("the JPEG is cut off (no end marker)")
    flags = cv2.IMREAD_REDUCED_COLOR_8 if eighth else cv2.IMREAD_COLOR
    if not upright:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error as error:  # a header with more pixels than OpenCV accepts
        raise ImageError(f"not an image that OpenCV can decode ({error.err})") from error
    if image is None:
        raise ImageError("not an image that OpenCV can decode" if content else "the file is empty")
    return np.asarray(image, dtype=np.uint8)


def resize(image: Image, size: tuple[int, int], resampling: Resampling = "area") -> Image:
    """Scales an image [h, w, 3] to `size` (width, height).

    Args:
        image: The image.
        size: Pixels, 1 or more.
        resampling: `area` takes a mean over each target pixel's area where it shrinks, so that nothing finer than the
            target's pixels folds back as a false pattern; enlarging it is cubic. `cubic` is TAO's: it looks at 4 x 4
            source pixels, however many lie under a target pixel.
    """
    height, width = image.shape[:2]
    if resampling == "area":
        # OpenCV averages only where neither side grows; so each side shrinks first.
        smaller = min(width, size[0]), min(height, size[1])
        if smaller != (width, height):
            image = np.asarray(cv2.resize(image, smaller, interpolation=cv2.INTER_AREA), np.uint8)
        if smaller == size:
            return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), np.uint8)


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

    def apply(self, image: Image, resampling: Resampling = "area") -> Image:
        """Returns `image` [h, w, 3] scaled into a black frame [height, width, 3]; see `resize`."""
        if image.shape[:2] == (self.height, self.width):
            return image
        frame = np.zeros((self.height, self.width, 3), np.uint8)
        w, h = self.inner
        frame[self.dy : self.dy + h, self.dx : self.dx + w] = resize(image, (w, h), resampling)
        return frame
