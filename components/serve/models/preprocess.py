"""Encoded images to the network's input."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.serve.models import tensors

# Begins the error of a request whose images cannot be read: the sender's fault, not the server's.
IMAGE_ERROR = "image: "
# OpenCV reads its limit when it is loaded, and names it when an image exceeds it.
LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"


@dataclass(frozen=True)
class Prepared:
    """One image, ready for the network, or why it is not.

    Attributes:
        pixels: [H, W, 3] BGR uint8, of the network's size.
        placement: How source pixels lie in it: scale of x and of y, then offset of x and of y.
        size: Height, width and channels of the source, upright.
        error: Empty unless the bytes cannot be read.
    """

    pixels: NDArray[np.uint8]
    placement: tuple[float, float, float, float] = (1.0, 1.0, 0.0, 0.0)
    size: tuple[int, int, int] = (0, 0, 0)
    error: str = ""


class Preprocess(tensors.Step):
    """Decodes, fits and scales images.

    Of a request for several images those that cannot be read have `true_image_size` 0 and their reason in `image_error`
    (zero-padded UTF-8); a request none of whose images can be read fails.
    """

    def __init__(self, parameters: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002
        """Takes the parameters `geometry`, `preprocessing` (letterbox or stretch) and `max_image_pixels`."""
        self._width, self._height = parameters["geometry"]["width"], parameters["geometry"]["height"]
        self._stretch = parameters["preprocessing"] == "stretch"
        self._limit: int = parameters["max_image_pixels"]
        os.environ[LIMIT] = str(self._limit)
        # Only now: it loads OpenCV.
        import cv2

        from components.formats import images

        # Processes work on images side by side; threads within one image would cost more than they bring.
        cv2.setNumThreads(1)
        self._cv2, self._images = cv2, images

    def __call__(self, inputs: tensors.Arrays) -> tensors.Arrays:
        """Takes encoded images, `input_image_data` [N, bytes]; gives what `Prepared` holds."""
        prepared = [self._prepare(row.tobytes()) for row in inputs["input_image_data"]]
        errors = [image.error for image in prepared]
        if all(errors):
            among = f"none of {len(errors)} can be read, the first: " if len(errors) > 1 else ""
            raise tensors.RefusedError(f"{IMAGE_ERROR}{among}{errors[0]}")
        pixels = np.empty((len(prepared), 3, self._height, self._width), np.float32)
        for image, planes in zip(prepared, pixels, strict=True):
            # Blue, green, red to red, green, blue; the arithmetic is that of `OnnxPredictor`.
            np.divide(image.pixels[..., ::-1].transpose(2, 0, 1), np.float32(255), out=planes, dtype=np.float32)
        return {
            "input_1": pixels,
            "placement": np.array([image.placement for image in prepared], np.float64),
            "true_image_size": np.array([image.size for image in prepared], np.int64),
            "image_error": _text(errors),
        }

    def _prepare(self, content: bytes) -> Prepared:
        try:
            image = self._images.decode(content)
        except self._images.ImageError as error:
            return Prepared(np.zeros((self._height, self._width, 3), np.uint8), error=self._explained(error))
        height, width, channels = image.shape
        if self._stretch:
            size = self._width, self._height
            fitted = self._cv2.resize(image, size, interpolation=self._cv2.INTER_AREA)
            placement = self._width / width, self._height / height, 0.0, 0.0
        else:
            letterbox = self._images.Letterbox.fit(width, height, self._width, self._height)
            fitted = image if (height, width) == (self._height, self._width) else letterbox.apply(image)
            placement = letterbox.scale, letterbox.scale, float(letterbox.dx), float(letterbox.dy)
        return Prepared(np.asarray(fitted, np.uint8), placement, (height, width, channels))

    def _explained(self, error: Exception) -> str:
        if LIMIT.removeprefix("OPENCV") in str(error):
            return f"more than the {self._limit / 1e6:g} million pixels that this server takes"
        return str(error)


def _text(lines: list[str]) -> NDArray[np.uint8]:
    """Returns lines as zero-padded UTF-8 [N, L], L at least 1: without NumPy's C interface there are no strings."""
    encoded = [line.encode() for line in lines]
    rows = np.zeros((len(lines), max(1, *map(len, encoded))), np.uint8)
    for row, line in zip(rows, encoded, strict=True):
        row[: len(line)] = np.frombuffer(line, np.uint8)
    return rows


class TritonPythonModel(tensors.Model):
    """The step for Triton."""

    step = Preprocess
