"""Scores a detector behind a Triton server, in the same pixels as one that runs in this process."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.decode.instances import Placement
from components.evaluate.evaluation import Evaluated, Protocol, summarised
from components.evaluate.latency import MOST_IMAGES, Latency, measure
from components.measure.matching import ImageBoxes, Matcher
from components.progress import track
from components.step import StageError, UserError
from components.vision.endpoint import Endpoint
from components.vision.inputs import InputSpec
from components.vision.scoring import ImageSource, LabelledImage, Scored

_NAMED = 3  # of the images without an answer


@dataclass(frozen=True, slots=True)
class Served:
    """An endpoint's evaluation.

    Attributes:
        evaluated: What it found, boxes in pixels of the network's input.
        scales: For each image, pixels of the network's input per pixel of the stored image.
        latency: How long it took.
    """

    evaluated: Evaluated
    scales: list[float]
    latency: Latency


def network_input_of(endpoint: Endpoint) -> InputSpec:
    """Returns what the network behind an endpoint takes.

    Raises:
        UserError: The endpoint does not say it.
    """
    if endpoint.network_size is None:
        raise UserError(f"{endpoint}: none of its models says the size of the network's input; give --model, too")
    return InputSpec(*endpoint.network_size)


def evaluate_endpoint(endpoint: Endpoint, images: ImageSource, protocol: Protocol) -> Served:
    """Sends all images as they are stored, measures what comes back, and then how long it takes.

    The boxes come back in pixels of the stored image. They are mapped into the network's input as the labels are, so
    that heights, and with them what counts, are those of an evaluation in this process.

    Raises:
        UserError: There are no images.
        StageError: The endpoint fails, or has no answer for some of the images.
    """
    scored, scales, sent = _score(endpoint, images, protocol)
    latency = measure(endpoint, sent)
    figures = {
        "parameters": None,
        "file_bytes": None,
        "images_per_second": latency.throughput,
        "latency_milliseconds": latency.milliseconds(),
        "latency_requests": len(latency.seconds),
        "latency_in_flight": latency.in_flight,
    }
    return Served(summarised("endpoint", scored, images, protocol, figures), scales, latency)


def _score(endpoint: Endpoint, images: ImageSource, protocol: Protocol) -> tuple[Scored, list[float], list[bytes]]:
    """Returns what was found, each image's scale, and the first images as they were sent."""
    ids: list[str] = []
    boxes: dict[str, list[ImageBoxes]] = {name: [] for name in endpoint.class_names}
    seconds: list[float] = []
    scales: list[float] = []
    sent: list[bytes] = []
    failed: list[str] = []

    def outgoing() -> Iterator[tuple[LabelledImage, bytes]]:
        for image in track(images, len(images), "scoring endpoint"):
            if len(sent) < MOST_IMAGES:
                sent.append(image.encoded)
            yield image, image.encoded

    for image, answer in endpoint.stream(outgoing()):
        if answer.error:
            failed.append(f"{image.id}: {answer.error}")
            continue
        assert image.placement is not None
        ids.append(image.id)
        seconds.append(answer.seconds)
        scales.append(image.placement.scale[0])
        for name, rows in boxes.items():
            found = _to_frame(answer.detections[name], image.placement)
            rows.append(ImageBoxes(found, image.objects[name], image.regions))
    if failed:
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        count = f"{len(failed)} of {len(failed) + len(ids)}"
        raise StageError(f"{endpoint}: {count} images have no answer: {'; '.join(failed[:_NAMED])}{more}")
    if not ids:
        raise UserError("no images to score: the chosen split is empty; check the data set and the split's name")
    matchers = {name: Matcher(rows, protocol.iou_threshold) for name, rows in boxes.items()}
    return Scored(ids, boxes, matchers, sum(seconds), seconds), scales, sent


def _to_frame(detections: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Maps detections [K, 5] from stored pixels to the network's input."""
    boxes = placement.to_input(detections[:, :4])
    return np.column_stack([boxes, detections[:, 4]]).astype(np.float32)
