"""Models and endpoints as sources of predictions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from components.decode.instances import Instances, Placement
from components.evaluate.inputs import Findings, Found, aligned
from components.evaluate.latency import MOST_IMAGES, Latency, measure
from components.evaluate.pictures import Picture, Pictures, Placements
from components.measure.dataset import Predictions, Truth
from components.progress import track
from components.step import StageError
from components.vision.endpoint import Endpoint
from components.vision.inputs import Image, InputSpec
from components.vision.predictor import Predictor
from components.vision.scoring import BATCH_SIZE, Inference, network_input

_NAMED = 3  # of the images without an answer


@dataclass(frozen=True, slots=True)
class Detected:
    """What a detector found, and what is known of it besides.

    Attributes:
        predictions: In the pixels that were asked for.
        placements: Of the images in the network's input, in the truth's order; None where they are not known.
        parameters: Number of weights, where it is known.
        file_bytes: Size of the model file, where it is known.
        seconds: How long all images took: network and decoding, or from request to answer.
        images_per_second: How many the network and its decoder did, or the endpoint with several under way.
        latency: How long it took, of an endpoint.
    """

    predictions: Predictions
    placements: Placements | None = None
    parameters: int | None = None
    file_bytes: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    latency: Latency | None = None


def detect_here(
    predictor: Predictor,
    name: str,
    pictures: Pictures,
    truth: Truth,
    findings: Findings,
    batch_size: int = BATCH_SIZE,
    *,
    stored_pixels: bool = True,
) -> Detected:
    """Runs a model over the truth's images.

    Args:
        predictor: The model.
        name: What it is called; without a name no progress is shown.
        pictures: The images.
        truth: The ground truth.
        findings: Where to count what is remarkable.
        batch_size: Images that the network sees at once.
        stored_pixels: Whether boxes are wanted in the pixels of the stored images, or of the network's input.

    Raises:
        UserError: An image is missing or broken; or there are faults and none is allowed.
    """
    inference, found = Inference(predictor, batch_size), _Gathered()

    def fitted() -> Iterator[tuple[tuple[str, Placement], Image]]:
        for picture in _shown(pictures, truth, name):
            pixels, placement = network_input(picture.content, picture.place, predictor.input)
            yield (picture.name, placement), pixels

    for (image, placement), instances in inference.stream(fitted()):
        found.add(image, instances.to_source(placement) if stored_pixels else instances, placement)
    return Detected(
        found.aligned(predictor.decoder.class_names, truth, findings, name),
        found.placements(truth),
        predictor.parameters,
        predictor.file_bytes,
        inference.seconds,
        len(truth.images) / max(inference.seconds, 1e-9),
    )


def detect_there(
    endpoint: Endpoint,
    name: str,
    pictures: Pictures,
    truth: Truth,
    findings: Findings,
    spec: InputSpec | None = None,
) -> Detected:
    """Sends the truth's images to an endpoint as they are stored, and then measures how long it takes.

    Args:
        endpoint: The endpoint.
        name: What it is called.
        pictures: The images.
        truth: The ground truth.
        findings: Where to count what is remarkable.
        spec: What the network behind it takes, where boxes are wanted in the pixels of that input.

    Raises:
        UserError: An image is missing; or there are faults and none is allowed.
        StageError: The endpoint fails, or has no answer for some of the images.
    """
    found, failed, seconds = _Gathered(), [], 0.0
    sent: list[bytes] = []

    def outgoing() -> Iterator[tuple[str, bytes]]:
        for picture in _shown(pictures, truth, name):
            if len(sent) < MOST_IMAGES:
                sent.append(picture.content)
            yield picture.name, picture.content

    for image, answer in endpoint.stream(outgoing()):
        if answer.error:
            failed.append(f"{image}: {answer.error}")
            continue
        seconds += answer.seconds
        instances = Instances.ranked([answer.detections[kind] for kind in endpoint.class_names])
        placement = spec.placement(answer.width, answer.height) if spec else None
        if placement:
            boxes = placement.to_input(instances.boxes).astype(np.float32)  # as exact as the network gives them
            instances = replace(instances, boxes=boxes)
        found.add(image, instances, placement)
    if failed:
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        count = f"{len(failed)} of {len(truth.images)}"
        raise StageError(f"{endpoint}: {count} images have no answer: {'; '.join(failed[:_NAMED])}{more}")
    latency = measure(endpoint, sent)
    return Detected(
        found.aligned(endpoint.class_names, truth, findings, name),
        found.placements(truth),
        seconds=seconds,
        images_per_second=latency.throughput,
        latency=latency,
    )


def _shown(pictures: Pictures, truth: Truth, name: str) -> Iterable[Picture]:
    """Returns the truth's images; how far they are done is shown."""
    images = pictures.encoded(truth.images)
    return track(images, len(truth.images), f"detecting with {name}") if name else images


class _Gathered:
    """Detections as they come, image by image."""

    def __init__(self) -> None:
        self._images: list[str] = []
        self._instances: list[Instances] = []
        self._placements: dict[str, Placement] = {}

    def add(self, image: str, instances: Instances, placement: Placement | None) -> None:
        """Adds what was found in an image."""
        self._images.append(image)
        self._instances.append(instances)
        if placement:
            self._placements[image] = placement

    def aligned(self, class_names: Iterable[str], truth: Truth, findings: Findings, name: str) -> Predictions:
        """Orders everything by the truth's images and classes."""
        found = Predictions.gathered(self._instances)
        whole = Found(self._images, found.images, found.boxes, found.scores, list(class_names), found.classes)
        predictions = aligned(whole, truth, findings)
        findings.raise_if_strict(name)
        return predictions

    def placements(self, truth: Truth) -> Placements | None:
        """Returns them in the truth's order."""
        if not self._placements:
            return None
        return Placements.of([self._placements[image] for image in truth.images])
