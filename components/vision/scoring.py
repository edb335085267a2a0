"""The loop in which a network looks at images, batch by batch, wherever they come from."""

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np

from components.decode.decoder import Decoder
from components.decode.instances import Instances, Placement
from components.formats.images import ImageError, decode
from components.step import UserError
from components.vision.inputs import Image, Images, InputSpec
from components.vision.predictor import Predictor

BATCH_SIZE = 16

Key = TypeVar("Key")


def network_input(content: bytes, source: str, spec: InputSpec) -> tuple[Images, Placement]:
    """Decodes an image and fits it into a network's input; see `InputSpec.place`.

    Raises:
        UserError: The image is broken.
    """
    try:
        pixels, placement = spec.place(decode(content))
    except ImageError as error:
        raise UserError(f"{source}: {error}; replace or remove this image") from error
    return np.ascontiguousarray(pixels), placement


class Inference:
    """Runs a network over images and decodes its outputs.

    Attributes:
        seconds: Time spent in the network and in decoding so far; reading images is left out.
        network_seconds: Of each batch, the time an image spent in the network alone.
    """

    def __init__(self, predictor: Predictor, batch_size: int = BATCH_SIZE, decoder: Decoder | None = None) -> None:
        """Takes the network, and what its outputs mean where its own decoder does not say it."""
        self._predictor, self._batch_size = predictor, batch_size
        self._decoder = decoder or predictor.decoder
        self.seconds = 0.0
        self.network_seconds: list[float] = []

    def stream(self, images: Iterable[tuple[Key, Image]]) -> Iterator[tuple[Key, Instances]]:
        """Yields each image's key, and what is in it in pixels of the network's input, in the order of the images.

        Args:
            images: Keys, which are handed back, and images as `InputSpec.place` gives them.
        """
        remaining = iter(images)
        while batch := list(islice(remaining, self._batch_size)):
            pixels = np.stack([image for _, image in batch])
            begin = time.perf_counter()
            outputs = self._predictor(pixels)
            self.network_seconds.append((time.perf_counter() - begin) / len(batch))
            found = self._decoder(outputs)
            self.seconds += time.perf_counter() - begin
            yield from zip((key for key, _ in batch), found, strict=True)
