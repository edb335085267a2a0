"""Models and endpoints as sources of predictions, in the pixels of the stored images."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.evaluate.inputs import Findings, Found, aligned
from components.evaluate.latency import MOST_IMAGES, Latency, measure
from components.evaluate.pictures import Pictures
from components.measure.boxes import Floats
from components.measure.dataset import Predictions, Truth
from components.progress import track
from components.step import StageError
from components.vision.endpoint import Endpoint
from components.vision.predictor import Predictor, detect_images
from components.vision.scoring import network_input

_NAMED = 3  # of the images without an answer
Rows = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Detected:
    """What a detector found, and what is known of it besides.

    Attributes:
        predictions: In the pixels of the stored images.
        parameters: Number of weights, where it is known.
        file_bytes: Size of the model file, where it is known.
        images_per_second: How many the network and its clustering did, or the endpoint with several under way.
        latency: How long it took, of an endpoint.
    """

    predictions: Predictions
    parameters: int | None = None
    file_bytes: int | None = None
    images_per_second: float | None = None
    latency: Latency | None = None


def detect_here(
    predictor: Predictor, name: str, pictures: Pictures, truth: Truth, findings: Findings, batch_size: int = 16
) -> Detected:
    """Runs a model over the truth's images; boxes are mapped back from the network's input.

    Raises:
        UserError: An image is missing or broken; or there are faults and none is allowed.
    """
    found, seconds = _Gathered(predictor.decoder.class_names), 0.0
    remaining = pictures.encoded(truth.images)
    with_progress = iter(track(remaining, len(truth.images), f"detecting with {name}"))
    while batch := list(islice(with_progress, batch_size)):
        inputs = [network_input(content, image, predictor.input) for image, content in batch]
        begin = time.perf_counter()
        answers = detect_images(predictor, np.stack([pixels for pixels, _ in inputs]))
        seconds += time.perf_counter() - begin
        for (image, _), (_, placement), instances in zip(batch, inputs, answers, strict=True):
            at_source = instances.to_source(placement)
            names = predictor.decoder.class_names
            found.add(image, {name: at_source.select(kind).rows() for kind, name in enumerate(names)})
    predictions, speed = found.aligned(truth, findings, name), len(truth.images) / seconds
    return Detected(predictions, predictor.parameters, predictor.file_bytes, speed)


def detect_there(endpoint: Endpoint, name: str, pictures: Pictures, truth: Truth, findings: Findings) -> Detected:
    """Sends the truth's images to an endpoint as they are stored, and then measures how long it takes.

    Raises:
        UserError: An image is missing; or there are faults and none is allowed.
        StageError: The endpoint fails, or has no answer for some of the images.
    """
    found, failed = _Gathered(endpoint.class_names), []
    sent: list[bytes] = []

    def outgoing() -> Iterator[tuple[str, bytes]]:
        for image, content in track(pictures.encoded(truth.images), len(truth.images), f"detecting with {name}"):
            if len(sent) < MOST_IMAGES:
                sent.append(content)
            yield image, content

    for image, answer in endpoint.stream(outgoing()):
        if answer.error:
            failed.append(f"{image}: {answer.error}")
        else:
            found.add(image, answer.detections)
    if failed:
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        count = f"{len(failed)} of {len(truth.images)}"
        raise StageError(f"{endpoint}: {count} images have no answer: {'; '.join(failed[:_NAMED])}{more}")
    latency = measure(endpoint, sent)
    return Detected(found.aligned(truth, findings, name), images_per_second=latency.throughput, latency=latency)


class _Gathered:
    """Detections as they come, image by image."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = class_names
        self._images: list[str] = []
        self._rows: list[Floats] = [np.zeros((0, 7))]

    def add(self, image: str, detections: Mapping[str, Rows]) -> None:
        """Adds what was found in an image: by class name, [K, 5]."""
        for kind, name in enumerate(self._class_names):
            rows = np.asarray(detections.get(name, np.zeros((0, 5))), np.float64)
            place = np.broadcast_to([len(self._images), kind], (len(rows), 2))
            self._rows.append(np.column_stack([rows, place]))
        self._images.append(image)

    def aligned(self, truth: Truth, findings: Findings, name: str) -> Predictions:
        """Orders everything by the truth's images and classes."""
        rows = np.concatenate(self._rows)
        image, kind = rows[:, 5].astype(np.int64), rows[:, 6].astype(np.int64)
        found = Found(self._images, image, rows[:, :4], rows[:, 4], self._class_names, kind)
        predictions = aligned(found, truth, findings)
        findings.settle(Path(name))
        return predictions
