"""Decoded images in a file-backed array: resident memory stays flat as the data grow, whatever their number."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.formats.images import ImageError, decode
from components.step import UserError

Pixels = NDArray[np.uint8]


def file_backed(shape: tuple[int, int, int, int]) -> Pixels:
    """Returns a black array in an unlinked temporary file, which takes no place until it is written."""
    if 0 in shape:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile() as store:
        return np.memmap(store, np.uint8, "w+", shape=shape)


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
