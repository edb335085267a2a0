"""The network's outputs to objects in pixels of the images as they were sent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from components.decode.decoder import load_decoder
from components.decode.description import upgraded
from components.decode.instances import Placement
from components.serve.models import tensors

# Stands for the number of detections in an image that could not be read.
UNREADABLE = -1


class Postprocess(tensors.Step):
    """Decodes each image's outputs, as evaluation does, and maps the boxes back.

    They are not cut to the image: a box may reach into the letterbox's border, as it does in evaluation.
    """

    def __init__(self, parameters: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002
        """Takes the parameters `class_names` and `decoder`, or what stood in its place; see `upgraded`."""
        self._decoder = load_decoder(upgraded(parameters))

    def __call__(self, inputs: tensors.Arrays) -> tensors.Arrays:
        """Takes the network's outputs, `placement` and `true_image_size`; gives objects and their number."""
        found = [
            instances.to_source(Placement(tuple(placement[:2]), tuple(placement[2:])))
            for instances, placement in zip(self._decoder(inputs), inputs["placement"], strict=True)
        ]
        sizes = inputs["true_image_size"]
        counts = [len(each) if size[0] else UNREADABLE for each, size in zip(found, sizes, strict=True)]
        # All images of a request share one length; at least one row, for DLPack knows no empty tensors.
        padded = np.zeros((len(found), max(1, *counts), 6), np.float32)
        for each, count, target in zip(found, counts, padded, strict=True):
            target[: max(0, count)] = np.column_stack([each.rows(), each.classes])[: max(0, count)]
        return {
            "true_boxes": padded[..., :4],
            "true_proba": padded[..., 4:5],
            "true_class": padded[..., 5:].astype(np.int32),
            "num_detections": np.array(counts, np.int32)[:, None],
        }


class TritonPythonModel(tensors.Model):
    """The step for Triton."""

    step = Postprocess
