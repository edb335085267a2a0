"""The network's output to boxes in pixels of the images as they were sent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.decode.grid.clustering import Clustering, detect
from components.decode.grid.geometry import GridGeometry
from components.serve.models import tensors

# Stands for the number of detections in an image that could not be read.
UNREADABLE = -1


class Postprocess(tensors.Step):
    """Clusters each image's cells, as evaluation does, and maps the boxes back.

    They are not cut to the image: a box may reach into the letterbox's border, as it does in evaluation.
    """

    def __init__(self, parameters: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002
        """Takes the parameters `geometry`, `class_names`, and `clustering` by class name."""
        self._geometry = GridGeometry(**parameters["geometry"])
        self._clustering = [Clustering(**parameters["clustering"][name]) for name in parameters["class_names"]]

    def __call__(self, inputs: tensors.Arrays) -> tensors.Arrays:
        """Takes both grids, `placement` and `true_image_size`; gives boxes, scores, classes and their number."""
        names = ("output_cov/Sigmoid", "output_bbox/BiasAdd", "placement", "true_image_size")
        images = list(zip(*(inputs[name] for name in names), strict=True))
        found = [self._detect(coverage, bbox, placement) for coverage, bbox, placement, _ in images]
        counts = [len(rows) if size[0] else UNREADABLE for rows, (*_, size) in zip(found, images, strict=True)]
        # All images of a request share one length; at least one row, for DLPack knows no empty tensors.
        padded = np.zeros((len(images), max(1, *counts), 6), np.float32)
        for rows, count, target in zip(found, counts, padded, strict=True):
            target[: max(0, count)] = rows[: max(0, count)]
        return {
            "true_boxes": padded[..., :4],
            "true_proba": padded[..., 4:5],
            "true_class": padded[..., 5:].astype(np.int32),
            "num_detections": np.array(counts, np.int32)[:, None],
        }

    def _detect(
        self, coverage: NDArray[np.float32], bbox: NDArray[np.float32], placement: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Returns [K, 6] x1, y1, x2, y2 in pixels of the image, score and class, best first."""
        found = []
        for channel, clustering in enumerate(self._clustering):
            rows = detect(coverage[channel], bbox[4 * channel : 4 * channel + 4], self._geometry, clustering)
            found.append(np.column_stack([rows, np.full(len(rows), channel, np.float32)]))
        joined = np.concatenate(found)
        boxes = (joined[:, :4].astype(np.float64) - np.tile(placement[2:], 2)) / np.tile(placement[:2], 2)
        joined[:, :4] = boxes
        return joined[np.argsort(-joined[:, 4], kind="stable")]


class TritonPythonModel(tensors.Model):
    """The step for Triton."""

    step = Postprocess
