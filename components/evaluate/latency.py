"""How long an endpoint takes for an image, and how many it works on in a second."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from components.step import StageError
from components.vision.endpoint import Endpoint

# p99 wants more than a hundred values; more than this takes longer than it tells.
LEAST_REQUESTS, MOST_IMAGES = 200, 400
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of single images, sent while as many others as allowed were under way.

    Attributes:
        seconds: Of each request, from sending the encoded image to having its boxes, ascending.
        in_flight: How many were under way at once.
        throughput: Images per second.
    """

    seconds: tuple[float, ...]
    in_flight: int
    throughput: float

    def milliseconds(self) -> dict[str, float]:
        """Returns the percentiles by name (`p50`), milliseconds, interpolated linearly."""
        values = np.percentile(self.seconds, PERCENTILES) * 1e3
        return {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, values, strict=True)}


def measure(endpoint: Endpoint, images: Sequence[bytes]) -> Latency:
    """Sends encoded images, over and over where they are few, and does nothing else meanwhile.

    Raises:
        StageError: The endpoint fails on one.
    """
    count = max(len(images), LEAST_REQUESTS)
    begin = time.perf_counter()
    answers = [answer for _, answer in endpoint.stream(islice(enumerate(cycle(images)), count))]
    seconds = time.perf_counter() - begin
    for answer in answers:
        if answer.error:
            raise StageError(f"{endpoint}: fails on an image that it has answered before: {answer.error}")
    return Latency(tuple(sorted(answer.seconds for answer in answers)), endpoint.in_flight, count / seconds)
