"""Decoded images in a file-backed array: resident memory stays flat as the data grow, whatever their number."""

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.formats.images import ImageError, decode
from components.step import UserError

Pixels = NDArray[np.uint8]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PixelStore:
    """Images [height, width, 3] of mixed sizes, one behind the other in an unlinked temporary file.

    Nothing is left behind, however the process ends.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Reserves the place of black images.

        Args:
            sizes: Width and height of each, pixels.

        Raises:
            UserError: The disk has no room for them.
        """
        self.sizes = sizes
        self._offsets = np.cumsum([0, *(3 * width * height for width, height in sizes)], dtype=np.int64)
        self._bytes = _reserved(int(self._offsets[-1]))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Pixels:
        width, height = self.sizes[index]
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].reshape(height, width, 3)

    def stacked(self) -> Pixels:
        """Returns [N, height, width, 3], of images of one size."""
        width, height = self.sizes[0] if self.sizes else (1, 1)
        return self._bytes.reshape(-1, height, width, 3)


def _reserved(size: int) -> Pixels:
    """Returns [size] zeros in an unlinked temporary file.

    The disk's blocks are taken at once: where they come as they are written, a full disk ends the process by a signal,
    without a word.
    """
    if not size:
        return np.zeros(0, np.uint8)
    with tempfile.TemporaryFile() as store:
        try:
            os.posix_fallocate(store.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
            raise UserError(
                f"{folder}: the decoded images need {size / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free "
                f"({error.strerror}); name a larger place in TMPDIR, or convert the images to a smaller size"
            ) from error
        return np.memmap(store, np.uint8, "r+", shape=(size,))


def read_rgb(file: Path, width: int, height: int) -> Pixels:
    """Decodes the image of a record as RGB [height, width, 3].

    A record whose width and height are swapped is about the image as it is stored, without its EXIF orientation.

    Raises:
        UserError: The image is missing, broken, or of another size.
    """
    try:
        content = file.read_bytes()
        image = decode(content)
        if image.shape[:2] == (width, height):
            image = decode(content, upright=False)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; the records name this image, was the folder moved?") from error
    except ImageError as error:
        raise UserError(f"{file}: {error}") from error
    if image.shape[:2] != (height, width):
        size = f"{image.shape[1]}x{image.shape[0]}, its record says {width}x{height}"
        raise UserError(f"{file}: {size}; convert the data again")
    return image[..., ::-1]
