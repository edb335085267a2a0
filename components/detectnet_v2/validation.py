"""The cost of a network on the validation images, taken along while it is scored on them."""

from dataclasses import replace

import numpy as np
import torch

from components.detectnet_v2.dataset import BatchMaker
from components.detectnet_v2.losses import ObjectiveWeights, bbox_cost, coverage_cost
from components.vision.predictor import Grids, Images, Predictor


class CostMeter:
    """A predictor that adds up what its outputs cost while it is shown the validation images, in their order."""

    def __init__(self, predictor: Predictor, batches: BatchMaker, weights: ObjectiveWeights) -> None:
        """Wraps a predictor.

        Args:
            predictor: The network.
            batches: Makes the targets of the images that the predictor will be shown.
            weights: The objectives' weights at this point of the training.
        """
        self.geometry, self.class_names = predictor.geometry, predictor.class_names
        self.clustering = predictor.clustering
        self.parameters, self.file_bytes = predictor.parameters, predictor.file_bytes
        self._predictor, self._weights = predictor, weights
        self._batches = replace(batches, augmentation=None, on_device=False)
        self._sum, self._seen = 0.0, 0

    def __call__(self, images: Images) -> Grids:
        """See `Predictor`."""
        coverage, bbox = self._predictor(images)
        batch = self._batches.batch(0, 0, np.arange(self._seen, self._seen + len(images)))
        target = batch.to_tensors(torch.device("cpu"))
        costs = torch.stack(
            [
                coverage_cost(torch.from_numpy(coverage), target.coverage, self._weights.foreground.cpu(), target.mask),
                bbox_cost(torch.from_numpy(bbox), target.bbox, target.coverage_norm, target.mask),
            ],
            dim=1,
        )
        self._sum += float(self._weights.total(costs)) * len(images)
        self._seen += len(images)
        return coverage, bbox

    @property
    def cost(self) -> float:
        """The mean cost of an image, without the regulariser."""
        return self._sum / max(self._seen, 1)
