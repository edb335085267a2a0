"""The cost of a network on the validation images, taken along while it is scored on them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.decode.decoder import Tensors
from components.decode.grid.decoder import BBOX, COVERAGE
from components.detectnet_v2.batches import BatchMaker
from components.detectnet_v2.losses import Objectives
from components.step import UserError
from components.vision.inputs import Images
from components.vision.predictor import Predictor

Order = NDArray[np.int64]


def scored_by_tao5(images: int, batch_size: int, validations: int | None = None) -> Order:
    """Returns the numbers of the images that TAO 5 scores: whole batches of a data set that repeats without end.

    Args:
        images: How many there are.
        batch_size: Images in a batch.
        validations: In training, how many validations came before: TAO then rounds the number of batches down, and each
            validation goes on where the one before stopped. None for an evaluation, which rounds up: the first images
            fill the last batch.

    Raises:
        UserError: In training, when there is no whole batch.
    """
    if validations is None:
        batches, start = -(-images // batch_size), 0
    else:
        batches = images // batch_size
        start = validations * batches * batch_size
    if images and not batches:
        raise UserError(
            f"{images} validation images are fewer than one batch of {batch_size}, and TAO 5 would validate on none; "
            "lower batch_size_per_gpu, or leave --compat tao5 out"
        )
    return (start + np.arange(batches * batch_size)) % max(images, 1)


@dataclass
class OperatingPoint:
    """Where F1 was best at the last validation, which a training that is resumed after it still knows.

    Attributes:
        scores: By class.
    """

    scores: Mapping[str, float] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """See `components.vision.training.Resumable`."""
        return dict(self.scores)

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `components.vision.training.Resumable`."""
        self.scores = dict(state)


class CostMeter:
    """A predictor that adds up what its outputs cost while it is shown the validation images."""

    def __init__(
        self, predictor: Predictor, batches: BatchMaker, objectives: Objectives, order: Order | None = None
    ) -> None:
        """Wraps a predictor.

        Args:
            predictor: The network.
            batches: Makes the targets of the images that the predictor will be shown.
            objectives: As they are at this point of the training.
            order: The numbers of the images as they will be shown; None for all.
        """
        self.input, self.decoder = predictor.input, predictor.decoder
        self.parameters, self.file_bytes = predictor.parameters, predictor.file_bytes
        self._predictor, self._objectives, self._order = predictor, objectives, order
        self._batches = replace(batches, augmentation=None, on_device=False)
        self._sum, self._seen = 0.0, 0

    def __call__(self, images: Images) -> Tensors:
        """See `Predictor`."""
        outputs = self._predictor(images)
        coverage, bbox = (torch.from_numpy(outputs[name]) for name in (COVERAGE, BBOX))
        shown = np.arange(self._seen, self._seen + len(images))
        batch = self._batches.batch(0, 0, shown if self._order is None else self._order[shown])
        target = batch.to_tensors(torch.device("cpu"))
        costs = self._objectives.costs((coverage, bbox), target)
        self._sum += float(self._objectives.total(costs)) * len(images)
        self._seen += len(images)
        return outputs

    @property
    def cost(self) -> float:
        """The mean cost of an image, without the regulariser."""
        return self._sum / max(self._seen, 1)
