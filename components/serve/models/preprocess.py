"""Encoded images to the network's input."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.decode.description import upgraded
from components.decode.instances import Placement
from components.serve.models import tensors
from components.vision.inputs import PIXELS, InputSpec

# Begins the error of a request whose images cannot be read: the sender's fault, not the server's.
IMAGE_ERROR = "image: "
# OpenCV reads its limit when it is loaded, and names it when an image exceeds it.
LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"
NOWHERE = Placement()


@dataclass(frozen=True)
class Prepared:
    """One image, ready for the network, or why it is not.

    Attributes:
        pixels: As `InputSpec.place` gives them.
        placement: How the source lies in them.
        size: Height, width and channels of the source, upright.
        error: Empty unless the bytes cannot be read.
    """

    pixels: NDArray[np.uint8]
    placement: Placement = NOWHERE
    size: tuple[int, int, int] = (0, 0, 0)
    error: str = ""


class Preprocess(tensors.Step):
    """Decodes, fits and scales images.

    Of a request for several images those that cannot be read have `true_image_size` 0 and their reason in `image_error`
    (zero-padded UTF-8); a request none of whose images can be read fails.
    """

    def __init__(self, parameters: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002
        """Takes the parameters `max_image_pixels`, and `input_spec` or what stood in its place; see `upgraded`."""
        self._spec = InputSpec.from_json(upgraded(parameters)["input"])
        self._limit: int = parameters["max_image_pixels"]
        os.environ[LIMIT] = str(self._limit)
        # Only now: it loads OpenCV.
        import cv2

        from components.formats import images

        # Processes work on images side by side; threads within one image would cost more than they bring.
        cv2.setNumThreads(1)
        self._images = images

    def __call__(self, inputs: tensors.Arrays, asked: tensors.Asked) -> tensors.Arrays:  # noqa: ARG002
        """Takes encoded images, `input_image_data` [N, bytes]; gives what `Prepared` holds."""
        prepared = [self._prepare(row.tobytes()) for row in inputs["input_image_data"]]
        errors = [image.error for image in prepared]
        if all(errors):
            among = f"none of {len(errors)} can be read, the first: " if len(errors) > 1 else ""
            raise tensors.RefusedError(f"{IMAGE_ERROR}{among}{errors[0]}")
        placements = [(*image.placement.scale, *image.placement.offset) for image in prepared]
        return {
            PIXELS: self._spec.prepare([image.pixels for image in prepared]),
            "placement": np.array(placements, np.float64),
            "true_image_size": np.array([image.size for image in prepared], np.int64),
            "image_error": _text(errors),
        }

    def _prepare(self, content: bytes) -> Prepared:
        try:
            image = self._images.decode(content)
        except self._images.ImageError as error:
            black = np.zeros((self._spec.height, self._spec.width, self._spec.channels), np.uint8)
            return Prepared(black, error=self._explained(error))
        height, width, channels = image.shape
        return Prepared(*self._spec.place(image), (height, width, channels))

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
